"""Writes diagnostics as structured lines to stderr or a file, never among the results.

Values may be what a model wrote: no line can control a terminal, not even one on which the file is read later.
"""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import suppress
from io import FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

import structlog

from speclrm.commands.display import visible

if TYPE_CHECKING:
    from collections.abc import Collection, MutableMapping
    from pathlib import Path

    from rich.console import Console

    from speclrm.commands.screen_options import LogLevel

LEVELS: dict[LogLevel, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


SHOWN = ("operation_stuck",)
"""Lines that displays have of their own, made of events."""


def configure(
    level: LogLevel, *, file: Path | None = None, console: Console | None = None, shown: Collection[str] = ()
) -> None:
    """Sends JSON lines to the file, or readable lines to stderr, through the console while a live display is on.

    ``shown``: those that are on the screen already, and so go to a file alone.
    Warnings of other libraries on stderr are made harmless as well.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _harmless_values,
    ]
    if file is not None:
        # Unbuffered: lines that a full disk refused would wait in a buffer, and fail again at the very end.
        stream: Any = Unfailing(TextIOWrapper(FileIO(file, "a"), encoding="utf-8", write_through=True))
        processors.append(structlog.processors.JSONRenderer())
    else:
        processors.insert(0, _Dropping(shown))
        stream = Unfailing(sys.stderr) if console is None else _Through(console)
        plain = structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(colors=False, exception_formatter=plain))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    warnings.formatwarning = _format_warning
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Harmless())


class _Dropping:
    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def __call__(self, _logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if line.get("event") in self._names:
            raise structlog.DropEvent
        return line


_TRACES = ("exception", "stack")
"""Keys of a line whose values are texts of several lines."""


def _harmless_values(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in line.items():
        line[key] = visible(value) if key in _TRACES and isinstance(value, str) else _harmless(value)
    return line


def _harmless(value: Any) -> Any:
    """Returns the value with each text on one line; a value that is neither text nor number becomes text."""
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {visible(str(key), keep=""): _harmless(one) for key, one in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case list() | tuple() | set() | frozenset():
            return [_harmless(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return visible(value if isinstance(value, str) else repr(value), keep="")


_formatted = warnings.formatwarning


def _format_warning(*arguments: Any, **options: Any) -> str:
    return visible(_formatted(*arguments, **options))


class _Harmless(logging.Formatter):
    """Makes harmless what is logged if nobody set up logging: it would go to stderr as it is."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class Unfailing:
    """A stream that drops what its file does not take: a run must not end because its diagnostics cannot be written."""

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
