"""How far apart the draft's iterations begin on a device that both engines share, as a function, and what comes of it."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from speclrm.app.resolve import make_strategy
from speclrm.app.trace_check import check
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engine import EngineCosts, Request
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.engines.simulated.presets import simulated_engines, slices
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.events import DraftPaced, EngineCounters, EnginesObserved, ProblemStarted, RunFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.breakeven import StepShape
from speclrm.runtime.scheduling.pacing import FREE, Pacer, Snapshot, pace
from speclrm.runtime.scheduling.scheduler import Scheduler
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from speclrm.runtime.events import Event
    from speclrm.runtime.scheduling.controller import Controller

H200 = EngineCosts(18.4e-3, 89e-6, 1.4e-7, 1 / 0.45 - 1), EngineCosts(2.4e-3, 26e-6, 0.0, 1 / 0.55 - 1)
SHAPE = StepShape(drafted=32, lost=32, written=32, read_score=48)
NAMES = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}


def snapshot(tracks: float = 20, acceptance: float = 0.72, shape: StepShape = SHAPE) -> Snapshot:
    return Snapshot(tracks, acceptance, shape, *H200)


@pytest.mark.parametrize(("acceptance", "iterations"), [(0.46, 4), (0.72, 5), (0.86, 7), (0.95, 10)])
def test_the_more_is_kept_the_more_the_draft_may_iterate(acceptance: float, iterations: int) -> None:
    assert pace(snapshot(acceptance=acceptance)).iterations == iterations


@pytest.mark.parametrize("tracks", [2, 5, 20, 110])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.72, 0.95, 1.0])
@pytest.mark.parametrize("length", [4.0, 32.0, 400.0])
def test_no_wait_is_longer_than_an_iteration_of_the_target(tracks: float, acceptance: float, length: float) -> None:
    found = pace(snapshot(tracks, acceptance, replace(SHAPE, drafted=length, lost=length, written=length)))
    assert 0 < found.interval_s <= H200[0].w or found == FREE


def test_a_single_track_and_a_draft_that_is_slow_by_itself_go_as_they_can() -> None:
    assert pace(snapshot(tracks=1)) == FREE
    slow = replace(snapshot(), draft=replace(H200[1], w=H200[0].w / 3), acceptance=0.9)
    assert pace(slow) == FREE


def test_engines_are_held_back_only_while_the_target_works() -> None:
    told: list[float] = []

    class Engine:
        def pace(self, interval_s: float) -> None:
            told.append(interval_s)

    pacer = Pacer([Engine()])
    pacer.target_works(True)
    pacer.set(0.007)
    pacer.target_works(False)
    pacer.target_works(True)
    pacer.set(0.0)
    pacer.target_works(False)
    assert told == [0.007, 0.0, 0.007, 0.0]


def test_a_run_that_goes_on_goes_on_at_its_pace_and_one_that_begins_anew_without() -> None:
    told: list[float] = []

    class Paced(ScriptedEngine):
        def pace(self, interval_s: float) -> None:
            told.append(interval_s)

    async def main() -> None:
        engines = {role: Paced(by_step(["a\n\n"])) for role in Role}
        scheduler = Scheduler(engines, slices=True)
        assert scheduler.controller is not None
        scheduler.controller.recall([DraftPaced(seq=1, t=3.0, iterations=5, interval_s=0.007, reason="")])
        scheduler.overlap.change(Role.TARGET, 1)
        scheduler.forget()
        assert told == [0.0, 0.007, 0.0]
        assert not Scheduler({Role.TARGET: engines[Role.TARGET]}, slices=True).controller

    run_virtual(main())


def test_a_simulated_engine_keeps_the_interval_and_loses_its_wait_at_once() -> None:
    world = SimulatedWorld(WorldSettings((0.8,)), 0)
    ends: list[float] = []

    async def main() -> None:
        engine = simulated_engines({Role.DRAFT: NAMES[Role.DRAFT]}, world, shared_device=False)[Role.DRAFT]
        prompt = tuple(engine.tokenizer.encode("one two three"))
        engine.pace(0.5)

        async def ask(tokens: int) -> None:
            async for _ in engine.stream(Request(f"p/0/t/{tokens}/draft", prompt, tokens)):
                pass
            ends.append(now_s())

        await ask(1)
        first = asyncio.create_task(ask(4))
        await asyncio.sleep(1.2)
        engine.pace(0.0)
        await first
        await engine.aclose()

    run_virtual(main())
    assert ends[0] == pytest.approx(0.0123, abs=1e-3)
    assert ends[0] + 1.2 < ends[1] < ends[0] + 1.3


def run(folder: Path | None, *, shared: bool, paced: bool, mode: str = "always", budget: int = 256) -> list[Event]:
    """Events of four problems with five tracks each."""
    world = SimulatedWorld(WorldSettings((0.8,), steps=200, judge_error=0.0), 0)
    options = {"tracks": 5, "plan": "plain", "token_budget": budget, "closing": False}
    chosen = make_strategy("speculative", judge="inline", speculate=mode, **options)
    events: list[Event] = []

    class Sink:
        def emit(self, event: Event) -> None:
            events.append(event)

        async def room(self) -> None: ...

        async def aclose(self) -> None: ...

    async def main() -> None:
        engines = simulated_engines(NAMES, world, shared_device=shared)

        async def parts(_: AsyncExitStack) -> Components:
            return Components(dict(engines), ExactEquivalence(), slices=paced and slices(engines))

        async with Runtime(parts) as runtime:
            await runtime.run(world.problems(4), chosen, directory=folder, required=[Sink()])
        await asyncio.gather(*(engine.aclose() for engine in engines.values()))

    run_virtual(main())
    return events


def seconds(events: list[Event]) -> float:
    return next(event.seconds for event in events if isinstance(event, RunFinished))


def test_on_time_slices_a_paced_draft_iterates_less_and_the_run_is_shorter() -> None:
    free, paced = (run(None, shared=True, paced=paced) for paced in (False, True))
    assert seconds(paced) < 0.92 * seconds(free)

    def iterations(events: list[Event]) -> float:
        engines = next(event.engines for event in events if isinstance(event, RunFinished))
        return engines["draft"].iterations / engines["target"].iterations

    assert iterations(paced) < 0.75 * iterations(free)


def test_where_devices_differ_nothing_is_held_back_and_nothing_is_said() -> None:
    events = run(None, shared=False, paced=True)
    assert not any(isinstance(event, DraftPaced) for event in events)
    assert seconds(events) == seconds(run(None, shared=False, paced=False))


@pytest.mark.parametrize("mode", ["always", "auto"])
def test_a_pace_is_an_event_when_it_changes_and_the_trace_stays_right(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    events = run(folder, shared=True, paced=True, mode=mode)
    changes = [event for event in events if isinstance(event, DraftPaced)]
    if mode == "always":
        assert changes
    assert all(one.iterations != other.iterations for one, other in itertools.pairwise(changes))
    assert all(other.t - one.t >= 1.0 for one, other in itertools.pairwise(changes))
    assert [event for event in read_trace(folder / "trace.jsonl") if isinstance(event, DraftPaced)] == changes
    report = check(folder)
    assert not report.violations


WAITING = SimulatedWorld(WorldSettings((0.8,), steps=20), 0).problems(9)
SHORT = make_strategy("speculative", tracks=1, plan="plain", token_budget=128, closing=False)


@asynccontextmanager
async def opened() -> AsyncGenerator[tuple[Runtime, Controller], None]:
    """A runtime on simulated engines that share a device."""
    engines = simulated_engines(NAMES, SimulatedWorld(WorldSettings((0.8,), steps=20), 0), shared_device=True)

    async def parts(_: AsyncExitStack) -> Components:
        return Components(dict(engines), ExactEquivalence())

    async with Runtime(parts) as runtime:
        assert runtime.scheduler.controller is not None
        yield runtime, runtime.scheduler.controller
    await asyncio.gather(*(engine.aclose() for engine in engines.values()))


def test_the_controller_knows_how_many_problems_wait_for_a_place() -> None:
    queued: list[int] = []

    async def main() -> None:
        async with opened() as (runtime, controller):

            class Sink:
                def emit(self, event: Event) -> None:
                    if isinstance(event, ProblemStarted):
                        queued.append(controller.calls.queued)

                async def room(self) -> None: ...

                async def aclose(self) -> None: ...

            await runtime.run(WAITING[:5], SHORT, concurrency=2, required=[Sink()])

    run_virtual(main())
    assert queued[-3:] == [2, 1, 0]
    assert all(3 <= count <= 4 for count in queued[:2])


def test_problems_wait_for_a_place_of_any_call_and_none_of_a_call_that_ended() -> None:
    async def main() -> tuple[int, int, int]:
        async with opened() as (runtime, controller):
            many = asyncio.create_task(runtime.run(WAITING[:8], SHORT, concurrency=1))
            await asyncio.sleep(0.001)
            before = controller.calls.queued
            await runtime.solve(WAITING[8], SHORT)
            beside = controller.calls.queued
            many.cancel()
            await asyncio.gather(many, return_exceptions=True)
            return before, beside, controller.calls.queued

    before, beside, after = run_virtual(main())
    assert before == 7
    assert 0 < beside <= 7
    assert after == 0


def test_nothing_is_learned_of_what_iterations_cost_while_the_draft_is_held_back() -> None:
    """It counts as busy then, since requests are in it, and would be taken for slow."""
    engines = simulated_engines(NAMES, SimulatedWorld(WorldSettings((0.8,), steps=20), 0), shared_device=True)
    controller = Scheduler(engines, slices=True).controller
    assert controller is not None
    fits = controller._fits  # pyright: ignore[reportPrivateUsage]
    known = {role: fit.costs for role, fit in fits.items()}

    def look(number: int) -> EnginesObserved:
        counters = EngineCounters(number * 1.0, number * 100, number * 500, number * 400)
        return EnginesObserved(
            engines={role.value: counters for role in Role}, both_s=number * 1.0, context=500.0, waiting=0
        )

    controller.see(DraftPaced(iterations=5, interval_s=0.006, reason="x"), 0.0)
    controller.see(look(1), 1.0)
    assert {role: fit.costs for role, fit in fits.items()} == known
    controller.see(DraftPaced(iterations=0, interval_s=0.0, reason="x"), 1.0)
    controller.see(look(2), 2.0)
    assert all(fit.costs != known[role] for role, fit in fits.items())
