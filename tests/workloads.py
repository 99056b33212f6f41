"""Random workloads for the real runtime on simulated engines, and what must hold of each."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from support import Collector, make_strategy, parts
from watched import Record, WatchedSimulated, watched

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.device import Device
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings, rest_of
from speclrm.runtime.events import (
    EngineFailed,
    OperationDropped,
    ProblemStarted,
    RunFinished,
    SampleEvent,
    SampleFinished,
    StepWritten,
    TrackFinished,
    TrackStarted,
)
from speclrm.runtime.protocols import Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.engine_queue import SURPLUS
from speclrm.runtime.state import SampleState, apply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from speclrm.runtime.engine import Request
    from speclrm.runtime.events import Event, Operation
    from speclrm.runtime.protocols import Strategy
    from speclrm.runtime.scheduling.scheduler import Scheduler

ASKED_FOR = os.environ.get("SPECLRM_PROPERTY_EXAMPLES")
EXAMPLES = int(ASKED_FOR or 30)

by_chance = settings(
    max_examples=EXAMPLES,
    derandomize=ASKED_FOR is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)

ABORT_S = 0.05
"""Within this, an abort reaches its engine."""
STEP_TOKENS = 40
PROMPT_TOKENS = 150
"""More than any prompt of these runs has."""
BUDGET_TOKENS = 200


# ---------------------------------------------------------------------------------------------------------- the workloads


@dataclass(frozen=True)
class Workload:
    """``room``: how many of the longest tracks an engine holds; None where it holds them all. ``talks_on``: whether a long
    write goes on behind its answer.
    """

    name: str
    options: dict[str, Any]
    problems: int
    repeats: int
    concurrency: int
    targets: int
    drafts: int
    in_flight_max: int | None
    max_num_seqs: int
    room: float | None
    acceptance: float
    one_device: bool
    seed: int
    steps: float = 6.0
    talks_on: bool = False

    @property
    def strategy(self) -> Strategy:
        limits = {"max_step_tokens": STEP_TOKENS, "token_budget": BUDGET_TOKENS, "closing_tokens": 8}
        return make_strategy(self.name, **{**limits, **self.options})


@st.composite
def workloads(draw: st.DrawFn, *, room: bool | None = None) -> Workload:
    name = draw(st.sampled_from(["speculative", "speculative", "speculative-methods", "parallel"]))
    options: dict[str, Any] = {"tracks": draw(st.integers(1, 5)), "fast": draw(st.sampled_from([None, 1, 2]))}
    options["min_step_tokens"] = draw(st.sampled_from([0, 16]))
    if name.startswith("speculative"):
        options["speculate"] = draw(st.sampled_from(["always", "auto", "auto", "never"]))
        options["draft_ahead"] = draw(st.sampled_from(["auto", "always", "never"]))
        options["rewrite_ahead"] = draw(st.sampled_from(["auto", "always", "never"]))
        options["scorer"] = draw(st.sampled_from(["judge", "judge", "likelihood"]))
        options |= draw(st.sampled_from([{}, {}, {"gate_sure": -0.1, "gate_doubt": -0.4, "gate_tokens": 8}]))
    tight = draw(st.booleans()) if room is None else not room
    return Workload(
        name,
        options,
        problems=draw(st.integers(1, 3)),
        repeats=draw(st.integers(1, 2)),
        concurrency=draw(st.integers(1, 6)),
        targets=draw(st.integers(1, 3)),
        drafts=draw(st.integers(1, 2)),
        in_flight_max=draw(st.sampled_from([None, None, 1, 2, 3])),
        max_num_seqs=draw(st.sampled_from([1, 2, 4, 64])),
        room=draw(st.sampled_from([1, 1.5, 2, 3])) if tight else None,
        acceptance=draw(st.sampled_from([0.1, 0.5, 0.9])),
        one_device=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
    )


@dataclass
class Ran:
    """What a workload left behind."""

    events: list[Event]
    record: Record
    engines: dict[Role, list[WatchedSimulated]]
    error: BaseException | None = None
    scheduler: Scheduler | None = None
    open_at_end: set[str] = field(default_factory=set[str])

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def every_engine(self) -> list[WatchedSimulated]:
        return [engine for several in self.engines.values() for engine in several]


class TalkingOn(SimulatedWorld):
    """A world whose target does not end a long write with its answer, so that it must be left."""

    def write(self, request: Request) -> Sequence[int]:
        if not request.id.endswith("/write"):
            return super().write(request)
        # No step begins with its first word: an answer that is cut behind it could be either.
        words = self.tokenizer.encode(" yes it is, and that is all that there is to it")
        talk = [*self.tokenizer.vocabulary.blank_line_ids, *words * 20]
        rest = rest_of(talk, request.prompt_ids)
        # One blank line alone may also end a paragraph of the answer's way.
        return rest if len(rest) < len(talk) - 1 else [*super().write(request), *talk]


def simulated(
    work: Workload, kind: type[WatchedSimulated] = WatchedSimulated
) -> tuple[SimulatedWorld, dict[Role, list[WatchedSimulated]]]:
    settings = WorldSettings((work.acceptance,), draft_step=12, target_step=14, steps=work.steps)
    world = (TalkingOn if work.talks_on else SimulatedWorld)(settings, work.seed)
    longest = PROMPT_TOKENS + BUDGET_TOKENS + 2 * STEP_TOKENS
    kv_tokens = 1_000_000 if work.room is None else int(longest * work.room)
    cost = {
        Role.TARGET: EngineCost(0.016, 1e-4, 1e-7, kv_tokens, max_num_seqs=work.max_num_seqs),
        Role.DRAFT: EngineCost(0.004, 1e-5, 1e-8, kv_tokens, max_num_seqs=work.max_num_seqs),
    }
    shared = Device() if work.one_device else None
    roles = {Role.TARGET: work.targets} | ({Role.DRAFT: work.drafts} if work.name.startswith("spec") else {})
    engines = {
        role: [kind(f"{role}-{n}", cost[role], world, world.tokenizer, shared) for n in range(count)]
        for role, count in roles.items()
    }
    return world, engines


async def error_of(call: Awaitable[object]) -> BaseException | None:
    (result,) = await asyncio.gather(call, return_exceptions=True)
    return result if isinstance(result, BaseException) else None


def execute(work: Workload, *, cancel_after_s: float | None = None, fail: dict[int, Exception] | None = None) -> Ran:
    """Runs the workload; ``cancel_after_s``: the caller gives it up then; ``fail``: errors by the number of a request."""
    world, engines = simulated(work)
    collector = Collector()
    failures = dict(fail or {})
    numbers = iter(range(1_000_000))

    async def main(record: Record) -> Ran:
        ran = Ran(collector.events, record, engines)
        for engine in ran.every_engine:
            engine.opened.fails = lambda _: failures.get(next(numbers))
        async with Runtime(parts(engines), in_flight_max=work.in_flight_max) as runtime:
            ran.scheduler = runtime.scheduler
            call = asyncio.create_task(
                runtime.run(
                    world.problems(work.problems),
                    work.strategy,
                    repeats=work.repeats,
                    seed=work.seed,
                    concurrency=work.concurrency,
                    sinks=[collector],
                )
            )
            await asyncio.wait([call], timeout=cancel_after_s)
            given_up_s = now_s()
            call.cancel()
            ran.error = await error_of(call)
            assert now_s() - given_up_s <= ABORT_S
            ran.open_at_end = {name for engine in ran.every_engine for name in engine.opened.open}
            await asyncio.sleep(1.0)  # what an iteration at work still holds is given back at its end
            check_nothing_left(ran)
        for engine in ran.every_engine:
            await engine.aclose()
        return ran

    with watched() as record:
        record.step_tokens = STEP_TOKENS
        return run_virtual(main(record))


# -------------------------------------------------------------------------------------------------------------- the rules


def check_nothing_left(ran: Ran) -> None:
    """No request in an engine, no reservation, nobody in a queue, no problem in the controller's mind."""
    assert not ran.open_at_end
    assert ran.scheduler is not None
    for several in ran.scheduler.stats().values():
        for lane in several:
            assert (lane.in_flight, lane.waiting, lane.engine.running, lane.engine.waiting) == (0, 0, 0, 0)
    assert (ran.scheduler.admission.admitted, ran.scheduler.admission.waiting) == (0, 0)
    if ran.scheduler.controller is not None:
        assert ran.scheduler.controller.problems == 0
    for engine in ran.every_engine:
        assert engine.kv_tokens_used == 0
    assert not any(reservation.admitted for reservation in ran.record.reservations)


def operations(events: Sequence[Event]) -> list[tuple[Event, Operation]]:
    found: list[tuple[Event, Operation]] = []
    for event in events:
        if isinstance(event, OperationDropped):
            found.append((event, event.operation))
        else:
            found.extend((event, operation) for operation in getattr(event, "operations", ()))
    return found


def check_operations(ran: Ran) -> None:
    """Each operation that a lane was asked for is run once at most and reported once.

    A long write is reported by each step that was read from it, and once more if it was left; it is one request, and its
    reports come one behind the other.
    """
    asked = Counter(one.id for one in ran.record.asked)
    began = {one.id for one in ran.record.asked if one.began is not None}
    in_engines = Counter(name for engine in ran.every_engine for name in engine.opened.asked)
    assert max(asked.values(), default=1) == 1
    # What an engine was at work on when it failed is sent to another one.
    failures = sum(isinstance(event, EngineFailed) for event in ran.events)
    assert max(in_engines.values(), default=1) <= 1 + failures
    assert in_engines.keys() <= began  # what is cancelled between its place and its first token never gets there
    reports: dict[str, list[tuple[Event, Operation]]] = defaultdict(list)
    for event, operation in operations(ran.events):
        reports[operation.id].append((event, operation))
    assert reports.keys() == asked.keys()
    for name, several in reports.items():
        first, *rest = [operation for _, operation in several]
        assert (first.prompt_tokens > 0) >= any(operation.output_tokens > 0 for _, operation in several)
        assert (first.prompt_tokens > 0) <= (name in began)
        assert all((operation.prompt_tokens, operation.queue_s) == (0, 0.0) for operation in rest)
        if len(several) > 1:
            assert name.endswith("/write")
            steps = [event.step for event, _ in several if isinstance(event, StepWritten)]
            assert steps == list(range(steps[0], steps[0] + len(steps)))
            assert sum(isinstance(event, OperationDropped) for event, _ in several) + len(steps) == len(several)


def check_closed(ran: Ran) -> None:
    """Every track that began has one end, and the last event says how the run ended."""
    opened = Counter((e.problem, e.repeat, e.track) for e in ran.of(TrackStarted))
    closed = Counter((e.problem, e.repeat, e.track) for e in ran.of(TrackFinished))
    assert opened == closed
    assert max(closed.values(), default=1) == 1
    if ran.events:
        last = ran.events[-1]
        assert isinstance(last, RunFinished)
        cancelled = isinstance(ran.error, asyncio.CancelledError)
        expected = "finished" if ran.error is None else "cancelled" if cancelled else "failed"
        if expected == "cancelled" and last.status == "finished":  # given up while it was closing its sinks
            assert ran.of(ProblemStarted)
            assert len(ran.of(ProblemStarted)) == len(ran.of(SampleFinished))
        else:
            assert last.status == expected


def check_order(ran: Ran, work: Workload) -> None:
    """Never more in flight than the bound, and nobody served before a more urgent one that stood there first."""
    bound = work.in_flight_max or max(1, int(work.max_num_seqs * SURPLUS))
    assert max(ran.record.most_in_flight.values(), default=0) <= bound
    assert ran.record.unfair() == []


def check_said_once(samples: Iterable[SampleState]) -> None:
    """The world's paragraphs on a track are the first, the second and so on, in whatever steps they stand: none is said
    twice, and none is left out.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    for sample in samples:
        for track in sample.tracks.values():
            text = "".join(step.text for step in track.steps if step.origin != "closing")
            numbers = [paragraph.rpartition(" ")[2] for paragraph in text.split("\n\n")[:-1]]
            assert numbers == ["a" + letters[place // 26] + letters[place % 26] for place in range(len(numbers))]


def check_all(ran: Ran, work: Workload) -> None:
    check_operations(ran)
    check_closed(ran)
    check_order(ran, work)
    assert ran.record.over == []
    samples: dict[tuple[str, int], SampleState] = {}
    for event in ran.of(SampleEvent):
        name = event.problem, event.repeat
        samples[name] = apply(samples.get(name) or SampleState(*name), event)
    check_said_once(samples.values())
