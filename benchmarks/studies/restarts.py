"""Kills the processes of real engines in this process again and again over one run, and says what became of it.

    python benchmarks/studies/restarts.py [--kills 20] [--seed 0] [--json FILE]

Draft and target are vLLM engines of tiny shapes with random weights; what they say is noise. At moments drawn by the seed, one
process gets SIGKILL: the EngineCore or a Worker of either. The next kill waits until the engine works again and for up to
``--apart`` seconds of work. At the end: samples that are lost (no result, or a failed track), seconds to recover, processes of
killed engines that were there when the next one worked and after the end, violations that ``trace check`` finds, and
differences that a replay finds. The exit code is 1 if anything was lost, left over or wrong, or the run ended before all kills.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from speclrm import api
from speclrm.app.progress import quiet
from speclrm.app.trace_check import check
from speclrm.benchmarks.shapes import make_folder
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.events import EngineFailed, EngineRecovered, Event, OperationDropped, RunFinished, StepCommitted
from speclrm.runtime.models import store

if TYPE_CHECKING:
    from speclrm.app.runs import RunReport

DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"
SETTLE_S = 12.0
"""Seconds that processes may take to be gone after everything was closed: the limit of the engines' own clean-up."""


@dataclass
class Follower:
    """A sink that counts failures and recoveries."""

    failed: list[EngineFailed] = field(default_factory=list[EngineFailed])
    recovered: list[EngineRecovered] = field(default_factory=list[EngineRecovered])
    steps: int = 0
    """Committed ones."""
    again: int = 0
    end: RunFinished | None = None

    def emit(self, event: Event) -> None:
        match event:
            case EngineFailed():
                self.failed.append(event)
                print(f"{event.t:7.1f} s  {event.engine} failed: {event.reason}, {event.requests} requests", flush=True)
            case EngineRecovered():
                self.recovered.append(event)
                print(f"{event.t:7.1f} s  {event.engine} works again after {event.down_s:.1f} s", flush=True)
            case StepCommitted():
                self.steps += 1
            case OperationDropped():
                self.again += event.reason == "error"
            case RunFinished():
                self.end = event
            case _:
                pass

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def engine_processes(kind: str) -> list[psutil.Process]:
    """Returns the processes below this one of a kind: ``EngineCore`` or ``Worker``."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if kind in process.name() or kind in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def alive(processes: list[psutil.Process]) -> int:
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            count += process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return count


class Killer:
    """Kills one process after the other. ``left``: those of killed engines that were there when the next one worked."""

    def __init__(self, follower: Follower, *, kills: int, apart_s: float, seed: int) -> None:
        self._follower = follower
        self._kills = kills
        self._apart_s = apart_s
        self._draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.left = 0
        self.seen: list[psutil.Process] = []

    async def run(self) -> None:
        while not self._follower.steps:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        while self.done.total() < self._kills:
            await asyncio.sleep(self._draw.uniform(0.2, self._apart_s))
            kind = self._draw.choice(("EngineCore", "Worker"))
            victims = engine_processes(kind) or engine_processes("EngineCore")
            if not victims:
                continue
            victim = self._draw.choice(victims)
            core = victim if kind == "EngineCore" else victim.parent() or victim
            family = [core, *core.children(recursive=True)]
            self.seen += family
            before = len(self._follower.recovered)
            victim.kill()
            self.done[kind] += 1
            print(f"kill {self.done.total()}: {kind} {victim.pid}, {self._follower.steps} steps committed", flush=True)
            while len(self._follower.recovered) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            self.left += alive(family)


async def killed_run(given: argparse.Namespace, models: Path, folder: Path) -> tuple[RunReport, Killer, Follower]:
    follower = Follower()
    killer = Killer(follower, kills=given.kills, apart_s=given.apart, seed=given.seed)
    dummy: dict[str, Any] = {"load_format": "dummy"}
    options = api.RunOptions(
        strategy="speculative",
        dataset=DATASET,
        limit=given.limit,
        target=str(models / "target"),
        draft=str(models / "draft"),
        target_args=dummy,
        draft_args=dummy | {"distributed_executor_backend": "mp"},  # on a CPU too: a Worker beside EngineCore
        target_replicas=given.target_replicas,
        output_dir=folder,
        seed=given.seed,
        recipe={"tracks": 2, "token_budget": given.token_budget, "max_step_tokens": 32, "speculate": "always"},
    )
    killing = asyncio.create_task(killer.run())
    try:
        report = await api.run(options, sinks=[follower], notify=quiet)
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    return report, killer, follower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--apart", type=float, default=4.0, help="seconds of work between two kills, at most")
    parser.add_argument("--limit", type=int, default=60, help="problems")
    parser.add_argument("--token-budget", type=int, default=200)
    parser.add_argument("--target-replicas", type=int, default=1)
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct", help="a model whose tokenizer is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        models, folder = Path(place) / "models", Path(place) / "run"
        tokenizer = asyncio.run(store.pull(given.tokenizer, quiet, weights=False))
        make_folder("tiny-wide", tokenizer, models / "target")
        make_folder("tiny", tokenizer, models / "draft")
        report, killer, follower = asyncio.run(killed_run(given, models, folder))
        _, left_at_end = psutil.wait_procs([one for one in killer.seen if alive([one])], timeout=SETTLE_S)
        left_at_end += engine_processes("EngineCore") + engine_processes("Worker")
        replayed = run_virtual(api.replay(folder, {}))
        violations = len(check(folder).violations)
    rows = report.summary.samples
    tracks = [track for row in rows for track in row.tracks]
    down = [event.down_s for event in follower.recovered] or [0.0]
    figures = {
        "kills": dict(killer.done),
        "failures by reason": dict(Counter(event.reason or "" for event in follower.failed)),
        "requests in flight at a failure, median": statistics.median(
            [event.requests for event in follower.failed] or [0]
        ),
        "seconds to recover, median": round(statistics.median(down), 1),
        "seconds to recover, most": round(max(down), 1),
        "samples": given.limit,
        "samples lost": given.limit - len(rows),
        "tracks": len(tracks),
        "tracks failed": sum(track.error is not None for track in tracks),
        "processes left when the next engine worked": killer.left,
        "processes left at the end": len(left_at_end),
        "violations": violations,
        "differences in replay": len(replayed.report.differences),
        "seconds": round(follower.end.seconds, 1) if follower.end else None,
    }
    print(json.dumps(figures, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    wrong = ("samples lost", "tracks failed", "violations", "differences in replay", "processes left at the end")
    sys.exit(killer.done.total() < given.kills or bool(killer.left) or any(figures[name] for name in wrong))


if __name__ == "__main__":
    main()
