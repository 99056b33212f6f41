"""Attacks for minutes or hours, each drawn from a number; what breaks is written with the number that breaks it.

    python tests/soak.py --minutes 60 --seed 0 --jobs 2      # attacks number 0 and on, of each kind in turn
    python tests/soak.py --only cuts:17                      # one of them, once more
    python tests/soak.py --minutes 60 --kills 20             # and real kills of real processes, twenty configurations

Exit code 1 where anything broke.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from attack.attempts import Fault
from attack.kinds import KINDS
from attack.reports import Report

if TYPE_CHECKING:
    from types import FrameType

LIMIT_S = 300
"""Of real time, for one attack: they take a second or two."""
KILLS_LIMIT_S = 3600
"""The same for one that starts processes."""


class TooLong(BaseException):
    """Not an Exception, so that nothing under attack takes it for its own."""


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def one(kind: str, seed: int) -> Report:
    """One attack, in a folder of its own, within a limit of real time."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.alarm(5)  # a task may take it for its own end
        raise TooLong

    signal.signal(signal.SIGALRM, stop)
    limit_s = KILLS_LIMIT_S if kind == "kills" else LIMIT_S
    signal.alarm(limit_s)
    try:
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            return KINDS[kind](seed, Path(folder))
    except TooLong:
        return Report(
            kind, seed, "", faults=[Fault("hang", f"no end within {limit_s} s: {traceback.format_exc(limit=-8)}")]
        )
    except Exception:  # noqa: BLE001  # whatever it is, the next attack comes
        return Report(kind, seed, "", faults=[Fault("crash", traceback.format_exc())])
    finally:
        signal.alarm(0)


class Table:
    """What was done and found so far."""

    def __init__(self) -> None:
        self.seeds = Counter[str]()
        self.faulty = Counter[str]()
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.faults = Counter[str]()

    def add(self, report: Report) -> None:
        self.seeds[report.kind] += 1
        self.faulty[report.kind] += bool(report.faults)
        self.counts[report.kind].update(report.counts)
        self.labels[report.kind].update(report.labels)
        self.faults.update({f"{report.kind}: {fault.kind}" for fault in report.faults})

    def line(self) -> str:
        return ", ".join(f"{kind} {self.faulty[kind]} of {seeds}" for kind, seeds in self.seeds.items()) + " broke"

    def __str__(self) -> str:
        lines: list[str] = []
        for kind, seeds in self.seeds.items():
            lines.append(f"{kind}: {seeds} configurations, {self.faulty[kind]} broke")
            lines.append("  " + ", ".join(f"{name} {number}" for name, number in self.counts[kind].items()))
            lines.append("  " + ", ".join(f"{name} {number}" for name, number in sorted(self.labels[kind].items())))
        if self.faults:
            lines.append(
                "broken, by kind of fault: " + ", ".join(f"{name} {n}" for name, n in self.faults.most_common())
            )
        return "\n".join(lines)


def soak(kinds: list[str], first: int, minutes: float, jobs: int, most: int | None, kills: int) -> int:
    table = Table()
    began = told = time.monotonic()
    work = (
        (kind, number) for number in count(first) for kind in [*kinds, *(["kills"] if number - first < kills else [])]
    )
    open_: set[Future[Report]] = set()
    broken: list[str] = []
    with ProcessPoolExecutor(jobs, get_context("spawn"), quiet, max_tasks_per_child=300) as pool:
        while True:
            late = time.monotonic() - began > minutes * 60
            while len(open_) < jobs and not late:
                kind, number = next(work)
                if late := most is not None and number >= first + most:
                    break
                open_.add(pool.submit(one, kind, number))
            if not open_:
                break
            done, open_ = wait(open_, timeout=10, return_when=FIRST_COMPLETED)
            for future in done:
                report = future.result()
                table.add(report)
                if report.faults:
                    broken.append(f"{report.kind}:{report.seed}")
                    print(report, flush=True)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{(told - began) / 60:.0f} min: {table.line()}", flush=True)
    print(table)
    if broken:
        print(f"{len(broken)} broke: {' '.join(broken)}")
    return 1 if broken else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the first number of each kind")
    parser.add_argument("--seeds", type=int, help="so many numbers of each kind at most")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument(
        "--kinds", nargs="*", choices=sorted(KINDS), default=[kind for kind in KINDS if kind != "kills"]
    )
    parser.add_argument("--kills", type=int, default=0, help="so many runs of the command line are killed, too")
    parser.add_argument("--only", metavar="KIND:SEED", nargs="+", help="these, and nothing else")
    given = parser.parse_args()
    if given.only:
        quiet()
        reports = [one(kind, int(seed)) for kind, _, seed in (name.partition(":") for name in given.only)]
        for report in reports:
            print(report, report.counts, sep="\n")
        return 1 if any(report.faults for report in reports) else 0
    return soak(given.kinds, given.seed, given.minutes, given.jobs, given.seeds, given.kills)


if __name__ == "__main__":
    sys.exit(main())
