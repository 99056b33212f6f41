"""What holds of the scheduler whatever the load: random workloads under virtual time.

The examples are the same at each run, and as many as fit into some 20 seconds. For more, and other ones each time:

SPECLRM_PROPERTY_EXAMPLES=3000 python -m pytest tests/runtime/scheduling/test_scheduler_properties.py
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Collector, enter, make_strategy, parts
from watched import CountingLoop, WatchedScripted, run_counted, watched
from workloads import (
    EXAMPLES,
    Ran,
    Workload,
    by_chance,
    check_all,
    check_closed,
    check_nothing_left,
    error_of,
    execute,
    operations,
    workloads,
)

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engine import EngineStats, Request
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine, by_step
from speclrm.runtime.errors import EngineDeadError, RequestError, TraceError
from speclrm.runtime.events import (
    StepCommitted,
    TrackFinished,
)
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.admission import ROOM_SHARE, SPARE_TOKENS, Admission, Reservation
from speclrm.runtime.scheduling.lanes import Lane
from speclrm.runtime.scheduling.requests import RequestState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from speclrm.runtime.events import Event

pytestmark = pytest.mark.timeout(60 + EXAMPLES)


# ------------------------------------------------------------------------------------------------------------------ the tests


@by_chance
@given(workloads())
def test_no_operation_is_lost_or_run_twice_and_bounds_and_priorities_hold(work: Workload) -> None:
    ran = execute(work)
    assert ran.error is None
    assert {event.reason for event in ran.of(TrackFinished)}.isdisjoint({"error", "cancelled"})
    check_all(ran, work)
    assert ran.scheduler is not None
    # Tracks are deferred before an engine runs out of room; what it puts back beside that is the exception.
    assert sum(engine.preemptions for engine in ran.every_engine) <= ran.scheduler.admission.deferred


@by_chance
@given(workloads(room=True))
def test_with_room_enough_nobody_stands_up_and_no_engine_puts_anything_back(work: Workload) -> None:
    ran = execute(work)
    assert ran.scheduler is not None
    assert ran.scheduler.admission.deferred == 0
    assert sum(engine.preemptions for engine in ran.every_engine) == 0


@by_chance
@given(workloads(), st.floats(0, 4, exclude_min=False))
def test_whenever_a_run_is_given_up_nothing_of_it_is_left(work: Workload, moment_s: float) -> None:
    ran = execute(work, cancel_after_s=moment_s)
    check_all(ran, work)


@by_chance
@given(workloads(), st.dictionaries(st.integers(0, 40), st.sampled_from(["request", "dead"]), max_size=3))
def test_whatever_fails_in_an_engine_nothing_is_left_behind(work: Workload, failures: dict[int, str]) -> None:
    errors = {"request": RequestError("refused"), "dead": EngineDeadError("gone")}
    ran = execute(work, fail={number: errors[name] for number, name in failures.items()})
    assert ran.error is None or isinstance(ran.error, EngineDeadError)
    check_all(ran, work)


# ------------------------------------------------------------------------------------------- given up at every single turn

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
SCRIPT = by_step(STEPS, scores=[9, 3, 8])
SMALL: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "speculative": ("speculative", {"tracks": 2}, None),
    "working ahead of scores": ("speculative", {"tracks": 2, "draft_ahead": "always", "rewrite_ahead": "always"}, None),
    "speculative in a narrow lane": ("speculative", {"tracks": 3}, 1),
    "as the controller decides": ("speculative", {"tracks": 2, "speculate": "auto"}, None),
    "methods chosen by the target": ("speculative-methods", {"tracks": 2}, None),
    "whole writes in a narrow lane": ("parallel", {"tracks": 3}, 1),
    "the first answer ends the sample": ("parallel", {"tracks": 2, "fast": 1}, 1),
}


@asynccontextmanager
async def small_runtime(in_flight_max: int | None) -> AsyncGenerator[tuple[Runtime, list[WatchedScripted]], None]:
    engines = {role: WatchedScripted(SCRIPT, name=role.value, chunk_tokens=32) for role in Role}
    async with Runtime(parts(engines), in_flight_max=in_flight_max) as runtime:
        yield runtime, list(engines.values())


def given_up_at(turn: int | None, case: str) -> tuple[int, bool]:
    """Cancels a small run at that turn of the loop; returns how many turns the run took, and whether it was cancelled."""
    name, options, in_flight_max = SMALL[case]
    collector = Collector()

    async def main(loop: CountingLoop) -> tuple[int, bool]:
        async with small_runtime(in_flight_max) as (runtime, engines):
            begun = loop.turns
            call = asyncio.create_task(
                runtime.run(
                    [Problem("p", "?", "4")], make_strategy(name, duplicates=True, **options), sinks=[collector]
                )
            )
            cancelled_s = 0.0

            def cancel() -> None:
                nonlocal cancelled_s
                cancelled_s = now_s()
                call.cancel()

            if turn is not None:
                loop.at_turn = begun + turn, cancel
            await asyncio.gather(call, return_exceptions=True)
            loop.at_turn = None
            turns = loop.turns - begun
            if call.cancelled():
                assert now_s() == cancelled_s, "an abort took time"
            ran = Ran(collector.events, record, {}, asyncio.CancelledError() if call.cancelled() else None)
            ran.scheduler = runtime.scheduler
            ran.open_at_end = {request for engine in engines for request in engine.opened.open}
            check_nothing_left(ran)
            assert all(engine.stats().running == 0 for engine in engines)
            check_closed(ran)
            asked = {one.id for one in record.asked}
            assert asked == {operation.id for _, operation in operations(ran.events)}
            in_engines = {name for engine in engines for name in engine.opened.asked}
            assert in_engines <= {one.id for one in record.asked if one.began is not None}
            return turns, call.cancelled()

    with watched() as record:
        return run_counted(main)


@pytest.mark.parametrize("case", SMALL)
def test_a_run_given_up_at_any_turn_of_the_loop_leaves_nothing(case: str) -> None:
    turns, _ = given_up_at(None, case)
    cancelled = [given_up_at(turn, case)[1] for turn in range(1, turns + 1)]
    assert cancelled.count(True) > turns * 0.8
    assert cancelled[0]


# ------------------------------------------------------------------------------------------------------------- failing sinks


class Refusing(Collector):
    """A sink that takes so many events and no more."""

    def __init__(self, events_max: int, *, at_the_door: bool) -> None:
        super().__init__()
        self.events_max = events_max
        self.at_the_door = at_the_door

    def emit(self, event: Event) -> None:
        if not self.at_the_door and len(self.events) >= self.events_max:
            raise TraceError("no more")
        super().emit(event)

    async def room(self) -> None:
        if self.at_the_door and len(self.events) >= self.events_max:
            raise TraceError("no more room")


def run_with(*, sink: Collector, must: bool, case: str) -> Ran:
    name, options, in_flight_max = SMALL[case]
    collector = Collector()

    async def main() -> Ran:
        async with small_runtime(in_flight_max) as (runtime, engines):
            required, listeners = ([sink], [collector]) if must else ([], [sink, collector])
            call = runtime._run(  # pyright: ignore[reportPrivateUsage]  # only a trace and a stream are sinks that must not fail
                [Problem(f"p{n}", "?", "4") for n in range(3)],
                make_strategy(name, **options),
                concurrency=2,
                required=required,
                sinks=listeners,
            )
            ran = Ran(collector.events, record, {}, await error_of(call))
            ran.scheduler = runtime.scheduler
            ran.open_at_end = {request for engine in engines for request in engine.opened.open}
            check_nothing_left(ran)
            assert all(engine.stats().running == 0 for engine in engines)
            return ran

    with watched() as record:
        return run_virtual(main())


@by_chance
@given(st.integers(0, 60), st.booleans(), st.sampled_from(sorted(SMALL)))
def test_a_sink_that_must_not_fail_and_does_ends_the_run_and_nothing_is_left(
    events_max: int, at_the_door: bool, case: str
) -> None:
    sink = Refusing(events_max, at_the_door=at_the_door)
    ran = run_with(sink=sink, must=True, case=case)
    if ran.error is not None:
        assert isinstance(ran.error, TraceError)
    if at_the_door:
        check_closed(ran)


@by_chance
@given(st.integers(0, 60), st.booleans(), st.sampled_from(sorted(SMALL)))
def test_a_listener_that_fails_is_left_behind_and_the_run_goes_on(
    events_max: int, at_the_door: bool, case: str
) -> None:
    ran = run_with(sink=Refusing(events_max, at_the_door=at_the_door), must=False, case=case)
    assert ran.error is None
    check_closed(ran)


# ------------------------------------------------------------------------------------------------------------------ fairness


@by_chance
@given(
    tracks=st.integers(2, 8),
    in_flight_max=st.integers(1, 8),
    speculate=st.sampled_from(["always", "never"]),
    draft_s=st.floats(0.001, 0.02),
    rejected=st.integers(0, 7),
)
def test_tracks_of_a_problem_advance_together(
    tracks: int, in_flight_max: int, speculate: str, draft_s: float, rejected: int
) -> None:
    """At any moment, once each has three steps: the track that is farthest has at most twice the tokens of the median.

    The tracks of one problem are equals in every queue. Of several problems the older comes first where lanes are narrow,
    which is meant: it gives its memory back sooner.
    """

    def target(request: Request, prompt: str) -> Reply:
        _, step, kind = request.id.rsplit("/", 2)
        if kind == "score":
            return Reply(score=3 if int(step) % 8 < rejected else 9)
        first = int(step)
        steps = range(first, 30) if kind == "write" else range(first, first + 1)
        return Reply("".join(f"Step {number:02} it is.\n\n" for number in steps))

    def draft(request: Request, prompt: str) -> Reply:
        return Reply(f"Step {int(request.id.rsplit('/', 2)[1]):02} it is.\n\n", token_s=draft_s)

    collector = Collector()

    async def main() -> None:
        engines = {Role.TARGET: ScriptedEngine(target, name="t"), Role.DRAFT: ScriptedEngine(draft, name="d")}
        async with Runtime(parts(engines), in_flight_max=in_flight_max) as runtime:
            await runtime.run(
                [Problem("p", "?")],
                make_strategy("speculative", tracks=tracks, speculate=speculate, step_limit=24, closing=False),
                sinks=[collector],
            )

    run_virtual(main())
    tokens = Counter[str]()
    steps = Counter[str]()
    ended: set[str] = set()
    for event in collector.events:
        if isinstance(event, TrackFinished):
            ended.add(event.track)
        elif isinstance(event, StepCommitted):
            tokens[event.track] += event.tokens
            steps[event.track] += 1
            going = [tokens[track] for track in steps if track not in ended]
            if len(steps) == tracks and min(steps.values()) >= 3 and going:
                assert max(going) <= 2 * median(going)
    assert len(ended) == tracks


# ------------------------------------------------------------------------------------------------------------------ one lane


@dataclass(frozen=True)
class Job:
    """A request to a lane: when, how urgent, how long it takes, and when its caller gives it up, if ever."""

    after_s: int
    priority: int
    tokens: int
    give_up_s: int | None


jobs = st.builds(
    Job, st.integers(0, 12), st.integers(0, 3), st.integers(1, 5), st.one_of(st.none(), st.none(), st.integers(0, 15))
)


def as_long_as_asked(request: Request, prompt: str) -> Reply:
    return Reply("x" * request.max_tokens, token_s=1.0)


@by_chance
@given(st.lists(jobs, min_size=1, max_size=25), st.integers(1, 4))
def test_a_lane_serves_the_most_urgent_first_and_leaves_no_place_empty(several: list[Job], bound: int) -> None:
    async def main() -> None:
        engine = WatchedScripted(as_long_as_asked, chunk_tokens=1)
        lane = Lane(Role.TARGET, engine, in_flight_max=bound)
        waiting: dict[str, tuple[int, int]] = {}
        numbers = iter(range(1000))

        async def one(job: Job, name: str) -> None:
            await asyncio.sleep(job.after_s)
            waiting[name] = job.priority, next(numbers)
            request_state = RequestState(Request(name, [65], job.tokens, priority=job.priority), "e")
            try:
                async with asyncio.timeout(job.give_up_s), lane.fly(request_state) as deltas:
                    mine = waiting.pop(name)
                    if request_state.queue_s:
                        assert all(mine < other or other[1] > mine[1] for other in waiting.values()) or (
                            mine == min([mine, *waiting.values()])
                        )
                    async for _ in deltas:
                        stats = lane.stats()[0]
                        assert stats.in_flight <= bound
                        assert not stats.waiting or stats.in_flight == bound
            except TimeoutError:
                if waiting.pop(name, None) is not None:
                    assert name not in engine.opened.asked

        async with asyncio.TaskGroup() as group:
            for number, job in enumerate(several):
                group.create_task(one(job, str(number)))
        stats = lane.stats()[0]
        assert (stats.in_flight, stats.waiting, engine.opened.open) == (0, 0, set())
        asked = Counter(engine.opened.asked)
        assert max(asked.values(), default=1) == 1
        assert {str(number) for number, job in enumerate(several) if job.give_up_s is None} <= asked.keys()

    run_virtual(main())


# -------------------------------------------------------------------------------------------------------------- reservations


class Roomy(ScriptedEngine):
    """Says how much room it has, and nothing else."""

    def __init__(self, kv_tokens: int) -> None:
        super().__init__(lambda request, prompt: Reply())
        self.kv_tokens = kv_tokens

    def stats(self) -> EngineStats:
        return replace(super().stats(), kv_tokens=self.kv_tokens)


@dataclass(frozen=True)
class Sitter:
    """A track: when it comes, its prompt, its steps (tokens each, which is also how long they take), when it is given up."""

    after_s: int
    order: int
    prompt: int
    steps: list[int]
    give_up_s: int | None


sitters = st.builds(
    Sitter,
    st.integers(0, 60),
    st.integers(0, 3),
    st.integers(10, 200),
    st.lists(st.integers(20, 60), min_size=1, max_size=12),
    st.one_of(st.none(), st.none(), st.integers(0, 500)),
)


@by_chance
@given(st.lists(sitters, min_size=1, max_size=14), st.integers(300, 1500), st.integers(1, 3))
def test_seats_never_outgrow_the_room_and_all_come_to_their_turn(
    several: list[Sitter], kv_tokens: int, engines: int
) -> None:
    """Those who were not asked to make room always fit, but for one that is larger than the room; and all that are admitted
    hold no more than the room and two steps each: the one it grew by, and the one that those asked to make room are at.
    """

    async def main() -> int:
        lane = Lane(Role.TARGET, *(Roomy(kv_tokens) for _ in range(engines)))
        admission = Admission({Role.TARGET: lane})
        reservations: list[Reservation] = []
        done = 0

        def check() -> None:
            for place in range(engines):
                admitted = [
                    reservation
                    for reservation in reservations
                    if reservation.admitted and reservation.places[Role.TARGET] == place
                ]
                staying = [
                    reservation.tokens[Role.TARGET] + SPARE_TOKENS for reservation in admitted if not reservation.asked
                ]
                assert len(staying) <= 1 or sum(staying) <= kv_tokens * ROOM_SHARE
                held = sum(reservation.tokens[Role.TARGET] for reservation in admitted)
                assert len(admitted) <= 1 or held <= kv_tokens + 2 * 60 * len(admitted)

        async def one(sitter: Sitter) -> None:
            nonlocal done
            await asyncio.sleep(sitter.after_s)
            reservation = None
            try:
                async with asyncio.timeout(sitter.give_up_s):
                    reservation = await enter(admission, sitter.order, {Role.TARGET: sitter.prompt})
                    reservations.append(reservation)
                    place = reservation.places[Role.TARGET]
                    for step in sitter.steps:
                        await admission.hold(reservation)
                        assert reservation.admitted
                        check()
                        await asyncio.sleep(step)
                        admission.resize(reservation, Role.TARGET, reservation.tokens[Role.TARGET] + step)
                        check()
                        assert reservation.places[Role.TARGET] == place
                    done += 1
            except TimeoutError:
                assert sitter.give_up_s is not None
            finally:
                if reservation is not None:
                    admission.leave(reservation)
                    admission.leave(reservation)

        async with asyncio.TaskGroup() as group:
            for sitter in several:
                group.create_task(one(sitter))
        assert (admission.admitted, admission.waiting) == (0, 0)
        newcomer = await asyncio.wait_for(enter(admission, 0, {Role.TARGET: kv_tokens}), 1.0)
        assert newcomer.admitted  # nothing is left in the books: one as large as the room sits down alone
        return done

    assert run_virtual(main()) >= sum(sitter.give_up_s is None for sitter in several)
