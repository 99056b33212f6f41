"""Measures how well a run knows how long it will still take, on simulated and on recorded runs.

    python benchmarks/studies/time_left.py [--seeds 4] [--only NAME] [RUN_DIR ...]

Messages are those of the plain display: one at the end of each sample, and one after each ten seconds without. Counted are
those from a fifth of the run on, without the last one. A message of one number is right if it is within 30 % of the truth, or
within the second to which it is rounded; one of a range if the truth is in it. ``number``: how many give one number;
``width``: the median of the ranges' ends, divided; then what the middle is of the truth. Simulated runs are virtual, so
their lines are the same on every machine. ``none``: messages that say "estimating", since no track has ended. ``RUN_DIR``:
folders of finished runs, real ones for instance.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from speclrm.app.resolve import make_strategy
from speclrm.app.time_left import TimeLeft
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.simulated.presets import simulated_engines
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld, WorldSettings
from speclrm.runtime.events import RunFinished, SampleFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.reader import read_run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AsyncExitStack

    from speclrm.runtime.events import Event

NAMES = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
INTERVAL_S = 10.0
FROM = 0.2
WITHIN = 0.3
ROUNDED_S = 1.0
GOAL = 0.9
STEPS = 24.0
"""Of a track, on average: about 840 tokens."""


@dataclass(frozen=True)
class Case:
    """``spread``: of the number of steps, as a share of its mean."""

    strategy: str
    problems: int
    concurrency: int
    spread: float = 0.2
    repeats: int = 1
    options: dict[str, Any] = field(default_factory=dict[str, Any])


CASES = {
    # Many turns of all places, as benchmarks have.
    "baseline": Case("baseline", 60, 8, options={"token_budget": 2000}),
    "parallel": Case("parallel", 40, 6, options={"tracks": 3, "token_budget": 2000}),
    "speculative": Case("speculative", 40, 6, options={"tracks": 3, "token_budget": 2000}),
    "repeats": Case("speculative", 11, 6, repeats=4, options={"tracks": 2, "token_budget": 2000}),
    "budget": Case("speculative", 40, 6, options={"tracks": 3, "token_budget": 700}),
    "fast 1": Case("parallel", 60, 6, options={"tracks": 3, "token_budget": 2000, "fast": 1}),
    "one by one": Case("baseline", 20, 1, options={"token_budget": 2000}),
    # Few samples, and lengths that differ much: nobody can know how long the last ones will take.
    "one turn": Case("parallel", 11, 16, options={"tracks": 3, "token_budget": 2000}),
    "one turn, one track": Case("baseline", 12, 16, options={"token_budget": 2000}),
    "a turn and a bit": Case("parallel", 11, 8, options={"tracks": 3, "token_budget": 2000}),
    "two turns": Case("speculative", 16, 8, options={"tracks": 3, "token_budget": 2000}),
    "few with repeats": Case("speculative", 3, 6, repeats=8, options={"tracks": 3, "token_budget": 2000}),
    "uneven": Case("parallel", 40, 6, 0.5, options={"tracks": 3, "token_budget": 2000}),
    "uneven, one by one": Case("baseline", 20, 1, 0.5, options={"token_budget": 2000}),
    "three tracks, one by one": Case("speculative", 12, 1, options={"tracks": 3, "token_budget": 2000}),
}


class Log:
    """A sink that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def simulate(case: Case, seed: int, *, steps: float = STEPS) -> list[Event]:
    """Returns the events of a run under virtual time."""
    settings: WorldSettings = replace(MIXES["aime-mix"], steps=steps, steps_spread=case.spread)
    world = SimulatedWorld(settings, seed)
    chosen = make_strategy(case.strategy, **case.options)
    log = Log()

    async def main() -> None:
        engines = simulated_engines({role: NAMES[role] for role in chosen.roles}, world, shared_device=False)

        async def parts(_: AsyncExitStack) -> Components:
            return Components(dict(engines), ExactEquivalence())

        async with Runtime(parts) as runtime:
            await runtime.run(
                world.problems(case.problems),
                chosen,
                repeats=case.repeats,
                seed=seed,
                concurrency=case.concurrency,
                config={
                    "recipe": chosen.recipe.model_dump(mode="json"),
                    "concurrency": case.concurrency,
                    "repeats": case.repeats,
                },
                required=[log],
            )
        await asyncio.gather(*(engine.aclose() for engine in engines.values()))

    run_virtual(main())
    return log.events


@dataclass
class Messages:
    """``ratios``: of the middle of what was said to the truth. ``widths``: of ranges. ``right``: how many messages were;
    ``numbers``: how many gave one number. ``none``: how many said nothing.
    """

    ratios: list[float] = field(default_factory=list[float])
    widths: list[float] = field(default_factory=list[float])
    right: int = 0
    numbers: int = 0
    none: int = 0

    def read(self, events: Iterable[Event]) -> None:
        """Adds the messages of a whole run."""
        events = list(events)
        ends = [event for event in events if isinstance(event, SampleFinished)]
        whole = [event.seconds for event in events if isinstance(event, RunFinished)][-1]
        left = TimeLeft(len({(event.problem, event.repeat) for event in ends}))
        told, done = 0.0, 0
        for event in events:
            left.add(event)
            done += isinstance(event, SampleFinished)
            if not isinstance(event, SampleFinished) and event.t - told < INTERVAL_S:
                continue
            told = event.t
            said = left.left(event.t)
            truth = whole - event.t
            if event.t < FROM * whole or done == len(ends) or truth <= 0:
                continue
            if said is None:
                self.none += 1
                continue
            self.ratios.append(said.seconds / truth)
            if said.sure:
                right = abs(said.seconds - truth) <= max(WITHIN * truth, ROUNDED_S)
                self.numbers += 1
            else:
                right = said.low - ROUNDED_S <= truth <= said.high + ROUNDED_S
                self.widths.append(said.high / max(said.low, ROUNDED_S))
            self.right += right

    @property
    def share(self) -> float:
        return self.right / len(self.ratios) if self.ratios else 0.0

    def line(self, name: str) -> str:
        ordered = sorted(self.ratios)
        numbers = self.numbers / len(ordered) if ordered else 0.0
        width = median(self.widths) if self.widths else 1.0
        at = [ordered[round(share * (len(ordered) - 1))] for share in (0.05, 0.5, 0.95)] if ordered else [0.0] * 3
        told = "".join(f"{value:>8.2f}" for value in at)
        return (
            f"{name:<34}{len(ordered) + self.none:>9}{self.none:>6}{self.share:>8.1%}{numbers:>8.0%}{width:>7.1f}{told}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR")
    parser.add_argument("--seeds", type=int, default=4, help="simulated runs of each kind")
    parser.add_argument("--only", help="one kind of simulated runs")
    given = parser.parse_args()
    print(
        f"{'runs':<34}{'messages':>9}{'none':>6}{'right':>8}{'number':>8}{'width':>7}{'5 %':>8}{'median':>8}{'95 %':>8}"
    )
    for name, case in CASES.items():
        if given.seeds < 1 or given.only not in (None, name):
            continue
        messages = Messages()
        for seed in range(given.seeds):
            messages.read(simulate(case, seed))
        print(messages.line(name), flush=True)
    for folder in given.runs:
        messages = Messages()
        messages.read(read_run(folder))
        print(messages.line(folder.name), flush=True)


if __name__ == "__main__":
    main()
