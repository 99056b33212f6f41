"""Schedules on simulated engines: free-running against lock-step rounds, and both against the target alone.

python benchmarks/schedule.py --tracks 1 5 20 --json schedule.json

Virtual seconds, so the table is the same on every machine. Lock-step is `--reproduce-fault rounds`: the same tracks, judge and
engines, with a barrier after each phase of a step. The target alone has as many tracks at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from speclrm import api, faults
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.evaluators.metrics import Summary
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.presets import simulated_engines
from speclrm.runtime.engines.world import MIXES, SimulatedWorld
from speclrm.runtime.protocols import Role
from speclrm.runtime.runtime import Parts, Runtime


@dataclass
class Result:
    """``seconds``: virtual. ``kept``: tokens in committed steps. ``cached``: share of the target's prompt tokens."""

    mix: str
    tracks: int
    shared: bool
    schedule: str
    seconds: float
    kept: int
    acceptance: float | None
    accuracy: float | None
    cached: float
    target_busy: float

    @property
    def rate(self) -> float:
        return self.kept / self.seconds


class Fold(Summary):
    def emit(self, event: Any) -> None:
        self.add(event)

    async def room(self) -> None: ...

    async def aclose(self) -> None: ...


def simulate(mix: str, tracks: int, schedule: str, *, shared: bool, seed: int) -> Result:
    """``tracks``: all of them together, five to a problem where there are that many."""
    per_problem = min(5, tracks)
    world = SimulatedWorld(MIXES[mix], seed)
    alone = schedule == "target alone"
    names = {Role.TARGET: "sim/qwq-32b"} if alone else {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
    strategy = api.strategy(
        "parallel" if alone else "speculative", tracks=per_problem, plan="plain", speculate="always"
    )
    fold = Fold()

    async def main() -> None:
        engines = simulated_engines(names, world, shared_device=shared)

        async def parts(stack: Any) -> Parts:
            return Parts(dict(engines), ExactEquivalence())

        async with Runtime(parts) as runtime:
            problems = world.problems(max(1, tracks // per_problem))
            await runtime.run(problems, strategy, seed=seed, concurrency=1000, sinks=[fold])
        await asyncio.gather(*(engine.aclose() for engine in engines.values()))

    with faults.reproduced(["rounds"]) if schedule == "lock-step" else contextlib.nullcontext():
        run_virtual(main())
    summary = fold.summary()
    target = summary.tokens["target"]
    return Result(
        mix=mix,
        tracks=tracks,
        shared=shared,
        schedule=schedule,
        seconds=summary.seconds,
        kept=sum(counts.kept for counts in summary.tokens.values()),
        acceptance=summary.acceptance,
        accuracy=summary.accuracy,
        cached=target.cached / target.prompt,
        target_busy=summary.busy_s["target"] / summary.seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--tracks", nargs="+", type=int, default=[1, 5, 20])
    parser.add_argument("--shared", action="store_true", help="both engines on one device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="the results as JSON into this file")
    options = parser.parse_args()
    table = Table(box=None, pad_edge=False)
    for name in ("mix", "tracks", "accepted", "free / lock-step", "free / target alone", "cached", "target busy"):
        table.add_column(name)
    results: list[Result] = []
    for mix in options.mix:
        for tracks in options.tracks:
            alone, locked, free = (
                simulate(mix, tracks, schedule, shared=options.shared, seed=options.seed)
                for schedule in ("target alone", "lock-step", "free")
            )
            results += [alone, locked, free]
            table.add_row(
                mix,
                str(tracks),
                f"{free.acceptance:.0%}",
                f"{free.rate / locked.rate:.2f}",
                f"{free.rate / alone.rate:.2f}",
                f"{free.cached:.1%}",
                f"{free.target_busy:.0%}",
            )
    Console().print("Ratios of committed tokens per virtual second" + (", one device" if options.shared else ""))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
