"""Several engines of a role behind one lane."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict

import pytest
from support import Collector, make_strategy, parts
from watched import WatchedSimulated

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import EngineDeadError
from speclrm.runtime.events import EngineFailed, OperationDropped, RunFinished, TrackFinished, TrackStarted
from speclrm.runtime.protocols import Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.check import Checker

TARGET = EngineCost(0.016, 1e-4, 1e-7, 20_000)
DRAFT = EngineCost(0.004, 1e-5, 1e-8, 20_000)
PROBLEMS = 8


class Pair:
    """Two simulated targets and as many drafts."""

    def __init__(self, drafts: int = 2, *, kv_tokens: int = 20_000) -> None:
        self.world = SimulatedWorld(WorldSettings((0.7,), draft_step=12, target_step=14, steps=10))
        target = EngineCost(TARGET.w, TARGET.p, TARGET.k, kv_tokens)
        self.targets = [self._engine(f"target-{n}", target) for n in range(2)]
        self.drafts = [self._engine(f"draft-{n}", DRAFT) for n in range(drafts)]
        self.collector = Collector()

    def _engine(self, name: str, cost: EngineCost) -> WatchedSimulated:
        return WatchedSimulated(name, cost, self.world, self.world.tokenizer)

    async def run(self, runtime: Runtime, name: str = "speculative", **options: object) -> None:
        chosen = make_strategy(name, **{"tracks": 3, "token_budget": 400, "max_step_tokens": 64, **options})
        problems = self.world.problems(PROBLEMS)
        await runtime.run(problems, chosen, concurrency=PROBLEMS, sinks=[self.collector])

    def play(self, name: str = "speculative", **options: object) -> None:
        async def main() -> None:
            async with Runtime(parts({Role.TARGET: self.targets, Role.DRAFT: self.drafts})) as runtime:
                await self.run(runtime, name, **options)

        run_virtual(main())


def track_of(operation: str) -> str:
    return operation.rsplit("/", 2)[0]


@pytest.mark.parametrize("name", ["speculative", "parallel"])
def test_a_track_stays_on_the_engine_it_began_on(name: str) -> None:
    pair = Pair()
    pair.play(name)
    for several in (pair.targets, pair.drafts):
        where: dict[str, set[str]] = defaultdict(set)
        for engine in several:
            for operation in engine.opened.asked:
                where[track_of(operation)].add(engine.name)
        assert all(len(engines) == 1 for engines in where.values())
    assert {track_of(operation) for engine in pair.targets for operation in engine.opened.asked} == {
        f"{event.problem}/{event.repeat}/{event.track}" for event in pair.collector.of(TrackStarted)
    }


@pytest.mark.parametrize(("name", "kv_tokens"), [("speculative", 20_000), ("speculative", 2500), ("parallel", 2500)])
def test_the_load_is_even(name: str, kv_tokens: int) -> None:
    """Also where most tracks have to wait for room before they go anywhere."""
    pair = Pair(kv_tokens=kv_tokens)
    pair.play(name)
    tracks = [len({track_of(operation) for operation in engine.opened.asked}) for engine in pair.targets]
    assert sum(tracks) == 3 * PROBLEMS
    assert max(tracks) <= min(tracks) + 4
    computed = [engine.new_tokens for engine in pair.targets]
    assert max(computed) <= 1.3 * min(computed)


def test_two_engines_finish_sooner_than_one() -> None:
    def seconds(pair: Pair) -> float:
        pair.play("speculative", tracks=5)
        return pair.collector.of(RunFinished)[0].seconds

    two, one = Pair(), Pair(drafts=1)
    one.targets = one.targets[:1]
    assert seconds(two) < 0.9 * seconds(one)


@pytest.mark.parametrize("moment_s", [0.1, 0.3, 0.7, 1.5])
@pytest.mark.parametrize("dying", ["target-1", "draft-0"])
def test_the_work_of_one_that_dies_goes_on_at_the_other_and_no_track_fails(moment_s: float, dying: str) -> None:
    pair = Pair()
    engines = [*pair.targets, *pair.drafts]
    checker = Checker()

    async def main() -> None:
        async with Runtime(parts({Role.TARGET: pair.targets, Role.DRAFT: pair.drafts})) as runtime:
            call = asyncio.create_task(pair.run(runtime))
            await asyncio.sleep(moment_s)
            assert not call.done()
            (victim,) = [engine for engine in engines if engine.name == dying]
            await victim.aclose()
            await call
            assert all(not engine.opened.open for engine in engines)
            await asyncio.sleep(0.1)
            for engine in engines:
                if engine is not victim:
                    assert (engine.stats().running, engine.stats().waiting, engine.kv_tokens_used) == (0, 0, 0)
            for several in runtime.scheduler.stats().values():
                assert all((lane.in_flight, lane.waiting) == (0, 0) for lane in several)
            assert (runtime.scheduler.admission.admitted, runtime.scheduler.admission.waiting) == (0, 0)

    run_virtual(main())
    reasons = Counter(event.reason for event in pair.collector.of(TrackFinished))
    assert sum(reasons.values()) == 3 * PROBLEMS == len(pair.collector.of(TrackStarted))
    assert reasons["error"] == 0
    assert pair.collector.of(RunFinished)[-1].status == "finished"
    assert not [event for event in pair.collector.of(OperationDropped) if event.reason == "error"]
    (failure,) = pair.collector.of(EngineFailed)
    assert (failure.engine, failure.role, failure.reason) == (dying, dying.partition("-")[0], "died")
    for line, event in enumerate(pair.collector.events):
        checker.add("trace", line, event)
    assert checker.report().violations == ()


@pytest.mark.parametrize("role", [Role.TARGET, Role.DRAFT])
def test_the_death_of_the_last_one_ends_the_run_and_leaves_no_request_on_the_others(role: Role) -> None:
    pair = Pair()
    several = pair.targets if role is Role.TARGET else pair.drafts

    async def main() -> None:
        async with Runtime(parts({Role.TARGET: pair.targets, Role.DRAFT: pair.drafts})) as runtime:
            call = asyncio.create_task(pair.run(runtime))
            for engine in several:
                await asyncio.sleep(0.3)
                await engine.aclose()
            died_s = now_s()
            with pytest.raises(EngineDeadError):
                await call
            assert now_s() - died_s < 0.05
            for stats in runtime.scheduler.stats().values():
                assert all((lane.in_flight, lane.waiting) == (0, 0) for lane in stats)
            assert (runtime.scheduler.admission.admitted, runtime.scheduler.admission.waiting) == (0, 0)

    run_virtual(main())
    assert pair.collector.of(RunFinished)[-1].status == "failed"
    assert [event.engine for event in pair.collector.of(EngineFailed)] == [engine.name for engine in several]
