"""Runs whose disk is full, or fails, or takes only parts of what it is given, at a write drawn at random."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from attack.attempts import Attempt, Fault, attempt, violations
from attack.cuts import events_of, examined, finish
from attack.drawn import draw_trace, draw_work, equality, generator
from attack.reports import Report
from attack.stories import stories

from speclrm.runtime.errors import RunDirectoryError, TraceError
from speclrm.runtime.events import RunFinished
from speclrm.runtime.trace import trace_file
from speclrm.runtime.trace.journal import CLOSE_LIMIT_S, FAULT_LIMIT_S, ROOM_LIMIT_S

if TYPE_CHECKING:
    import random
    from collections.abc import Generator
    from pathlib import Path

    from speclrm.runtime.events import Event

CHAINS = 2


@dataclass(frozen=True)
class Outage:
    """From the write of that number on nothing is taken for so many seconds, and of each write so many bytes at most.

    ``part``: bytes of the first write in vain that are taken all the same. ``syncs``: these fail, by their numbers.
    """

    write: int
    number: int
    seconds: float
    part: int
    most: int
    syncs: tuple[int, ...] = ()

    def __str__(self) -> str:
        syncs = f", syncs {self.syncs} fail" if self.syncs else ""
        what = errno.errorcode[self.number]
        return f"{what} at write {self.write} behind {self.part} bytes for {self.seconds:g} s, {self.most} bytes a write{syncs}"

    @property
    def limit_s(self) -> float:
        return FAULT_LIMIT_S if self.number == errno.EIO else ROOM_LIMIT_S


@contextmanager
def failing(outage: Outage) -> Generator[None]:
    """Files of traces are on a disk with that outage, in virtual time."""
    writes = syncs = 0
    until: float | None = None

    class File(FileIO):
        def write(self, data: Any) -> int:  # type: ignore[override]
            nonlocal writes, until
            writes += 1
            now = asyncio.get_running_loop().time()
            if writes >= outage.write and until is None:
                until = now + outage.seconds
                if outage.part:
                    return super().write(bytes(data)[: outage.part])
            if until is not None and now < until:
                raise OSError(outage.number, os.strerror(outage.number))
            return super().write(bytes(data)[: outage.most])

    def fsync(_: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs in outage.syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open_raw(path: Path, mode: str) -> File:
        return File(path, mode)

    with patch.object(trace_file, "open_raw", open_raw), patch.object(os, "fsync", fsync):
        yield


def draw_outage(draw: random.Random) -> Outage:
    return Outage(
        draw.choice([1, 2, draw.randint(1, 20), draw.randint(1, 80)]),
        draw.choice([errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EIO]),
        draw.choice([0.4, 3.0, 20.0, 100.0, 500.0, 900.0, 1e9]),
        draw.choice([0, 0, 1, 50, 3000]),
        draw.choice([1 << 30, 1 << 30, 400, 37]),
        tuple(draw.randint(1, 6) for _ in range(draw.choice([0, 0, 1, 2]))),
    )


def disks(seed: int, folder: Path) -> Report:
    """A run on such a disk waits for room or ends in good order, and goes on once there is room."""
    draw = generator("disks", seed)
    work = draw_work(draw)
    report = Report.of("disks", seed, work)
    equal = equality(work)
    whole = attempt(work)
    report.faults += [Fault(f"whole {kind}", text) for kind, text in whole.faults]
    if whole.error is not None:
        return report
    expected = stories(whole.events)
    for chain in range(CHAINS):
        here = folder / str(chain)
        before: list[Event] = []
        left = Attempt(error=TraceError())
        for again in range(3):
            outage = draw_outage(draw) if again < 2 else None
            left = attempt(
                work,
                here,
                resume=bool(before),
                trace=draw_trace(draw),
                errors=(TraceError, RunDirectoryError),
                disk=None if outage is None else failing(outage),
            )
            about = f"chain {chain}, {outage or 'with room'}"
            report.faults += [Fault(kind, f"{about}: {text}") for kind, text in left.faults]
            report.faults += [Fault("error", f"{about}: {text}") for text in _unexpected(left, outage)]
            report.count("disks")
            if left.error is None:
                report.count("waited for room" if outage and left.seconds > whole.seconds + 0.3 else "went on")
                finish(report, work, examined(report, work, here, left, before, expected, equal))
                break
            report.count("ended for want of room")
            if not isinstance(left.error, TraceError | RunDirectoryError):
                break
            before = events_of(here)
            report.faults += [Fault(kind, f"{about}: {text}") for kind, text in violations(before)]
            if not before:
                shutil.rmtree(here, ignore_errors=True)
    return report


def _unexpected(left: Attempt, outage: Outage | None) -> list[str]:
    if not isinstance(left.error, TraceError):
        return []
    if outage is None:
        return [f"{left.error}"]
    if outage.syncs and not left.events:
        return []  # it says at once that it cannot begin
    closing = any(isinstance(event, RunFinished) and event.status == "finished" for event in left.events)
    # It looks about once a second, and the end of a run waits less.
    limit_s = (CLOSE_LIMIT_S if closing else outage.limit_s) - 2.0
    return [f"given up: {left.error}"] if outage.seconds < limit_s else []
