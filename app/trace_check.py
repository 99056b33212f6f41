"""Checks a trace on disk, and follows one while it grows."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from speclrm.evaluators.report import RESULTS_FILE, SUMMARY_FILE
from speclrm.runtime.errors import TraceReadError
from speclrm.runtime.events import RunFinished
from speclrm.runtime.trace.check import Checker
from speclrm.runtime.trace.reader import RUN_STARTED, Decoder, Line, Placed, read_lines, trace_path
from speclrm.runtime.trace.segments import TRACE_FILE, open_segment, segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from speclrm.runtime.trace.check import Report


def check(path: Path, notice: Callable[[str], None] = lambda _: None) -> Report:
    """Checks the trace of a run, or a trace file; in a run's folder also the files derived from it.

    ``results.jsonl`` and ``summary.json`` are compared if they exist and the run has ended: until then they may be
    older than the trace.

    Raises:
        TraceReadError: there is nothing to check, or a file cannot be read or is of a newer form.
    """
    checker = Checker()
    decoder = Decoder(notice)
    finished = False
    for line in read_lines(path, notice):
        try:
            event = decoder.event(line)
        except TraceReadError as error:
            checker.broken(line.path, line.number, str(error).removeprefix(f"{line.path} line {line.number}: "))
            continue
        if event is not None:
            checker.add(line.path, line.number, event)
            finished = isinstance(event, RunFinished)
    folder = trace_path(path).parent
    whole = path.is_dir() or path.name == TRACE_FILE
    if whole and finished:
        if (folder / RESULTS_FILE).exists():
            checker.compare_results(folder / RESULTS_FILE)
        if (folder / SUMMARY_FILE).exists():
            checker.compare_summary(folder / SUMMARY_FILE)
    return checker.report()


def follow(path: Path, last: int, wait: Callable[[], None] | None) -> Iterator[Placed]:
    """Yields the ``last`` events of a trace, and, with ``wait``, new ones until the run's end.

    ``wait`` is called while there is nothing new; whatever it raises ends the following. The file is followed when it
    becomes a closed segment and another one begins.

    Raises:
        TraceReadError: as ``read_placed``.
    """
    trace = trace_path(path)
    decoder = Decoder()
    number = segments(trace)[-1].number
    held: deque[Line] = deque(maxlen=max(last, 1))
    ended = False
    for line in _growing(trace, number, wait):
        if line is None:  # everything there has been read
            if last > 0:
                for one in held:
                    yield from _placed(decoder, one)
            held.clear()
            if wait is None or ended:
                return
            last = -1
            continue
        ended = b'"kind":"run_finished"' in line.data
        if last >= 0:
            if line.number == 1 or RUN_STARTED in line.data:
                decoder.event(line)  # it has the schema version of the others
            held.append(line)
            continue
        yield from _placed(decoder, line)
        if last < 0 and ended:
            return


def _placed(decoder: Decoder, line: Line) -> Iterator[Placed]:
    event = decoder.event(line)
    if event is not None:
        yield Placed(line.path, line.number, len(line.data), event)


def _growing(trace: Path, number: int, wait: Callable[[], None] | None) -> Iterator[Line | None]:
    """Yields the lines from segment ``number`` on; None whenever everything there has been read."""
    while True:
        segment = next((one for one in segments(trace) if one.number == number), None)
        if segment is None:
            yield None
            if wait is None:
                return
            wait()
            continue
        with open_segment(segment.path) as file:
            if segment.live and not _still(trace, number, os.fstat(file.fileno()).st_ino):
                continue  # the segment was closed before it could be opened
            at = count = 0
            closed = not segment.live
            while True:
                line = file.readline()
                if line.endswith(b"\n"):
                    at += len(line)
                    count += 1
                    yield Line(segment.path, count, line)
                elif closed:
                    break
                elif not _still(trace, number, os.fstat(file.fileno()).st_ino):
                    closed = True  # the lines written before it was closed are still unread
                    file.seek(at)
                else:
                    yield None
                    if wait is None:
                        return
                    wait()
                    file.seek(at)  # a torn line may have been cut off, or is whole now
        number += 1


def _still(trace: Path, number: int, inode: int) -> bool:
    """Returns whether the open file is still the live one."""
    try:
        return segments(trace)[-1].number == number and trace.stat().st_ino == inode
    except OSError:
        return False
