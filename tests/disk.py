"""A disk that can fail at any of the calls that reach it, and the command line in this process to be tried on it."""

from __future__ import annotations

import builtins
import errno
import functools
import io
import os
import shutil
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any

from typer.main import get_command

from speclrm.commands import program
from speclrm.runtime.trace import trace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    import pytest

CHANGING = ("mkdir", "rename", "replace", "truncate", "open", "link", "symlink")
"""Functions of ``os`` that need room or the right to write. The first argument is the path."""
REMOVING = ("unlink", "remove", "rmdir")
"""These need no room."""


class Disk:
    """Counts the calls that would change something below a folder, and acts on those from a given number on.

    ``calls``: so far, from when it was last armed. Reading is never touched.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = os.fspath(folder)
        self.calls = 0
        self._act: Callable[[int], None] | None = None
        self._removing = False
        self._lock = threading.Lock()
        self._patch(monkeypatch)

    @contextmanager
    def failing(self, number: int, error: int, *, once: bool = False) -> Generator[None, None, None]:
        """Calls from ``number`` on, or that one alone, fail with the system's ``error``. The first is 1."""

        def act(call: int) -> None:
            if call == number or (call > number and not once):
                raise OSError(error, os.strerror(error))

        with self._armed(act, removing=error == errno.EROFS):
            yield

    @contextmanager
    def losing(self, number: int, folder: Path) -> Generator[None, None, None]:
        """The folder is removed just before that call."""

        def act(call: int) -> None:
            if call == number:
                self._act = None
                shutil.rmtree(folder, ignore_errors=True)

        with self._armed(act):
            yield

    @contextmanager
    def _armed(self, act: Callable[[int], None], *, removing: bool = False) -> Generator[None, None, None]:
        self.calls, self._act, self._removing = 0, act, removing
        try:
            yield
        finally:
            self._act = None

    def _call(self, path: str | Path | int) -> None:
        name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        if not name.startswith(self.folder):
            return
        with self._lock:
            self.calls += 1
            if self._act is not None:
                self._act(self.calls)

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = self

        def counted(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(path: Any, *args: Any, **options: Any) -> Any:
                reads = name == "open" and not args[0] & (os.O_WRONLY | os.O_RDWR)
                if not reads and (name not in REMOVING or disk._removing):
                    disk._call(path)
                return real(path, *args, **options)

            return call

        for name in (*CHANGING, *REMOVING, "fsync"):
            monkeypatch.setattr(os, name, counted(name))

        class File(FileIO):
            def __init__(self, path: Path, mode: str) -> None:
                disk._call(path)
                super().__init__(path, mode)

            def write(self, data: Any) -> int:  # type: ignore[override]
                disk._call(self.fileno())
                return super().write(data)

        monkeypatch.setattr(trace_file, "open_raw", File)

        async def rename(old: Path, new: Path) -> None:
            os.rename(old, new)

        monkeypatch.setattr(trace_file.aiofiles.os, "rename", rename)

        class Written:
            """A file opened by ``open`` for writing. What is little waits in its buffer and reaches the disk at its closing."""

            def __init__(self, file: Any) -> None:
                self._file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def __enter__(self) -> Written:
                return self

            def __exit__(self, *_: object) -> None:
                self.close()

            def close(self) -> None:
                try:
                    disk._call(self._file.fileno())
                except OSError:
                    self._file.close()
                    real_open(self._file.name, "w").close()  # the disk took nothing of it
                    raise
                self._file.close()

        real_open = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real_open(file, mode, *args, **options)
            disk._call(file)
            return Written(real_open(file, mode, *args, **options))

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(builtins, "open", opened)


@dataclass
class Ended:
    """How a command ended. ``error``: what came through to the interpreter, which prints it with a traceback."""

    code: int
    out: str
    err: str
    error: BaseException | None

    @property
    def paragraphs(self) -> list[str]:
        """What was complained of."""
        return [line for line in self.err.splitlines() if line.startswith("speclrm: ")]


@functools.cache
def _command() -> Any:
    return get_command(program.app)


def speclrm_here(*arguments: object) -> Ended:
    """The command in this process, on simulated engines."""
    out, err = io.StringIO(), io.StringIO()
    code, escaped = 1, None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = _command().main([str(one) for one in arguments], prog_name="speclrm", standalone_mode=False) or 0
        except Exception as error:  # noqa: BLE001  # it is what the test looks at
            escaped = error
    return Ended(code, out.getvalue(), err.getvalue(), escaped)
