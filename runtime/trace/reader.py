"""Reads a trace from the disk: all its segments in order, one event a line, in constant memory.

A crash may leave a last line without its end, which is skipped and reported. Anything else that is no event is an error
that names file and line.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from speclrm.runtime.errors import TraceReadError
from speclrm.runtime.events import EVENT, SCHEMA_VERSION, Event, RunStarted
from speclrm.runtime.trace.segments import HEADER_START, TRACE_FILE, SegmentHeader, open_segment, segments
from speclrm.runtime.trace.upgrade import upgraded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from speclrm.runtime.trace.segments import Segment

LINE_BYTES_MAX = 64 << 20
"""No event is longer; a longer line is no trace."""
RUN_STARTED = b'"kind":"run_started"'
"""Within a JSON string the quotes would be escaped, so this occurs only in such an event."""


class Line(NamedTuple):
    """A whole line of a trace. ``number``: from 1, within its file; ``data``: with its newline."""

    path: Path
    number: int
    data: bytes


class Placed(NamedTuple):
    """An event and its place. ``size``: of its line in bytes."""

    path: Path
    line: int
    size: int
    event: Event


def trace_path(path: Path) -> Path:
    """Returns the live file of a trace: the path itself, or the file in a run's folder.

    Raises:
        TraceReadError: there is no such file or folder, or no trace in it.
    """
    trace = path / TRACE_FILE if path.is_dir() else path
    if not segments(trace):
        what = f"{path} holds no {TRACE_FILE}" if path.is_dir() else f"There is no {path}"
        raise TraceReadError(f"{what}. Give the folder of a run, or its trace.")
    return trace


def read_run(
    directory: Path, notice: Callable[[str], None] = lambda _: None, *, skip_unknown: bool = False
) -> Iterator[Event]:
    """Yields the events of the run in a folder, over all segments of its trace. Like ``read_trace``."""
    return read_trace(directory / TRACE_FILE, notice, skip_unknown=skip_unknown)


def read_trace(
    path: Path, notice: Callable[[str], None] = lambda _: None, *, skip_unknown: bool = False
) -> Iterator[Event]:
    """Yields the events of a trace, first to last; ``path`` is its live file or the folder of its run.

    ``notice`` is told of a torn last line and, with ``skip_unknown``, of events of kinds that this version does not
    know.

    Raises:
        TraceReadError: a file cannot be read, is of a newer form, or a line is no event.
    """
    for placed in read_placed(path, notice, skip_unknown=skip_unknown):
        yield placed.event


def read_placed(
    path: Path, notice: Callable[[str], None] = lambda _: None, *, skip_unknown: bool = False
) -> Iterator[Placed]:
    """Does the same as ``read_trace``, with the place of each event."""
    decoder = Decoder(notice, skip_unknown=skip_unknown)
    for line in read_lines(path, notice):
        event = decoder.event(line)
        if event is not None:
            yield Placed(line.path, line.number, len(line.data), event)
    decoder.close()


def read_lines(path: Path, notice: Callable[[str], None] = lambda _: None) -> Iterator[Line]:
    """Yields the whole lines of all segments. Only the last segment may end in a torn line.

    Raises:
        TraceReadError: a file cannot be read, a segment is missing, or a closed segment ends in a torn line.
    """
    trace = trace_path(path)
    found = segments(trace)
    for expected, segment in enumerate(found, start=found[0].number if len(found) == 1 else 1):
        if segment.number != expected:
            raise TraceReadError(
                f"{trace}: segment {expected} is missing; there is {segment.path.name}. Put it back beside the others."
            )
        try:
            yield from _lines(segment, segment is found[-1], notice)
        except OSError as error:
            raise TraceReadError(f"{segment.path} cannot be read: {error.strerror or error}.") from error


def _lines(segment: Segment, last: bool, notice: Callable[[str], None]) -> Iterator[Line]:
    path = segment.path
    with open_segment(path) as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) > LINE_BYTES_MAX:
                    raise TraceReadError(f"{path} line {number}: longer than any event; this is no trace.")
                if not last:
                    raise TraceReadError(
                        f"{path} line {number}: torn, though the trace goes on in another file. It was cut after it was "
                        "closed; copy it anew from where it came from."
                    )
                notice(f"{path} line {number}: torn, as a crash leaves it; cut off")
                return
            yield Line(path, number, line)


class Decoder:
    """Turns the lines of one trace, in their order, into events of the current schema version.

    ``skip_unknown``: skips events of unknown kinds, and reports them when it is closed, instead of raising errors.
    """

    def __init__(self, notice: Callable[[str], None] = lambda _: None, *, skip_unknown: bool = False) -> None:
        self._notice = notice
        self._skip_unknown = skip_unknown
        self._skipped: dict[str, int] = {}
        self._version = SCHEMA_VERSION
        self._run = ""
        self.seq: int | None = None
        """Number of the last event."""

    def event(self, line: Line) -> Event | None:
        """Returns the event of a line; None for a segment's header, or a skipped event. Raises TraceReadError."""
        if line.number == 1 and line.data.startswith(HEADER_START):
            self._take_header(line)
            return None
        if RUN_STARTED in line.data:  # a run resumed by a newer version continues in that version's form
            self._version = self._stated_version(line)
        event = self._decode(line, self._version)
        if event is None:
            return None
        if line.number == 1 and self.seq is None and not isinstance(event, RunStarted):
            raise TraceReadError(f"{line.path} line 1: a trace begins with run_started, not with {event.kind}.")
        if isinstance(event, RunStarted) and not self._run:
            self._run = event.run
        self.seq = event.seq
        return event

    def close(self) -> None:
        for kind, count in self._skipped.items():
            self._notice(f"{count} events of the unknown kind {kind!r} were left out")

    def _decode(self, line: Line, version: int) -> Event | None:
        try:
            if version == SCHEMA_VERSION:
                return EVENT.validate_json(line.data)
            return EVENT.validate_python(upgraded(json.loads(line.data), version))
        except ValidationError as error:
            first = error.errors()[0]
            place, reason = ".".join(map(str, first["loc"])) or "the line", first["msg"]
            if first["type"] == "union_tag_invalid":
                kind = str(first.get("ctx", {}).get("tag"))
                if self._skip_unknown:
                    self._skipped[kind] = self._skipped.get(kind, 0) + 1
                    return None
                raise TraceReadError(
                    f"{line.path} line {line.number}: an event of the unknown kind {kind!r}. Read it with the version of "
                    "SpecLRM that wrote it; `speclrm trace show --skip-unknown` shows it without such events."
                ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            place, reason = f"form {version}", f"{type(error).__name__}: {error}"
        raise TraceReadError(
            f"{line.path} line {line.number}: no event of a trace ({place}: {reason}). The file was changed or is another "
            "kind; `speclrm trace check` lists all that is wrong with it."
        )

    def _take_header(self, line: Line) -> None:
        try:
            header = SegmentHeader.model_validate_json(line.data)
        except ValidationError as error:
            raise TraceReadError(
                f"{line.path} line 1: no head of a segment ({error.errors()[0]['msg']}). The file was changed."
            ) from None
        self._check_version(line, header.schema_version)
        self._version = header.schema_version
        if self._run and header.run != self._run:
            raise TraceReadError(
                f"{line.path}: a segment of run {header.run} among those of run {self._run}. Take it out of the folder."
            )
        self._run = header.run
        if self.seq is not None and header.seq != self.seq + 1:
            raise TraceReadError(
                f"{line.path}: goes on with event {header.seq}, but the segment before it ends with {self.seq}. One of "
                "them was cut or belongs to another trace."
            )
        self.seq = header.seq - 1

    def _stated_version(self, line: Line) -> int:
        """Returns the schema version that a run_started states; a broken one is reported as the event that it is."""
        try:
            version = json.loads(line.data)["schema_version"]
        except (ValueError, KeyError, TypeError):
            return self._version
        if not isinstance(version, int) or version < 1:
            return self._version
        self._check_version(line, version)
        return version

    def _check_version(self, line: Line, version: int) -> None:
        if version > SCHEMA_VERSION:
            raise TraceReadError(
                f"{line.path}: written by a newer SpecLRM (form {version}; this one reads up to {SCHEMA_VERSION}). "
                "Read it with that version."
            )
