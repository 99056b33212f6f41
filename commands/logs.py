"""Diagnostics: structured lines on stderr or in a file, never among the results."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from io import FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from speclrm.commands.screen_options import LogLevel

LEVELS: dict[LogLevel, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(level: LogLevel, *, file: Path | None = None, console: Console | None = None) -> None:
    """JSON lines into the file, or readable lines on stderr, through the console where a live display is on."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if file is not None:
        # Without a buffer, in which lines that a full disk refused would wait, and fail once more at the very end.
        stream: Any = Unfailing(TextIOWrapper(FileIO(file, "a"), encoding="utf-8", write_through=True))
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        stream = Unfailing(sys.stderr) if console is None else _Through(console)
        processors.append(structlog.dev.ConsoleRenderer(colors=False))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


class Unfailing:
    """A stream that loses what its file does not take: nothing ends because nobody can be told how it goes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _Through:
    """A stream that prints above the live display instead of through it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> int:
        if text.strip():
            self._console.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        pass
