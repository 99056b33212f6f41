"""Writes the bytes of a trace to the disk: keeps where each belongs, which are written, and which would survive a crash.

Every method may raise OSError and may then be called again: it continues exactly where it was, so a write cut short
never leaves a torn line in the middle.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING

import aiofiles.os
from aiofiles.threadpool.binary import AsyncFileIO

from speclrm.runtime.files import sync_folder
from speclrm.runtime.trace.segments import closed_path, segments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_LOOK_BACK_BYTES = 1 << 16


class TraceFile:
    """The live file of a trace, and its closing into segments.

    One call at a time, except ``fsync``, which may run beside ``write``. ``header``: makes the first line of the
    segment with the given number.
    """

    def __init__(self, path: Path, header: Callable[[int], bytes]) -> None:
        self.path = path
        self.number = 1
        self._header = header
        self._file: AsyncFileIO | None = None
        self._pending: deque[tuple[int, bytes]] = deque()
        """Accepted, not yet written: offset and bytes."""
        self._unsynced: deque[tuple[int, bytes]] = deque()
        """Written, but not known to be on the disk; kept, because a failed sync may mean that the kernel lost them."""
        self._written = 0
        self._end = 0
        self._in_place = False
        """Whether the file's own position is where the next byte belongs."""
        self._folder_changed = False

    @property
    def length(self) -> int:
        """Bytes of the live file, those not yet written included."""
        return self._end

    @property
    def pending_lines(self) -> int:
        """Lines that are not, or not wholly, written."""
        return sum(data.count(b"\n", max(0, self._written - offset)) for offset, data in self._pending)

    @property
    def dirty(self) -> bool:
        return bool(self._unsynced or self._pending)

    def create(self) -> None:
        """Begins a new trace. Raises FileExistsError if there is one: a trace is never overwritten."""
        if found := segments(self.path):
            raise FileExistsError(errno.EEXIST, f"{found[-1].path.name} exists")
        self._open("xb")

    def resume(self) -> int:
        """Continues after the last whole line; returns how many bytes of a torn one were cut off.

        Raises FileNotFoundError if there is no trace.
        """
        found = segments(self.path)
        if not found:
            raise FileNotFoundError(errno.ENOENT, "there is no trace to go on with")
        self.number = found[-1].number
        if not found[-1].live:  # the crash came between closing one segment and opening the next
            self.number += 1
            self._open("xb")
            self._accept_header()
            return 0
        raw = self._open("r+b")
        length = os.fstat(raw.fileno()).st_size
        whole = _last_line_end(raw.fileno(), length)
        if whole < length:
            raw.truncate(whole)
            os.fsync(raw.fileno())
        self._written = self._end = whole
        if not whole:
            self._accept_header()
        return length - whole

    def accept(self, data: bytes) -> None:
        """Takes whole lines; ``write`` writes them to the file."""
        self._pending.append((self._end, data))
        self._end += len(data)

    async def write(self) -> None:
        """Writes what was accepted."""
        file = self._file
        if file is None:
            self._open("xb")
            file = self._file
            assert file is not None
        while self._pending:
            offset, data = self._pending[0]
            while self._written < offset + len(data):
                if not self._in_place:
                    await file.seek(self._written)
                self._in_place = False  # an error may leave the position anywhere
                count = await file.write(memoryview(data)[self._written - offset :])
                if not count:
                    raise OSError(errno.EIO, "nothing was written")
                self._written += count
                self._in_place = True
            self._unsynced.append(self._pending.popleft())

    async def fsync(self) -> None:
        """Syncs what was written last. Raises OSError, after which ``rewind`` and ``save`` are due."""
        if self._file is None or not (self._unsynced or self._folder_changed):
            return
        mark = self._written
        if self._folder_changed:
            await asyncio.to_thread(sync_folder, self.path.parent)
            self._folder_changed = False
        await asyncio.to_thread(self._sync, self._file.fileno())
        while self._unsynced and self._unsynced[0][0] + len(self._unsynced[0][1]) <= mark:
            self._unsynced.popleft()

    async def save(self) -> None:
        """Writes and syncs everything."""
        await self.write()
        try:
            await self.fsync()
        except OSError:
            self.rewind()
            raise

    def rewind(self) -> None:
        """Marks everything that a failed sync should have covered to be written again.

        After a failed fsync Linux marks the pages as clean, and the next one succeeds without them.
        """
        self._pending.extendleft(reversed(self._unsynced))
        self._unsynced.clear()
        if self._pending:
            self._written = self._pending[0][0]
            self._in_place = False

    async def rotate(self) -> Path:
        """Closes the live file as a segment of its own and opens the next one; returns the closed one's path."""
        closed = closed_path(self.path, self.number)
        await self.save()
        await aiofiles.os.rename(self.path, closed)
        # From here on nothing may fail: a second try would give the next file the name of this one.
        file, self._file = self._file, None
        self.number += 1
        self._written = self._end = 0
        self._accept_header()
        if file is not None:
            with suppress(OSError):  # everything is on the disk
                await file.close()
        return closed

    async def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    def _sync(self, handle: int) -> None:
        os.fsync(handle)
        # A removed file, alone or with its folder, still takes every byte, and nobody will ever see one.
        self.path.stat()
        if not os.fstat(handle).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed, and another file has its name")

    def _accept_header(self) -> None:
        if self.number > 1:
            self.accept(self._header(self.number))

    def _open(self, mode: str) -> FileIO:
        raw = open_raw(self.path, mode)
        self._file = AsyncFileIO(raw, None, None)
        self._in_place = False
        self._folder_changed |= "x" in mode
        return raw


def open_raw(path: Path, mode: str) -> FileIO:
    """Opens a file without a buffer of its own: what ``write`` returns is what the kernel took."""
    return FileIO(path, mode)


def last_line(path: Path) -> bytes:
    """Returns the last whole line of a file, empty if it has none."""
    with path.open("rb") as file:
        end = _last_line_end(file.fileno(), os.fstat(file.fileno()).st_size)
        start = _last_line_end(file.fileno(), max(end - 1, 0))
        return os.pread(file.fileno(), end - start, start)


def _last_line_end(handle: int, length: int) -> int:
    """Returns the offset after the last newline among the first ``length`` bytes; 0 if there is none."""
    while length > 0:
        start = max(0, length - _LOOK_BACK_BYTES)
        at = os.pread(handle, length - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        length = start
    return 0
