"""Rows of JSONL, CSV and Parquet files, one at a time, each with the place where it stands."""

from __future__ import annotations

import csv
import gzip
import json
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
FORMATS = "a .jsonl, .csv or .parquet file (.jsonl.gz too)"


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """``("line 3", {...})`` for each row. The form goes by the file's name; what is no CSV or Parquet is read as JSONL.

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
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} {place}: not UTF-8 ({error.reason}). Convert the file.") from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} {place}: not JSON ({error}). Each line must be one JSON object.") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{path} {place}: not a JSON object but {type(row).__name__}.")
        yield place, cast("Row", row)


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise DatasetError(
                        f"{path} {place}: the row has not as many cells as the header has names. Put cells that hold commas "
                        "or line ends between double quotes."
                    )
                yield place, dict(row)
        except csv.Error as error:
            raise DatasetError(f"{path} line {reader.line_num}: not CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} behind line {reader.line_num}: not UTF-8. Convert the file.") from error


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
