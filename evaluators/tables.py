"""Rows of JSONL, JSON, CSV and Parquet files, one at a time, each with the place where it stands."""

from __future__ import annotations

import csv
import gzip
import json
from codecs import BOM_UTF8
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from speclrm.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase
    from pathlib import Path

Row = dict[str, Any]

_PICKLE_START = b"\x80"
"""Every pickle since protocol 2 begins with it, and no text does."""
FORMATS = "a .jsonl, .csv or .parquet file (.jsonl.gz and a .json array of rows too)"
CELL_CHARACTERS_MAX = 1 << 28
"""Of a CSV file: thoughts of a million tokens fit, and a quote that is never closed is found."""


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields ``("line 3", {...})`` for each row. The form goes by the file's name; what is no CSV or Parquet is read as JSONL.

    Raises:
        DatasetError: the file cannot be read, is a pickle, or a row is broken; file and line are named.
    """
    if path.is_dir():
        raise DatasetError(f"{path} is a folder. Give {FORMATS}.")
    if not path.is_file():
        raise DatasetError(f"There is no file {path}. Give {FORMATS}.")
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if path.suffix in (".pickle", ".pkl") or start.startswith(_PICKLE_START):
            raise DatasetError(
                f"{path} is a pickle. It is not read: loading a pickle runs whatever code is in it. Write its rows to "
                "a JSONL file from a program that you trust."
            )
        if path.suffix == ".parquet" or start == b"PAR1":
            yield from _parquet(path)
        elif path.suffix == ".csv":
            yield from _csv(path)
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                yield from _jsonl(path, cast("BufferedIOBase", file))
        else:
            with path.open("rb") as file:
                yield from _jsonl(path, file)
    except (OSError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _jsonl(path: Path, file: BufferedIOBase) -> Iterator[tuple[str, Row]]:
    first = True
    for number, line in enumerate(file, start=1):
        if not (line.removeprefix(BOM_UTF8) if number == 1 else line).strip():
            continue
        place = f"line {number}"
        if first and line.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
            if (rows := _array(path, b"\n" * (number - 1) + line.removeprefix(BOM_UTF8) + file.read())) is not None:
                yield from rows
                return
            raise DatasetError(
                f"{path} {place}: neither a row nor the beginning of a JSON array of rows. Each line must be one JSON "
                "object, or the file one array of such."
            )
        first = False
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} {place}: not UTF-8 ({error.reason}). Convert the file.") from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} {place}: not JSON ({error}). Each line must be one JSON object.") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{path} {place}: not a JSON object but {type(row).__name__}.")
        yield place, cast("Row", row)


def _array(path: Path, text: bytes) -> Iterator[tuple[str, Row]] | None:
    """Returns the rows of a file that is one JSON array, or None where it is none."""
    try:
        rows = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error.reason}). Convert the file.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return None
        number = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DatasetError(
            f"{path} line {number}: not JSON ({error}). The file begins as an array of rows and must be one."
        ) from error
    return _items(path, rows)


def _items(path: Path, rows: list[Any]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DatasetError(f"{path} row {number}: not a JSON object but {type(row).__name__}.")
        yield f"row {number}", cast("Row", row)


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = iter(reader)
        begin = 1  # the line in which a row begins: cells may hold ends of lines, the header's too
        try:
            begin = 1 + (reader.line_num if reader.fieldnames else 0)
            while (row := _next_row(rows)) is not None:
                if None in row or None in row.values():
                    raise DatasetError(
                        f"{path} line {begin}: the row has not as many cells as the header has names. Put cells that hold "
                        "commas or line ends between double quotes."
                    )
                yield f"line {reader.line_num}", dict(row)
                begin = reader.line_num + 1
        except csv.Error as error:
            raise DatasetError(f"{path} line {begin}: not CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} line {reader.line_num + 1} or below: not UTF-8. Convert the file.") from error


def _next_row(rows: Iterator[dict[str | Any, Any]]) -> dict[str | Any, Any] | None:
    """Returns the next row, or None. The limit of a cell is the whole program's: it is raised for no longer than that."""
    limit = csv.field_size_limit(CELL_CHARACTERS_MAX)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    if find_spec("pyarrow") is None:
        raise DatasetError(f"{path}: Parquet needs the package pyarrow: pip install 'speclrm[parquet]'.")
    import pyarrow as arrow  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

    library, errors = cast("Any", parquet), cast("Any", arrow)
    try:
        with closing(library.ParquetFile(path)) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except errors.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DatasetError(f"{path} is no whole Parquet file: {reason}. Write it anew, or give {FORMATS}.") from error
