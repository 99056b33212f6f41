"""What grows with a run and must not: the cost of a display, of waiting, of tracks and steps; and what holds up the loop.

    python tests/growth.py [display cancel tracks steps solve score callbacks] [--size 1.0]

Seconds are CPU seconds of this process (of this thread, for callbacks), so that other work on the machine counts as little
as may be. Each part prints what it measured at several sizes, which ``--size`` multiplies, and what should hold.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from speclrm import api
from speclrm.app.options import RunOptions
from speclrm.benchmarks.null_engine import EmptyEngine
from speclrm.commands.display import PlainView
from speclrm.commands.monitor import Monitor
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import VirtualTimeLoop
from speclrm.runtime.engine import EngineStats, Request
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.engines.simulated.presets import PRESETS
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.events import StepScored
from speclrm.runtime.gc_tuning import rare_collections
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.admission import Admission
from speclrm.runtime.scheduling.lanes import Lane
from speclrm.runtime.scheduling.requests import RequestState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
    from contextlib import AsyncExitStack

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink

LONG_S = 0.05
"""A callback of the loop that takes longer holds up everything else for too long."""
SHOWN = 10


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """As the command line runs simulations."""
    with rare_collections(), asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def parts(engines: Mapping[Role, Engine]) -> Callable[[AsyncExitStack], Awaitable[Components]]:
    async def open_components(stack: AsyncExitStack) -> Components:
        return Components(engines, ExactEquivalence())

    return open_components


def simulated(**settings: Any) -> tuple[SimulatedWorld, SimulatedEngine]:
    """A world, and a target with room for anything."""
    world = SimulatedWorld(WorldSettings((0.7,), steps_spread=0.0, target_step=10.0, **settings))
    cost = replace(PRESETS["qwq-32b"], kv_tokens=10**7, max_model_len=10**6)
    return world, SimulatedEngine("target", cost, world, world.tokenizer)


def options(samples: int, tracks: int, budget: int, folder: str, concurrency: int = 16) -> RunOptions:
    return RunOptions(
        strategy="speculative",
        target="sim/qwq-32b",
        draft="sim/r1-1.5b",
        dataset=f"sim:a70?size={samples}",
        recipe={"speculate": "always", "tracks": tracks, "token_budget": budget},
        concurrency=concurrency,
        output_dir=Path(folder) / "run",
    )


# ------------------------------------------------------------------------------------------------------------- the parts


class Timed:
    """A sink, and the CPU time that it takes, less what reading the clock takes just then."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.events = 0
        self.spent_s = self.longest_s = 0.0

    def emit(self, event: Event) -> None:
        asked = time.thread_time()
        began = time.thread_time()
        self.sink.emit(event)
        took = time.thread_time() - began
        self.events += 1
        self.spent_s += took - (began - asked)
        self.longest_s = max(self.longest_s, took)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def display(size: float) -> None:
    """The plain display of simulated runs, three short tracks a sample: under 2 % of the run, at any length."""
    for samples in sized(size, 500, 2_000, 20_000):
        with open(os.devnull, "w") as nowhere, tempfile.TemporaryDirectory() as folder:
            monitor = Monitor()
            monitor.plan(samples)
            timed = Timed(PlainView(monitor, Console(file=nowhere, width=120)))
            began = time.process_time()
            run(api.run(options(samples, 3, 100, folder), sinks=[timed]))
            whole = time.process_time() - began
        tell(
            f"display, {samples:,} samples",
            f"{timed.spent_s:.2f} of {whole:.1f} s: {timed.spent_s / whole:.2%}; "
            f"{timed.spent_s / timed.events * 1e6:.1f} us an event, longest {timed.longest_s * 1e3:.1f} ms",
        )


def cancel(size: float) -> None:
    """Requests that wait in a lane, and tracks that wait for room, all given up at once: with 8,000, no turn of the loop
    takes 50 ms. Beside it what asyncio takes to cancel as many tasks that wait for nothing.
    """
    for count in sized(size, 1_000, 8_000):
        bare, _ = run(cancelled(count, lambda number: forever()))
        for what, make in (("in a lane", in_lane), ("for room", for_reservation)):
            whole, longest = run(cancelled(count, make()))
            tell(
                f"cancel {count:,} that wait {what}",
                f"longest turn {longest * 1e3:.0f} ms; all {whole * 1e3:.0f} ms, of them {bare * 1e3:.0f} asyncio's",
            )


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def in_lane() -> Callable[[int], Coroutine[Any, Any, Any]]:
    lane = Lane(Role.TARGET, ScriptedEngine(lambda request, prompt: Reply("x", wait_s=1e9)), in_flight_max=1)
    return lambda number: lane.run(RequestState(Request(str(number), [65], 5, priority=number % 7), "scripted"))


class Small(ScriptedEngine):
    """Room for one."""

    def stats(self) -> EngineStats:
        return replace(super().stats(), kv_tokens=1_000)


def for_reservation() -> Callable[[int], Coroutine[Any, Any, Any]]:
    admission = Admission({Role.TARGET: Lane(Role.TARGET, Small(lambda request, prompt: Reply()))})

    async def admit(number: int) -> None:
        reservation = admission.claim(number % 7, {Role.TARGET: 800})
        try:
            await admission.admit(reservation)
            await forever()
        finally:
            admission.leave(reservation)

    return admit


async def cancelled(count: int, make: Callable[[int], Coroutine[Any, Any, Any]]) -> tuple[float, float]:
    """CPU seconds that it takes to cancel all but the first, and the longest turn of the loop meanwhile."""
    tasks = [asyncio.create_task(make(number)) for number in range(count + 1)]
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    gc.disable()
    turns = [time.process_time()]
    ticker = asyncio.create_task(tick(turns))
    for task in tasks[1:]:
        task.cancel()
    while not all(task.done() for task in tasks[1:]):  # noqa: ASYNC110  # its turns are what is measured
        await asyncio.sleep(0)
    took = time.process_time() - turns[0]
    gc.enable()
    ticker.cancel()
    tasks[0].cancel()
    await asyncio.gather(*tasks, ticker, return_exceptions=True)
    return took, max(after - before for before, after in pairwise(turns))


async def tick(turns: list[float]) -> None:
    while True:
        turns.append(time.process_time())
        await asyncio.sleep(0)


def tracks(size: float) -> None:
    """Of one sample, three written steps each: a track costs the same in any number of them. An answer is compared with each
    other answer that there is, so the second rows, with hundreds of different ones, still grow.
    """
    for name, settings in (
        ("answers right or the same wrong one", {"same_mistake": 1.0}),
        ("many different answers", {}),
    ):
        for count in sized(size, 200, 1_600):
            world, engine = simulated(steps=3.0, **settings)
            took, classes = run(one_sample(world, engine, "parallel", count))
            tell(f"{count:,} tracks, {name}", f"{took / count * 1e3:.2f} ms a track ({classes} different)")


def steps(size: float) -> None:
    """Of one track, written by the target in one request: a step costs the same after any number of them."""
    for count in sized(size, 200, 800, 3_200):
        world, engine = simulated(steps=float(count))
        took, _ = run(one_sample(world, engine, "baseline", 1))
        tell(f"{count:,} steps of a track", f"{took / count * 1e3:.3f} ms a step")


async def one_sample(world: SimulatedWorld, engine: Engine, name: str, count: int) -> tuple[float, int]:
    strategy = api.strategy(name, tracks=count, token_budget=500_000)
    async with Runtime(parts({Role.TARGET: engine})) as runtime:
        began = time.process_time()
        state = await runtime.solve(world.problems(1)[0], strategy)
        return time.process_time() - began, len(state.classes)


def solve(size: float) -> None:
    """A call of ``solve`` for one step on engines that answer at once."""
    calls = sized(size, 300)[0]

    async def main() -> float:
        strategy = api.strategy(
            "speculative", speculate="always", tracks=1, plan="plain", step_limit=1, closing=False, token_budget=10**6
        )
        async with Runtime(parts({role: EmptyEngine(role.value) for role in Role})) as runtime:
            await runtime.solve(Problem("p", "x" * 200), strategy)
            began = time.process_time()
            for _ in range(calls):
                await runtime.solve(Problem("p", "x" * 200), strategy)
            return (time.process_time() - began) / calls

    tell("solve", f"{run(main()) * 1e3:.2f} ms a call")


@dataclass
class Waits:
    """A sink that keeps how long each score waited for a place."""

    seconds: list[float] = field(default_factory=list[float])

    def emit(self, event: Event) -> None:
        if isinstance(event, StepScored):
            self.seconds.extend(operation.queue_s for operation in event.operations)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def score(size: float) -> None:
    """One speculative caller beside eight writes of 2,000 steps, on a target of four sequences and on one of one: a score
    waits at most for one step of the writers. Seconds are simulated.
    """
    for places in (4, 1):
        world = SimulatedWorld(WorldSettings((0.7,), steps=float(sized(size, 2_000)[0]), steps_spread=0.0))
        cost = replace(PRESETS["qwq-32b"], max_num_seqs=places, max_model_len=10**6)
        engines = {
            Role.TARGET: SimulatedEngine("target", cost, world, world.tokenizer),
            Role.DRAFT: SimulatedEngine("draft", PRESETS["r1-1.5b"], world, world.tokenizer),
        }
        waits = run(beside_writers(world, engines))
        longest = 35 * 8 * cost.w  # a step of the writers, now and then a long one: lengths are exponential
        tell(
            f"scores beside writes, {places} sequences",
            f"the first waits {waits[0]:.1f} s, the longest {max(waits):.1f} s, on average {sum(waits) / len(waits):.2f} s; "
            f"a long step of the writers takes {longest:.1f} s",
        )


async def beside_writers(world: SimulatedWorld, engines: Mapping[Role, Engine]) -> list[float]:
    waits = Waits()
    writer = api.strategy("baseline", token_budget=30_000)
    speculative = api.strategy("speculative", speculate="always", tracks=1, token_budget=1_000)
    *others, last = world.problems(9)
    async with Runtime(parts(engines)) as runtime:
        writers = [asyncio.create_task(runtime.solve(problem, writer)) for problem in others]
        await asyncio.sleep(1)
        await runtime.run([last], speculative, sinks=[waits])
        for task in writers:
            task.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    return waits.seconds


@dataclass
class Callbacks:
    """The loop's callbacks, of which those over ``LONG_S`` are kept with what they are, and how long the garbage collector
    was at work in them.
    """

    count: int = 0
    longest_s: float = 0.0
    long: list[tuple[float, float, str]] = field(default_factory=list[tuple[float, float, str]])
    collected_s: float = 0.0


@contextmanager
def watched() -> Generator[Callbacks, None, None]:
    found = Callbacks()
    plain = asyncio.Handle._run  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
    collecting = 0.0

    def collect(phase: str, info: dict[str, int]) -> None:
        nonlocal collecting
        if phase == "start":
            collecting = time.thread_time()
        else:
            found.collected_s += time.thread_time() - collecting

    def timed(handle: Any) -> None:
        callback = handle._callback
        collected, began = found.collected_s, time.thread_time()
        plain(handle)
        took = time.thread_time() - began
        found.count += 1
        found.longest_s = max(found.longest_s, took)
        if took > LONG_S:
            task: Any = getattr(callback, "__self__", None)
            name = task.get_name() if isinstance(task, asyncio.Task) else repr(callback)
            found.long.append((took, found.collected_s - collected, name))

    asyncio.Handle._run = timed  # type: ignore[method-assign]
    gc.callbacks.append(collect)
    try:
        yield found
    finally:
        gc.callbacks.remove(collect)
        asyncio.Handle._run = plain  # type: ignore[method-assign]


def callbacks(size: float) -> None:
    """Of a run of 10,000 tracks, 2,000 samples at once: none takes over 50 ms."""
    samples = sized(size, 2_000)[0]
    with tempfile.TemporaryDirectory() as folder, watched() as found:
        began = time.process_time()
        run(api.run(options(samples, 5, 60, folder, concurrency=samples)))
        whole = time.process_time() - began
    tell(
        f"callbacks, {5 * samples:,} tracks",
        f"{len(found.long)} of {found.count:,} over 50 ms, longest {found.longest_s * 1e3:.0f} ms; garbage collection "
        f"{found.collected_s:.2f} of {whole:.1f} s",
    )
    for took, collected, name in sorted(found.long, reverse=True)[:SHOWN]:
        print(f"    {took * 1e3:.0f} ms ({collected * 1e3:.0f} collecting): {name}")


# ----------------------------------------------------------------------------------------------------------------- around


def sized(size: float, *numbers: int) -> list[int]:
    return [max(1, int(number * size)) for number in numbers]


def tell(what: str, found: str) -> None:
    print(f"{what:54} {found}", flush=True)


PARTS = (display, cancel, tracks, steps, solve, score, callbacks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = {part.__name__: part for part in PARTS}
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(named)}; all of them unless told")
    parser.add_argument("--size", type=float, default=1.0, help="of all numbers; 0.1 is a quick look")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - named.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for name in chosen.parts or named:
        print(f"# {' '.join((named[name].__doc__ or '').split())}")
        named[name](chosen.size)


if __name__ == "__main__":
    main()
