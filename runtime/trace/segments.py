"""Finds, opens and compresses the files of a trace: the live file and the closed segments before it.

``trace.jsonl`` is written; when it is large enough it becomes ``trace.0001.jsonl`` and a new ``trace.jsonl`` begins,
then ``trace.0002.jsonl``, and so on. A closed segment may be compressed, which adds ``.zst``. The first segment begins
with ``run_started``, each later one with a ``SegmentHeader``, so that a segment that has lost its name is still known.
"""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from speclrm.runtime.errors import SettingsError
from speclrm.runtime.events import SCHEMA_VERSION
from speclrm.runtime.files import replaced

if TYPE_CHECKING:
    from pathlib import Path

TRACE_FILE = "trace.jsonl"
COMPRESSED = ".zst"
_CLOSED = re.compile(r"(?P<stem>.+)\.(?P<number>\d{4,})\.jsonl(?P<compressed>\.zst)?")
_COPY_BYTES = 1 << 20


class SegmentHeader(BaseModel):
    """The first line of a segment that continues another: no event, and not numbered among the events.

    ``segment``: from 2. ``seq``: of the first event after this line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["segment_started"] = "segment_started"
    schema_version: int = SCHEMA_VERSION
    run: str
    segment: int
    seq: int


HEADER_START = b'{"kind":"segment_started"'


class Segment(NamedTuple):
    """One file of a trace. ``number``: from 1. ``live``: whether a run writes it."""

    path: Path
    number: int
    live: bool


def closed_path(live: Path, number: int) -> Path:
    """Returns the path of the live file once it is segment ``number``."""
    return live.with_name(f"{live.stem}.{number:04d}.jsonl")


def segments(path: Path) -> list[Segment]:
    """Returns the files of the trace whose live file is ``path``, first to last; empty if there are none.

    A closed segment given by its own name stands alone.
    """
    alone = _CLOSED.fullmatch(path.name)
    if alone and path.exists():
        return [Segment(path, int(alone["number"]), live=False)]
    closed: dict[int, Path] = {}
    if path.parent.is_dir():
        for name in sorted(entry.name for entry in os.scandir(path.parent)):
            found = _CLOSED.fullmatch(name)
            # A crash may leave a segment beside its compressed form; the plain one, sorted first, is then the whole one.
            if found and found["stem"] == path.stem:
                closed.setdefault(int(found["number"]), path.with_name(name))
    result = [Segment(closed[number], number, live=False) for number in sorted(closed)]
    if path.exists():
        result.append(Segment(path, max(closed, default=0) + 1, live=True))
    return result


def open_segment(path: Path) -> io.BufferedIOBase:
    """Opens the segment's bytes, decompressed if necessary. Raises SettingsError if that needs a missing package."""
    if path.suffix != COMPRESSED:
        return path.open("rb")
    stream: Any = _pyarrow(path).input_stream(str(path), compression="zstd")
    return io.BufferedReader(stream, _COPY_BYTES)


def check_compression() -> None:
    """Raises SettingsError if closed segments cannot be compressed here."""
    _pyarrow(None)


def compress(path: Path) -> Path:
    """Replaces a closed segment by its compressed form. A crash leaves one of the two, or both, whole."""
    packed = path.with_name(path.name + COMPRESSED)
    with replaced(packed) as fresh:
        stream: Any = _pyarrow(path).CompressedOutputStream(str(fresh), "zstd")
        with path.open("rb") as source, stream as sink:
            while block := source.read(_COPY_BYTES):
                sink.write(block)
    path.unlink()
    return packed


def _pyarrow(path: Path | None) -> Any:
    try:
        import pyarrow as arrow
    except ImportError:
        what = "Compressed trace segments" if path is None else f"{path} is compressed, and that"
        raise SettingsError(
            f"{what} need{'s' if path else ''} pyarrow, which is not installed. Install speclrm[parquet], or unpack the "
            "segments with `zstd -d --rm trace.*.jsonl.zst`."
        ) from None
    return arrow
