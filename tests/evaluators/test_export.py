"""Tables of a trace: what is in the cells of a CSV file, and of a Parquet file."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest

from speclrm.evaluators.export import export
from speclrm.runtime.events import (
    ProblemStarted,
    SampleFinished,
    StepCommitted,
    StepScored,
    StepWritten,
    TrackFinished,
    TrackStarted,
)

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.events import Event

CELLS = [
    ("=1+1", "'=1+1"),
    ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
    ("+1+2", "'+1+2"),
    ("-2+3", "'-2+3"),
    ("-x", "'-x"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("\t=1", "'\t=1"),
    ("\r=1", "'\r=1"),
    ("\n=1", "'\n=1"),
    ("＝1+1", "'＝1+1"),
    ("-3", "-3"),
    ("+3.5", "+3.5"),
    ("-1-1", "'-1-1"),
    ("We add: x = 1", "We add: x = 1"),
    ("'=1", "'=1"),
    ("", ""),
]


def events(text: str) -> list[Event]:
    sample = {"problem": text, "repeat": 0}
    step = {**sample, "track": "A1", "step": 0}
    return [
        ProblemStarted(**sample, text=text, gold=text),  # type: ignore[arg-type]
        TrackStarted(**sample, track="A1", hint="", prompt_ids={}),  # type: ignore[arg-type]
        StepWritten(**step, write_kind="write", text=text, ids=(1, 2), operations=()),  # type: ignore[arg-type]
        StepScored(**step, value=-1.5, mass=1.0, digits=(), scorer="likelihood", operations=()),  # type: ignore[arg-type]
        StepCommitted(**step, origin="write", tokens=2, score=0.0),  # type: ignore[arg-type]
        TrackFinished(**sample, track="A1", reason="answer", answer=text, tokens=2),  # type: ignore[arg-type]
        SampleFinished(**sample, answer=text, winner="A1", outcome="correct", seconds=1.0),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize(("text", "cell"), CELLS)
def test_no_text_is_a_formula_in_a_csv_file_and_numbers_stay_numbers(tmp_path: Path, text: str, cell: str) -> None:
    for kind, columns in (("steps", ("problem", "text")), ("samples", ("problem", "answer", "gold"))):
        path = tmp_path / f"{kind}.csv"
        export(events(text), path, kind)  # type: ignore[arg-type]
        with path.open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        assert [row[name] for name in columns] == [cell] * len(columns)
        if kind == "steps":
            assert (row["score"], row["tokens"], row["fate"]) == ("-1.5", "2", "written")


@pytest.mark.parametrize("text", [text for text, _ in CELLS])
def test_a_parquet_file_has_every_text_as_it_is(tmp_path: Path, text: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(events(text), tmp_path / "steps.parquet", "steps")
    (row,) = parquet.read_table(tmp_path / "steps.parquet").to_pylist()
    assert (row["problem"], row["text"], row["score"]) == (text, text, -1.5)
