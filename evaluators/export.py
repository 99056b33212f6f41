"""Traces as tables: a row a step, or a row a sample, in CSV or Parquet. Rows are written as the events come.

What models wrote is untrusted: no cell of a CSV file is a formula to a spreadsheet.
"""

from __future__ import annotations

import csv
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict

from speclrm.evaluators.training_pairs import PairRow, pair_rows
from speclrm.runtime.errors import ResultsError
from speclrm.runtime.events import (
    OperationDropped,
    ProblemStarted,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepScored,
    StepWritten,
    TrackFinished,
    TrackStarted,
)
from speclrm.runtime.files import reason, remedy, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from speclrm.runtime.events import Event, Operation

Rows = Literal["steps", "samples", "pairs"]
ROWS_AT_ONCE = 1_000
"""Rows of a Parquet row group: what is held in memory."""
_FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")
"""What a cell begins with that a spreadsheet takes for a formula: OWASP's list (CSV Injection)."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


class StepRow(BaseModel):
    """A step. ``fate``: ``accepted``, ``rewritten``, ``written``, ``closing``, or ``dropped`` for one never committed.

    ``text``: as committed; ``draft``: of a draft that was rewritten. Tokens and seconds are sums over the step's requests,
    given up ones included; ``t``: run time of its end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str
    repeat: int
    track: str
    step: int
    fate: str
    text: str
    draft: str | None
    tokens: int
    score: float | None
    mass: float | None
    t: float
    draft_output_tokens: int
    target_output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    queue_s: float
    engine_s: float


class SampleRow(BaseModel):
    """A finished sample. ``t``: run time of its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str
    repeat: int
    outcome: str
    answer: str | None
    gold: str | None
    winner: str | None
    tracks: int
    answers: int
    steps: int
    accepted: int
    rewritten: int
    tokens: int
    seconds: float
    t: float


FATES = {"draft": "accepted", "rewrite": "rewritten", "write": "written", "closing": "closing"}
MODELS: dict[Rows, type[BaseModel]] = {"steps": StepRow, "samples": SampleRow, "pairs": PairRow}


class _Open:
    """A step that is not decided."""

    def __init__(self) -> None:
        self.made: StepDrafted | StepWritten | None = None
        self.draft: str | None = None
        self.score: float | None = None
        self.mass: float | None = None
        self.sums = dict.fromkeys(("prompt_tokens", "cached_tokens"), 0)
        self.output = {"draft": 0, "target": 0}
        self.queue_s = self.engine_s = 0.0

    def spend(self, role: str, operations: Iterable[Operation]) -> None:
        for one in operations:
            self.output[role] += one.output_tokens
            self.sums["prompt_tokens"] += one.prompt_tokens
            self.sums["cached_tokens"] += one.cached_tokens
            self.queue_s += one.queue_s
            self.engine_s += one.engine_s

    def row(self, event: StepCommitted | TrackFinished, step: int, fate: str, tokens: int) -> StepRow:
        return StepRow(
            problem=event.problem,
            repeat=event.repeat,
            track=event.track,
            step=step,
            fate=fate,
            text=self.made.text if self.made else "",
            draft=self.draft,
            tokens=tokens,
            score=self.score,
            mass=self.mass,
            t=event.t,
            draft_output_tokens=self.output["draft"],
            target_output_tokens=self.output["target"],
            **self.sums,
            queue_s=round(self.queue_s, 6),
            engine_s=round(self.engine_s, 6),
        )


def step_rows(events: Iterable[Event]) -> Iterator[StepRow]:
    """Returns a row a step, in the order in which steps were decided."""
    held: dict[tuple[str, int, str], _Open] = {}
    for event in events:
        if isinstance(event, StepDrafted | StepWritten | StepScored | StepCommitted | OperationDropped | TrackFinished):
            key = event.problem, event.repeat, event.track
            step = held.setdefault(key, _Open())
            if isinstance(event, StepDrafted):
                step.spend("draft", event.operations)
                step.made = event
            elif isinstance(event, StepWritten):
                step.spend("target", event.operations)
                if event.write_kind == "rewrite" and step.made is not None:
                    step.draft = step.made.text
                step.made = event
            elif isinstance(event, StepScored):
                step.spend("target", event.operations)
                step.score, step.mass = event.value, event.mass
            elif isinstance(event, OperationDropped):
                step.spend(event.role, (event.operation,))
            else:
                del held[key]
                if isinstance(event, StepCommitted):
                    yield step.row(event, event.step, FATES[event.origin], event.tokens)
                elif step.made is not None:
                    yield step.row(event, step.made.step, "dropped", len(step.made.ids))


def sample_rows(events: Iterable[Event]) -> Iterator[SampleRow]:
    """Returns a row a finished sample, in the order of their ends."""
    held: dict[tuple[str, int], dict[str, Any]] = {}
    for event in events:
        match event:
            case ProblemStarted():
                held[event.problem, event.repeat] = {
                    "gold": event.gold,
                    **dict.fromkeys(("tracks", "answers", "steps", "accepted", "rewritten", "tokens"), 0),
                }
            case TrackStarted() | StepCommitted() | TrackFinished() if (event.problem, event.repeat) in held:
                row = held[event.problem, event.repeat]
                if isinstance(event, TrackStarted):
                    row["tracks"] += 1
                elif isinstance(event, TrackFinished):
                    row["answers"] += event.answer is not None
                else:
                    row["steps"] += 1
                    row["tokens"] += event.tokens
                    row["accepted"] += event.origin == "draft"
                    row["rewritten"] += event.origin == "rewrite"
            case SampleFinished():
                yield SampleRow(
                    problem=event.problem,
                    repeat=event.repeat,
                    outcome=event.outcome,
                    answer=event.answer,
                    winner=event.winner,
                    seconds=event.seconds,
                    t=event.t,
                    **held.pop((event.problem, event.repeat)),
                )
            case _:
                pass


class _Writer(Protocol):
    def write(self, rows: list[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


def export(events: Iterable[Event], path: Path, rows: Rows) -> int:
    """Writes the table to a ``.csv`` or ``.parquet`` file, whole or not at all; returns how many rows it has.

    Raises:
        ResultsError: the file's ending is another, it exists already, cannot be written, or pyarrow is missing.
    """
    if path.exists():
        raise ResultsError(f"{path} exists and is not written over. Remove it or choose another name.")
    make: dict[Rows, Callable[[Iterable[Event]], Iterator[BaseModel]]] = {
        "steps": step_rows,
        "samples": sample_rows,
        "pairs": pair_rows,
    }
    table = make[rows](events)
    count = 0
    try:
        with replaced(path) as fresh, closing(_writer(path.suffix, fresh, MODELS[rows])) as writer:
            batch: list[dict[str, Any]] = []
            for row in table:
                batch.append(row.model_dump())
                count += 1
                if len(batch) >= ROWS_AT_ONCE:
                    writer.write(batch)
                    batch = []
            writer.write(batch)
    except OSError as error:
        raise ResultsError(
            f"{path} cannot be written: {reason(error)}. {remedy(error)}, or choose another place."
        ) from error
    return count


def _writer(suffix: str, path: Path, model: type[BaseModel]) -> _Writer:
    if suffix == ".csv":
        return _Csv(path, model)
    if suffix == ".parquet":
        return _Parquet(path, model)
    raise ResultsError(f"A table is a .csv or a .parquet file, not {suffix or 'one without an ending'}.")


class _Csv:
    def __init__(self, path: Path, model: type[BaseModel]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._csv = csv.DictWriter(self._file, list(model.model_fields))
        self._csv.writeheader()

    def write(self, rows: list[dict[str, Any]]) -> None:
        self._csv.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)

    def close(self) -> None:
        self._file.close()


def _no_formula(value: Any) -> Any:
    """Puts a single quote before text that a spreadsheet would compute, which makes it text there. Numbers stay."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


class _Parquet:
    def __init__(self, path: Path, model: type[BaseModel]) -> None:
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError:
            raise ResultsError("Parquet files need pyarrow. Install speclrm[parquet], or write a .csv file.") from None
        self._arrow: Any = arrow
        numbers = self._arrow.float64()
        types = {
            "tuple[float": self._arrow.list_(numbers),
            "float": numbers,
            "bool": self._arrow.bool_(),
            "int": self._arrow.int64(),
            "str": self._arrow.string(),
        }
        columns = [
            (name, next(kind for word, kind in types.items() if word in str(field.annotation)))
            for name, field in model.model_fields.items()
        ]
        self._schema = self._arrow.schema(columns)
        self._file: Any = cast("Any", parquet).ParquetWriter(str(path), self._schema)

    def write(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._file.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        self._file.close()
