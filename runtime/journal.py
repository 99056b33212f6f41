"""The writer of a trace: one JSON object a line, in the order of ``seq``.

Events enter a buffer at once and one task writes it out: whatever came together is one write. Written within
``WRITE_DELAY_S`` of the event, synced to the disk at least once a second and at each sample's end.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import aiofiles

from speclrm.runtime.clock import now_s
from speclrm.runtime.errors import TraceError
from speclrm.runtime.events import SampleFinished

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.events import Event

WRITE_DELAY_S = 0.05
SYNC_INTERVAL_S = 1.0
ROUNDING_S = 1e-6
"""A timer may fire a rounding error early; under virtual time the rest of the wait would then never pass."""
BUFFER_EVENTS_MAX = 10_000
"""Events that may wait for the disk before tracks are held back."""

TRACE_FILE = "trace.jsonl"


class Journal:
    """A sink that writes a trace file. Use ``async with Journal(path)``.

    ``room()`` raises TraceError once writing has failed, so the run stops instead of going on unrecorded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._sync_asked = False
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._closing = False
        self._error: OSError | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Journal:
        self._task = asyncio.create_task(self._write(), name=f"journal {self._path}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def emit(self, event: Event) -> None:
        self._lines.append(event.model_dump_json().encode() + b"\n")
        self._sync_asked |= isinstance(event, SampleFinished)
        if len(self._lines) >= BUFFER_EVENTS_MAX:
            self._drained.clear()
        self._wake.set()

    async def room(self) -> None:
        if not self._drained.is_set():
            await self._drained.wait()
        self._raise_failure()

    async def aclose(self) -> None:
        """Writes and syncs what is left. Raises TraceError where that fails."""
        task, self._task = self._task, None
        if task is None:
            return
        self._closing = True
        self._wake.set()
        # Shielded: a second cancellation of the caller must not cost events that are already in the buffer.
        await asyncio.shield(task)
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise TraceError(
                f"Trace {self._path} cannot be written: {self._error.strerror or self._error}. What was written before "
                "is whole. Free disk space or choose another --output-dir."
            ) from self._error

    async def _write(self) -> None:
        try:
            # Exclusive: a trace is never written over.
            async with aiofiles.open(self._path, "xb", buffering=0) as file:
                synced = now_s()
                dirty = False
                while not (self._closing and not self._lines):
                    # A sync that is due is done even when no event comes.
                    wait_s = max(0.0, synced + SYNC_INTERVAL_S - now_s()) if dirty else None
                    try:
                        async with asyncio.timeout(wait_s):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
                    if self._lines and not self._closing:
                        await asyncio.sleep(WRITE_DELAY_S / 2)  # whatever else comes now shares the write
                    self._wake.clear()
                    lines, self._lines = self._lines, []
                    sync, self._sync_asked = self._sync_asked, False
                    if lines:
                        data = b"".join(lines)
                        while data:
                            data = data[await file.write(data) :]
                        dirty = True
                    self._drained.set()
                    if dirty and (sync or now_s() >= synced + SYNC_INTERVAL_S - ROUNDING_S):
                        await asyncio.to_thread(os.fsync, file.fileno())
                        synced = now_s()
                        dirty = False
                if dirty:
                    await asyncio.to_thread(os.fsync, file.fileno())
        except OSError as error:
            self._error = error
        finally:
            self._drained.set()
