"""Engines of our own that fail are started anew, and no track notices more than a pause. All under virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from support import Collector, ExactAnswers, make_strategy
from watched import WatchedSimulated

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engine import Request
from speclrm.runtime.engines.restarting import RestartingEngine, restarting
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import EngineDeadError, EngineError
from speclrm.runtime.events import (
    EngineFailed,
    EngineRecovered,
    OperationDropped,
    OperationStuck,
    RunFinished,
    TrackFinished,
)
from speclrm.runtime.ledger import Ledger
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.health import RESTART_FIRST_S, RESTART_MAX_S
from speclrm.runtime.scheduling.lanes import Lane
from speclrm.runtime.scheduling.requests import RequestState
from speclrm.runtime.trace.check import Checker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AsyncExitStack

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.errors import FailureReason
    from speclrm.runtime.events import Event

COSTS = {Role.TARGET: EngineCost(0.016, 1e-4, 1e-7, 20_000), Role.DRAFT: EngineCost(0.004, 1e-5, 1e-8, 20_000)}
PROBLEMS = 6
LOAD_S = 20.0
STALL_S = 30.0


class Factory:
    """Starts simulated engines anew: takes ``LOAD_S``, and fails as often as ``fails`` says."""

    def __init__(self, first: WatchedSimulated) -> None:
        self.first = first
        self.fails: list[EngineError] = []
        self.starts: list[tuple[float, int]] = []
        self.made: list[WatchedSimulated] = [first]
        self.dead_on_arrival = False

    async def start(self, old: Engine, times: int) -> tuple[Engine, dict[str, Any]]:
        assert not old.stats().alive  # the old one is gone before
        self.starts.append((now_s(), times))
        await asyncio.sleep(LOAD_S)
        if self.fails:
            raise self.fails.pop(0)
        cost = EngineCost(self.first.cost.w, self.first.cost.p, self.first.cost.k, 20_000 >> times, 256 >> times)
        engine = self.first.anew(cost)
        assert isinstance(engine, WatchedSimulated)
        self.made.append(engine)
        if self.dead_on_arrival:
            await engine.aclose()
        return engine, {"kv_tokens": cost.kv_tokens} if times else {}


class Bench:
    """Engines of both roles, each behind a factory, and what a run on them published."""

    def __init__(self, targets: int = 1, *, restarts: int = 3) -> None:
        self.world = SimulatedWorld(WorldSettings((0.7,), draft_step=12, target_step=14, steps=10))
        names = {Role.TARGET: [f"target-{n}" for n in range(targets)], Role.DRAFT: ["draft-0"]}
        self.factories: dict[str, Factory] = {}
        self.engines: dict[Role, list[Engine]] = {}
        for role, several in names.items():
            for name in several:
                engine = WatchedSimulated(name, COSTS[role], self.world, self.world.tokenizer)
                factory = self.factories[name] = Factory(engine)
                self.engines.setdefault(role, []).append(restarting(engine, factory.start, restarts))
        self.collector = Collector()
        self.error: object = None

    def of(self, name: str) -> RestartingEngine:
        (found,) = [one for several in self.engines.values() for one in several if one.name == name]
        assert isinstance(found, RestartingEngine)
        return found

    def play(self, happens: Callable[[Runtime, asyncio.Task[Any]], Awaitable[None]]) -> Bench:
        async def open_components(stack: AsyncExitStack) -> Components:
            return Components(self.engines, ExactAnswers(), stall_limit_s=STALL_S)

        async def main() -> None:
            async with Runtime(open_components) as runtime:
                chosen = make_strategy("speculative", tracks=3, token_budget=400, max_step_tokens=64)
                problems = self.world.problems(PROBLEMS)
                call = asyncio.create_task(runtime.run(problems, chosen, concurrency=PROBLEMS, sinks=[self.collector]))
                await happens(runtime, call)
                (self.error,) = await asyncio.gather(call, return_exceptions=True)
                for stats in runtime.scheduler.stats().values():
                    assert all((lane.in_flight, lane.waiting) == (0, 0) for lane in stats)
                assert (runtime.scheduler.admission.admitted, runtime.scheduler.admission.waiting) == (0, 0)
                made = [engine for factory in self.factories.values() for engine in factory.made]
                assert all(not engine.opened.open for engine in made)

        run_virtual(main())
        checker = Checker()
        for line, event in enumerate(self.collector.events):
            checker.add("trace", line, event)
        assert checker.report().violations == ()
        return self

    def well(self) -> Bench:
        """All samples are there and no track failed."""
        assert not isinstance(self.error, BaseException), self.error
        reasons = Counter(event.reason for event in self.collector.of(TrackFinished))
        assert sum(reasons.values()) == 3 * PROBLEMS
        assert reasons["error"] == 0
        assert self.collector.of(RunFinished)[-1].status == "finished"
        assert not [event for event in self.collector.of(OperationDropped) if event.reason == "error"]
        return self


def asked(factory: Factory) -> list[str]:
    return [operation for engine in factory.made for operation in engine.opened.asked]


@pytest.mark.parametrize("moment_s", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("dying", ["target-0", "draft-0"])
def test_the_only_engine_of_a_role_dies_and_the_run_goes_on_on_the_one_that_is_started_anew(
    dying: str, moment_s: float
) -> None:
    bench = Bench()

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(moment_s)
        await bench.of(dying).engine.aclose()

    bench.play(happens).well()
    (failed,), (back,) = bench.collector.of(EngineFailed), bench.collector.of(EngineRecovered)
    assert (failed.engine, failed.reason) == (back.engine, "died") == (dying, "died")
    assert back.down_s == pytest.approx(RESTART_FIRST_S + LOAD_S, abs=0.1)
    assert not back.changed
    counts = Counter(asked(bench.factories[dying]))
    assert max(counts.values()) == 2  # what was lost came again under its own id
    ledger = Ledger()
    for event in bench.collector.events:
        ledger.add(event)
    assert ledger.engines()[failed.role or ""].down_s == pytest.approx(back.down_s, abs=0.05)


def test_the_same_seed_brings_the_same_texts_with_and_without_a_death() -> None:
    def texts(moment_s: float | None) -> dict[tuple[str, str], object]:
        bench = Bench()

        async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
            if moment_s is not None:
                await asyncio.sleep(moment_s)
                await bench.of("draft-0").engine.aclose()

        bench.play(happens).well()
        return {(event.problem, event.track): event.answer for event in bench.collector.of(TrackFinished)}

    assert texts(0.3) == texts(None)


def test_while_one_of_two_is_started_anew_the_other_has_all_the_work_and_its_tracks_return() -> None:
    bench = Bench(2)
    counts: dict[str, int] = {}

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.of("target-1").engine.aclose()
        await asyncio.sleep(0.1)
        counts["at once"] = len(bench.factories["target-0"].first.opened.asked)
        await asyncio.sleep(0.4)
        counts["later"] = len(bench.factories["target-0"].first.opened.asked)

    bench.play(happens).well()
    assert counts["later"] > counts["at once"]


def test_an_engine_that_hangs_is_ended_and_started_anew_and_all_its_requests_come_again() -> None:
    bench = Bench()

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        engine = bench.factories["target-0"].first
        at_work: Any = engine._pass  # pyright: ignore[reportPrivateUsage]
        at_work.timer.cancel()  # no iteration ends any more

    bench.play(happens).well()
    (failed,), (back,) = bench.collector.of(EngineFailed), bench.collector.of(EngineRecovered)
    assert (failed.reason, failed.engine) == ("hung", "target-0")
    assert failed.requests > 1
    assert back.down_s == pytest.approx(RESTART_FIRST_S + LOAD_S, abs=0.1)
    (stuck,) = bench.collector.of(OperationStuck)
    assert (stuck.engine, stuck.role, stuck.limit_s) == ("target-0", "target", STALL_S)
    assert STALL_S / 4 <= stuck.seconds <= STALL_S * 0.4
    assert stuck.others == failed.requests - 1
    assert stuck.operation in bench.factories["target-0"].first.opened.asked
    assert stuck.t < failed.t


def test_starts_that_fail_are_repeated_with_waits_that_double_until_the_limit_and_the_run_ends_resumable() -> None:
    bench = Bench(restarts=5)
    factory = bench.factories["target-0"]
    factory.fails = [EngineError("It does not start.") for _ in range(9)]

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.of("target-0").engine.aclose()

    bench.play(happens)
    assert isinstance(bench.error, EngineDeadError)
    for words in ("It does not start", "5 times in a row", "--engine-restarts", "speclrm resume"):
        assert words in str(bench.error)
    assert bench.collector.of(RunFinished)[-1].status == "failed"
    begun = [at for at, _ in factory.starts]
    waits = [later - earlier - LOAD_S for earlier, later in pairwise(begun)]
    assert waits == pytest.approx([RESTART_FIRST_S * 2**n for n in range(1, 5)])
    assert len(bench.collector.of(EngineFailed)) == 1


def test_a_start_that_fails_in_an_unforeseen_way_is_a_failed_start_and_nobody_waits_for_ever() -> None:
    bench = Bench(restarts=2)
    fails: list[Any] = [OSError("no file"), ZeroDivisionError("oh")]
    bench.factories["target-0"].fails = fails

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.of("target-0").engine.aclose()

    bench.play(happens)
    assert isinstance(bench.error, EngineDeadError)
    assert "ZeroDivisionError: oh" in str(bench.error)


def test_the_wait_has_a_limit() -> None:
    bench = Bench(restarts=12)
    factory = bench.factories["target-0"]
    factory.fails = [EngineError("It does not start.") for _ in range(10)]

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.of("target-0").engine.aclose()

    bench.play(happens).well()
    begun = [at for at, _ in factory.starts]
    assert begun[-1] - begun[-2] - LOAD_S == pytest.approx(RESTART_MAX_S)


def test_an_engine_that_starts_and_dies_before_its_first_token_is_no_progress() -> None:
    bench = Bench(restarts=2)
    bench.factories["draft-0"].dead_on_arrival = True

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.of("draft-0").engine.aclose()

    bench.play(happens)
    assert isinstance(bench.error, EngineDeadError)
    assert len(bench.factories["draft-0"].starts) == 2
    assert len(bench.collector.of(EngineFailed)) == 3


def test_a_token_between_two_deaths_is_progress() -> None:
    bench = Bench(restarts=1)

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        for _ in range(3):
            await asyncio.sleep(0.2)
            await bench.of("target-0").engine.aclose()
            await asyncio.sleep(RESTART_FIRST_S + LOAD_S)

    bench.play(happens).well()
    assert len(bench.factories["target-0"].starts) == 3


def test_one_that_is_given_up_leaves_its_work_to_the_other() -> None:
    bench = Bench(2, restarts=1)
    bench.factories["target-1"].fails = [EngineError("no")]

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.of("target-1").engine.aclose()

    bench.play(happens).well()
    assert not bench.collector.of(EngineRecovered)


def test_without_restarts_a_death_ends_the_run_at_once() -> None:
    bench = Bench(restarts=0)

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.factories["target-0"].first.aclose()

    bench.play(happens)
    assert isinstance(bench.error, EngineDeadError)
    assert bench.collector.of(RunFinished)[-1].seconds < 1


@pytest.mark.parametrize("reason", ["out_of_memory", "died"])
def test_after_its_memory_ran_out_an_engine_is_started_smaller_and_the_lane_and_its_room_follow(
    reason: FailureReason,
) -> None:
    bench = Bench()
    out = EngineDeadError("Engine target-0 is gone: its memory ran out.")
    out.reason = reason
    caps: list[int] = []
    rooms: list[float] = []

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        queue = runtime.scheduler.lanes[Role.TARGET].queues[0]
        queue.fail(out)
        await asyncio.sleep(RESTART_FIRST_S + LOAD_S + 0.01)
        caps.append(queue.stats().in_flight_max)
        room = runtime.scheduler.admission._rooms[Role.TARGET, 0]  # pyright: ignore[reportPrivateUsage]
        rooms.append(room.capacity)

    bench.play(happens).well()
    (failed,), (back,) = bench.collector.of(EngineFailed), bench.collector.of(EngineRecovered)
    assert failed.reason == reason
    smaller = reason == "out_of_memory"
    assert back.changed == ({"kv_tokens": 10_000} if smaller else {})
    assert bench.factories["target-0"].starts[0][1] == int(smaller)
    assert caps[0] <= (160 if smaller else 320)
    assert rooms[0] == pytest.approx((10_000 if smaller else 20_000) * 0.95)


def test_counters_go_on_from_one_engine_to_the_next() -> None:
    bench = Bench()
    seen: list[int] = []

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        engine = bench.of("target-0")
        for _ in range(60):
            await asyncio.sleep(0.5)
            if len(seen) == 1:
                await engine.engine.aclose()
            seen.append(engine.stats().progress)

    bench.play(happens).well()
    assert seen == sorted(seen)
    report = bench.collector.of(RunFinished)[-1].engines["target"]
    assert report.output_tokens == sum(engine.output_tokens for engine in bench.factories["target-0"].made)


def test_a_run_that_is_cancelled_while_an_engine_starts_leaves_nothing() -> None:
    bench = Bench()

    async def happens(runtime: Runtime, call: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.3)
        await bench.of("target-0").engine.aclose()
        await asyncio.sleep(LOAD_S / 2)
        call.cancel()

    bench.play(happens)
    assert isinstance(bench.error, asyncio.CancelledError)
    assert len(bench.factories["target-0"].made) == 1


def told_of(script: Callable[[Request, str], Reply], names: Sequence[str], *, until_s: float) -> list[OperationStuck]:
    """What the watchdog of a lane tells of these requests side by side."""

    async def main() -> list[OperationStuck]:
        told: list[Event] = []
        lane = Lane(Role.TARGET, ScriptedEngine(script), stall_limit_s=100.0, tell=told.append)
        tasks = [asyncio.create_task(watch) for watch in lane.watches()]
        for name in names:
            one = RequestState(Request(id=name, prompt_ids=[65], max_tokens=200), "scripted")
            tasks.append(asyncio.create_task(lane.run(one)))
        await asyncio.sleep(until_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [event for event in told if isinstance(event, OperationStuck)]

    return run_virtual(main())


def test_one_that_brings_nothing_among_others_that_do_is_told_of_once() -> None:
    def script(request: Request, prompt: str) -> Reply:
        return Reply("x", wait_s=1e9) if request.id == "p/0/1/2/draft" else Reply("y" * 100, token_s=1.0)

    (stuck,) = told_of(script, ["p/0/0/2/draft", "p/0/1/2/draft"], until_s=95)
    assert (stuck.operation, stuck.engine, stuck.others) == ("p/0/1/2/draft", "scripted", 0)
    assert 25 <= stuck.seconds <= 35


def test_one_that_goes_on_and_stops_again_is_told_of_again() -> None:
    """Pieces of eight tokens: the first comes after 40 s, the second 40 s later."""
    told = told_of(lambda request, prompt: Reply("x" * 16, token_s=5.0), ["a"], until_s=300)
    assert [event.operation for event in told] == ["a", "a"]


def test_an_engine_that_brings_pieces_in_time_is_not_told_of() -> None:
    assert told_of(lambda request, prompt: Reply("x" * 160, token_s=2.0), ["a", "b"], until_s=300) == []
