"""Reads a trace as it lies on the disk: one event a line, in constant memory.

A last line without its end is what a crash leaves behind: it is cut off and told. Anything else that is no event is an
error that names file and line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from speclrm.runtime.errors import TraceReadError
from speclrm.runtime.events import EVENT, SCHEMA_VERSION, RunStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from speclrm.runtime.events import Event

LINE_BYTES_MAX = 64 << 20
"""No event is longer; a longer line is no trace."""


def read_trace(path: Path, notice: Callable[[str], None] = lambda _: None) -> Iterator[Event]:
    """The events of a trace file, first to last. ``notice`` is told of a torn last line.

    Raises:
        TraceReadError: the file cannot be read, is of a newer form, or a line is no event.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > LINE_BYTES_MAX:
                        raise TraceReadError(f"{path} line {number}: longer than any event; this is no trace.")
                    notice(f"{path} line {number}: torn, as a crash leaves it; cut off")
                    return
                event = _event(path, number, line)
                if number == 1 and not isinstance(event, RunStarted):
                    raise TraceReadError(f"{path} line 1: a trace begins with run_started, not with {event.kind}.")
                yield event
    except OSError as error:
        raise TraceReadError(f"{path} cannot be read: {error.strerror}.") from error


def _event(path: Path, number: int, line: bytes) -> Event:
    try:
        event = EVENT.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise TraceReadError(
            f"{path} line {number}: no event of a trace ({place}: {first['msg']}). The file was changed or is another kind."
        ) from None
    if isinstance(event, RunStarted) and event.schema_version > SCHEMA_VERSION:
        raise TraceReadError(
            f"{path}: written by a newer SpecLRM (form {event.schema_version}; this one reads up to {SCHEMA_VERSION})."
        )
    return event
