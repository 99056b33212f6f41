"""Writes a trace: one JSON object a line, in the order of ``seq``.

Events enter a buffer at once, and one task writes it out: whatever came together is one write. An event is written
within ``WRITE_DELAY_S``, and synced to the disk at least once a second and at each sample's end.

A disk that is full or fails pauses the run: ``room`` waits, the write is tried again each ``RETRY_S``, and the run
continues when there is room again. If nothing can be written within a limit, the run stops; one last attempt is made at
its end. A trace that was removed or moved stops the run at once.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from speclrm.runtime.clock import now_s
from speclrm.runtime.errors import RunDirectoryError, TraceError, TraceReadError
from speclrm.runtime.events import to_line
from speclrm.runtime.files import FULL, GONE, reason, remedy
from speclrm.runtime.trace.segments import (
    HEADER_START,
    TRACE_FILE,
    SegmentHeader,
    check_compression,
    compress,
    open_segment,
    segments,
)
from speclrm.runtime.trace.trace_file import TraceFile, last_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from speclrm.runtime.events import Event
    from speclrm.runtime.trace.segments import Segment

T = TypeVar("T")

log = structlog.get_logger(__name__)

WRITE_DELAY_S = 0.05
SYNC_INTERVAL_S = 1.0
BUFFER_EVENTS_MAX = 10_000
"""Events that may wait for the disk before tracks are held back."""
SEGMENT_BYTES = 256 << 20
"""Size at which the live file becomes a closed segment: small enough to copy, compress and read while a run continues."""
RETRY_S = 1.0
ROOM_LIMIT_S = 600.0
"""Seconds that a run waits for room on a full disk: time to see it and to delete something."""
FAULT_LIMIT_S = 30.0
"""The same for a disk that fails, which seldom gets better."""
CLOSE_LIMIT_S = 10.0
"""The same for a run that is ending."""


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """``segment_bytes``: the size at which a segment is closed; ``compress``: whether closed segments are compressed
    with zstd.
    """

    segment_bytes: int = SEGMENT_BYTES
    compress: bool = False


class Journal:
    """A sink that writes a trace file. Use ``async with Journal(path)``.

    With ``resume`` it continues the trace that is there: a torn last line is cut off, and ``next_seq`` is the lowest
    number that the first new event may have. ``room()`` waits while the disk is full or behind, and raises TraceError
    once writing has failed for good, so the run stops instead of continuing unrecorded.

    Raises, on entry:
        RunDirectoryError: the trace is there already (or, to resume, is not), or cannot be opened.
        TraceReadError: it does not end in an event.
        SettingsError: ``compress`` without the package that it needs.
    """

    def __init__(self, path: Path, *, resume: bool = False, options: TraceOptions | None = None) -> None:
        self._path = path
        self._resume = resume
        self._options = options or TraceOptions()
        self._file = TraceFile(path, self._header)
        self._run = ""
        self.next_seq = 0
        self._emitted_seq = self._accepted_seq = -1
        self._lines: list[bytes] = []
        self._sync_asked = False
        self._wake = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._paused = False
        self._dirty = asyncio.Event()
        self._sync_now = asyncio.Event()
        self._written_out = False
        self._closed: asyncio.Queue[Path | None] = asyncio.Queue()
        # If both locks are held, the sync's is taken first.
        self._syncing = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._closing_since: float | None = None
        self._error: OSError | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Journal:
        if self._options.compress:
            check_compression()
        try:
            if self._resume:
                self._go_on()
            else:
                self._file.create()
        except OSError as error:
            await self._file.close()
            other = f"then `speclrm resume {self._path.parent}`" if self._resume else "or choose another --output-dir"
            raise RunDirectoryError(
                f"Trace {self._path} cannot be written: {reason(error)}. {remedy(error)}, {other}."
            ) from error
        self._task = asyncio.create_task(self._work(), name=f"journal {self._path}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def emit(self, event: Event) -> None:
        assert not self._resume or event.seq >= self.next_seq, "an event of a resumed run repeats a number of the trace"
        match event.kind:
            case "run_started" if not self._run:
                self._run = event.run
            case "sample_finished":
                self._sync_asked = True
            case _:
                pass
        self._lines.append(to_line(event))
        self._emitted_seq = event.seq
        if len(self._lines) >= BUFFER_EVENTS_MAX:
            self._gate.clear()
        self._wake.set()

    @property
    def has_room(self) -> bool:
        return self._error is None and self._gate.is_set()

    async def room(self) -> None:
        if not self._gate.is_set():
            await self._gate.wait()
        if self._error is not None:
            raise self._failure(self._error)

    async def aclose(self) -> None:
        """Writes and syncs what is left. Raises TraceError if that fails."""
        task, self._task = self._task, None
        if task is None:
            return
        self._closing_since = now_s()
        self._wake.set()
        cancelled = None
        while not task.done():
            # A second cancellation of the caller must not cost events that are already in the buffer.
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if not task.cancelled():
                    cancelled = error
        if cancelled is not None:
            raise cancelled
        if self._error is not None:
            raise self._failure(self._error)

    def _failure(self, error: OSError) -> TraceError:
        lost = len(self._lines) + self._file.pending_lines
        written = (
            "were not written" if error.errno in GONE else "wait in memory; all before them are in the file, whole"
        )
        begun = self._resume or lost <= self._emitted_seq
        go_on = f"go on with `speclrm resume {self._path.parent}`" if begun else "run the command again"
        return TraceError(
            f"Trace {self._path} cannot be written: {reason(error)}. {lost} events {written}. {remedy(error)}, then {go_on}."
        )

    # ----------------------------------------------------------------------------------------------------- the task

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sync_regularly(), name=f"journal sync {self._path}")
                group.create_task(self._pack(), name=f"journal pack {self._path}")
                try:
                    await self._write()
                finally:
                    self._written_out = True
                    self._dirty.set()
                    self._sync_now.set()
                    self._closed.put_nowait(None)
            await self._save()
        finally:
            self._gate.set()
            await self._file.close()

    async def _write(self) -> None:
        while self._error is None and not (self._closing and not self._lines):
            await self._wake.wait()
            if self._lines and not self._closing:
                await asyncio.sleep(WRITE_DELAY_S / 2)  # events that come now share the write
            self._wake.clear()
            async with self._writing:
                sync = self._accept()
                await self._persist(self._file.write)
            self._open_gate()
            if sync:
                self._sync_now.set()
            if self._file.dirty:
                self._dirty.set()
            if self._file.length >= self._options.segment_bytes and self._error is None:
                async with self._syncing, self._writing:
                    closed = await self._persist(self._file.rotate)
                    await self._persist(self._file.write)
                if closed is not None and self._options.compress:
                    self._closed.put_nowait(closed)
        while not self._closing:  # failed for good; the disk may be better at the run's end
            self._wake.clear()
            await self._wake.wait()

    async def _sync_regularly(self) -> None:
        synced = now_s() - SYNC_INTERVAL_S
        while not self._written_out:
            await self._dirty.wait()
            # Syncs when due even if no event comes.
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, synced + SYNC_INTERVAL_S - now_s())):
                    await self._sync_now.wait()
            if self._written_out:
                return  # the rest is saved at the end
            self._dirty.clear()
            self._sync_now.clear()
            await self._sync()
            synced = now_s()

    async def _sync(self) -> None:
        """Syncs while writing continues, since a slow disk must not delay writes."""
        async with self._syncing:
            try:
                await self._file.fsync()
            except OSError:
                async with self._writing:
                    self._file.rewind()
                    await self._persist(self._file.save)

    async def _pack(self) -> None:
        while (path := await self._closed.get()) is not None:
            try:
                await asyncio.to_thread(compress, path)
            except Exception as error:  # noqa: BLE001  # the plain segment is as good
                log.warning("segment_not_compressed", segment=str(path), error=str(error))

    async def _save(self) -> None:
        """Writes and syncs the rest. After a failure this is the last attempt."""
        failed, self._error = self._error, None
        self._accept()
        if failed is None:
            await self._persist(self._file.save)
            return
        try:
            await self._file.save()
        except OSError as error:
            self._error = error
        else:
            log.warning("trace_complete", trace=str(self._path), notice="the disk took the rest at the run's end")

    def _accept(self) -> bool:
        """Passes the buffered lines to the file; returns whether a sync is due once they are written."""
        lines, self._lines = self._lines, []
        if lines:
            self._file.accept(b"".join(lines))
            self._accepted_seq = self._emitted_seq
        sync, self._sync_asked = self._sync_asked, False
        return sync

    async def _persist(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Repeats a call while the disk refuses, within a limit. Returns None once that is over."""
        failing_since: float | None = None
        give_up_at: dict[bool, float] = {}
        while self._error is None:
            try:
                result = await work()
            except OSError as error:
                if failing_since is None:
                    failing_since = now_s()
                    self._pause(error)
                # A full disk that then fails has the limit of a failing one from then on.
                kind = error.errno in FULL
                limit = give_up_at.setdefault(kind, self._give_up_at(error, now_s()))
                if now_s() >= min(limit, failing_since + ROOM_LIMIT_S, self._close_limit):
                    log.error("trace_failed", trace=str(self._path), error=reason(error))
                    self._error = error
                    self._paused = False
                    break
                if not self._paused:
                    self._pause(error)
                await asyncio.sleep(RETRY_S)
            else:
                if failing_since is not None:
                    log.warning("trace_continues", trace=str(self._path), paused_s=round(now_s() - failing_since, 1))
                    self._paused = False
                    self._open_gate()
                return result
        self._gate.set()  # wakes tracks that wait, which then get the error
        return None

    def _pause(self, error: OSError) -> None:
        self._paused = True
        self._gate.clear()
        limit_s = self._give_up_at(error, now_s()) - now_s()
        log.warning(
            "trace_paused",
            trace=str(self._path),
            error=reason(error),
            notice=f"the run waits until the disk takes the trace again, and stops after {limit_s:.0f} s",
        )

    def _give_up_at(self, error: OSError, failing_since: float) -> float:
        if error.errno in GONE:
            return failing_since  # a removed trace does not come back
        return min(failing_since + (ROOM_LIMIT_S if error.errno in FULL else FAULT_LIMIT_S), self._close_limit)

    @property
    def _close_limit(self) -> float:
        return inf if self._closing_since is None else self._closing_since + CLOSE_LIMIT_S

    def _open_gate(self) -> None:
        if not self._paused and len(self._lines) < BUFFER_EVENTS_MAX:
            self._gate.set()

    @property
    def _closing(self) -> bool:
        return self._closing_since is not None

    # ------------------------------------------------------------------------------------------------------ resuming

    def _go_on(self) -> None:
        """Opens the existing trace after its last whole line."""
        found = segments(self._path)
        if found:
            with open_segment(found[0].path) as file:
                first = file.readline()
            if first.endswith(b"\n"):
                self._run = str(self._field(found[0].path, first, "run"))
            last = next((line for one in reversed(found) if (line := _last_line(one))), None)
            if last is not None:
                path, line = last
                seq = int(self._field(path, line, "seq"))
                self.next_seq = seq if line.startswith(HEADER_START) else seq + 1
        self._emitted_seq = self._accepted_seq = self.next_seq - 1
        if cut := self._file.resume():
            log.warning("trace_torn", trace=str(self._path), notice=f"a torn last line of {cut} bytes was cut off")

    def _field(self, path: Path, line: bytes, name: str) -> Any:
        try:
            return json.loads(line)[name]
        except (ValueError, KeyError, TypeError):
            raise TraceReadError(
                f"{path}: its {'first' if name == 'run' else 'last'} line is no event, so the run cannot go on behind it. "
                "See what is wrong with `speclrm trace check`."
            ) from None

    def _header(self, number: int) -> bytes:
        header = SegmentHeader(run=self._run, segment=number, seq=self._accepted_seq + 1)
        return header.model_dump_json().encode() + b"\n"


def _last_line(segment: Segment) -> tuple[Path, bytes] | None:
    """Returns the last whole line of a segment, with its path; None if it has none."""
    if segment.live:
        line = last_line(segment.path)
    else:  # a compressed segment is read to its end
        with open_segment(segment.path) as file:
            line = b"".join(deque(file, maxlen=1))
    return (segment.path, line) if line else None


__all__ = ["TRACE_FILE", "Journal", "TraceOptions"]
