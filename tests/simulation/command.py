"""Runs seeds, each a small run in which things go wrong, and tells which break.

    python -m tests.simulation --seeds 1000                     # seeds 0 to 999
    python -m tests.simulation --seed 17 --seeds 1              # one of them, once more
    python -m tests.simulation --seeds 100 --faults hang death  # of these kinds alone
    python -m tests.simulation --planted                        # how soon each planted bug is found

Exit code 1 where anything broke.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from attack.attempts import Fault
from simulation.cases import Outcome, simulate
from simulation.drawn import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

LIMIT_S = 60
"""Of real time, for one seed: they take a tenth of a second."""


class TooLong(BaseException):
    """Not an Exception, so that nothing in the runtime takes it for its own."""


def one(seed: int, kinds: Sequence[str] = KINDS) -> Outcome:
    """One seed, within a limit of real time."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.alarm(5)  # a task may take it for its own end
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        return simulate(seed, kinds)
    except TooLong:
        return Outcome(seed, "", faults=[Fault("hang", f"no end within {LIMIT_S} s: {traceback.format_exc(limit=-8)}")])
    except Exception:  # noqa: BLE001  # whatever it is, the next seed comes
        return Outcome(seed, "", faults=[Fault("crash", traceback.format_exc())])
    finally:
        signal.alarm(0)


class Table:
    """What was done and found so far."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seeds = 0
        self.hours = 0.0
        self.injected = Counter[str]()
        self.counts = Counter[str]()
        self.faults = Counter[str]()
        self.broken: list[int] = []

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.hours += outcome.hours
        self.injected.update(outcome.injected)
        self.counts.update(outcome.counts)
        self.faults.update({fault.kind for fault in outcome.faults})
        if outcome.faults:
            self.broken.append(outcome.seed)

    def __str__(self) -> str:
        minutes = (time.monotonic() - self.began) / 60
        lines = [
            f"{self.seeds} seeds in {60 * minutes:.0f} s: {self.seeds / minutes:.0f} a minute, {self.hours:.0f} simulated hours; "
            f"{len(self.broken)} broke",
            "  " + ", ".join(f"{name} {number}" for name, number in sorted(self.counts.items())),
            f"  {sum(self.injected.values())} faults injected: "
            + ", ".join(f"{name} {number}" for name, number in sorted(self.injected.items())),
        ]
        if self.broken:
            lines.append(f"  broken: {', '.join(f'{name} {number}' for name, number in self.faults.most_common())}")
            lines.append(f"  seeds: {' '.join(map(str, self.broken))}")
        return "\n".join(lines)


def outcomes(seeds: Iterable[int], kinds: Sequence[str], jobs: int) -> Iterable[Outcome]:
    if jobs == 1:
        yield from (one(seed, kinds) for seed in seeds)
        return
    pool = ProcessPoolExecutor(jobs, get_context("spawn"))
    try:
        yield from pool.map(partial(one, kinds=kinds), seeds, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="no longer than that, whatever number of seeds it is"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="FIRST", help="the first")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="K", help=f"processes; this machine has {os.cpu_count()} cores"
    )
    parser.add_argument(
        "--faults", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}"
    )
    parser.add_argument("--planted", action="store_true", help="plant bugs, and tell how soon each is found")
    given = parser.parse_args()
    if given.planted:
        from simulation.planted import find_all

        return find_all(given.seed, given.seeds)
    table = Table()
    for outcome in outcomes(range(given.seed, given.seed + given.seeds), given.faults, given.jobs):
        table.add(outcome)
        if outcome.faults:
            print(outcome, flush=True)
        if given.minutes is not None and time.monotonic() - table.began > 60 * given.minutes:
            break
    print(table)
    return 1 if table.broken else 0
