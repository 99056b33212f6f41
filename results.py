"""Runs as they lie in folders: found, read from their traces, evaluated."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from contextlib import AsyncExitStack
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from speclrm.evaluators.answers import find_answer
from speclrm.evaluators.benchmarks import text_of
from speclrm.evaluators.compare import compared
from speclrm.evaluators.datasets import ID_COLUMNS
from speclrm.evaluators.evaluation import Evaluation, RunResults, evaluate, grouped
from speclrm.evaluators.grading import Grader, plainly_same
from speclrm.evaluators.metrics import Summary
from speclrm.evaluators.report import stale_reports, write_reports
from speclrm.evaluators.tables import read_rows
from speclrm.evaluators.wanted import Wanted
from speclrm.runtime.errors import DatasetError, ResultsError, TraceReadError
from speclrm.runtime.events import Outcome, RunStarted
from speclrm.runtime.journal import TRACE_FILE
from speclrm.runtime.protocols import Problem
from speclrm.runtime.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

PICKLES = (".pickle", ".pkl")
TRACES = (TRACE_FILE, "trace.0001.jsonl", "trace.0001.jsonl.zst")
GRADED_AHEAD = 256
"""Rows of a file that are graded side by side."""


class GradedRow(BaseModel):
    """``row``: from 1, as it stands in the file. ``answer``: as found in the text, or None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: int
    id: str | None
    outcome: Outcome
    answer: str | None
    gold: str


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders that hold a trace, at any depth, each once, in the order of their names.

    Raises:
        ResultsError: a folder is missing, holds no run, or holds results in the pickle format of the original scripts,
            which would be left out in silence.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.exists():
            raise ResultsError(f"There is no {folder}. Give the --output-dir of a run, or a folder of such.")
        if folder.suffix in PICKLES:
            raise ResultsError(_pickled(folder, 1))
        if not folder.is_dir():
            raise ResultsError(f"{folder} is a file. Give the folder of a run, which holds its {TRACE_FILE}.")
        pickles = sorted(path for suffix in PICKLES for path in folder.rglob(f"*{suffix}"))
        if pickles:
            raise ResultsError(_pickled(pickles[0], len(pickles)))
        # A crash between two segments leaves a closed one alone.
        traces = sorted(path for name in TRACES for path in folder.rglob(name))
        if not traces:
            raise ResultsError(
                f"{folder} holds no run: there is no {TRACE_FILE} in it or below. Give the --output-dir of a run."
            )
        found.update({path.parent.resolve(): path.parent for path in traces})
    return list(found.values())


def _pickled(path: Path, count: int) -> str:
    others = f" and {count - 1} more such files" if count > 1 else ""
    return (
        f"{path}{others}: pickles, as the original scripts write them. They are not read: loading a pickle runs whatever "
        "code is in it. Move them out of the folder; to grade their texts, write those to a JSONL file from a program "
        "that you trust and use `speclrm grade`."
    )


def read_config(directory: Path) -> dict[str, JsonValue]:
    """What a run was asked, from the beginning of its trace; nothing where that is empty. Raises TraceReadError."""
    for event in read_trace(directory / TRACE_FILE):
        if isinstance(event, RunStarted):
            return event.config
    return {}


def read_run(directory: Path, notice: Callable[[str], None] = lambda _: None, *, rebuild: bool = False) -> RunResults:
    """A run from its trace. Raises TraceReadError.

    Its results.jsonl and summary.json are written anew with ``rebuild``, where they are missing or say something else;
    without it that is told.
    """
    fold = Summary()
    config: dict[str, JsonValue] = {}
    for event in read_trace(directory / TRACE_FILE, notice):
        if isinstance(event, RunStarted):
            config = config or event.config
        fold.add(event)
    summary = fold.summary()
    if not summary.run:
        raise ResultsError(f"{directory / TRACE_FILE} is empty: the run ended before anything was written. Remove it.")
    finished = summary.status != "running"
    if summary.status != "finished":
        state = "did not end by itself" if not finished else f"was {summary.status}"
        notice(f"{directory}: the run {state}; evaluated as far as it came")
    if stale := stale_reports(directory, summary):
        what = "; ".join(stale)
        if not rebuild:
            notice(f"{directory}: {what}; evaluated from the trace. --rebuild writes them anew")
        else:
            try:
                write_reports(directory, summary)
            except ResultsError as error:
                notice(f"{directory}: {what}; {error}")
            else:
                notice(f"{directory}: {what}; written anew from the trace")
    return RunResults(str(directory), config, summary, summary.status == "finished", tuple(fold.track_rewrites()))


async def evaluate_runs(
    folders: Sequence[Path],
    wanted: Wanted | None = None,
    *,
    notice: Callable[[str], None] = lambda _: None,
    rebuild: bool = False,
) -> list[Evaluation]:
    """An evaluation for each configuration among the runs in the folders, beside the first baseline among them; runs that
    are not ``wanted`` are told of.

    ``rebuild``: as ``read_run``.

    Raises:
        ResultsError: there is nothing to evaluate; the message says what there is.
        TraceReadError: a trace is broken.
    """
    wanted = wanted or Wanted()
    chosen: list[RunResults] = []
    others: Counter[str] = Counter()
    for directory in find_runs(folders):
        try:
            config = read_config(directory)
            if config and not wanted.takes(config):
                others[_label(config)] += 1
            else:
                chosen.append(read_run(directory, notice, rebuild=rebuild))
        except TraceReadError as error:
            raise TraceReadError(f"{error} Move {directory} away, or name the other runs one by one.") from None
    there = "; ".join(f"{label} ({count})" if count > 1 else label for label, count in sorted(others.items()))
    if not chosen:
        raise ResultsError(
            f"No run of {wanted} there. There are: {there}. Name one of these, or evaluate all with "
            f"`speclrm eval {folders[0]}`."
        )
    if others:
        notice(f"only {wanted} was asked for; left out: {there}")
    async with AsyncExitStack() as stack:
        grader: Grader | None = None

        async def same(one: str, other: str) -> bool:
            nonlocal grader
            verdict = plainly_same(one, other)
            if verdict is not None:
                return verdict
            if grader is None:  # its processes take seconds to start, and most answers are plain
                grader = await stack.enter_async_context(Grader())
            return await grader.same(one, other)

        groups = grouped(chosen)
        for group in groups:
            if twice := _repeated(group):
                notice(
                    f"{twice} samples are of the same problem, repeat number and same seed as another run's: they are not "
                    "independent of each other, so pass@k and majority say less than they seem to"
                )
        return compared([await evaluate(group, same) for group in groups])


def _repeated(group: Sequence[RunResults]) -> int:
    drawn = Counter(
        (row.problem, row.repeat, str(run.config["seed"]))
        for run in group
        for row in run.summary.samples
        if run.config.get("seed") is not None
    )
    return sum(count - 1 for count in drawn.values())


def _label(config: Mapping[str, JsonValue]) -> str:
    return f"{config.get('strategy')} on {config.get('dataset')} by {config.get('target')}"


async def grade_file(
    path: Path,
    text_column: str,
    gold_column: str,
    take: Callable[[GradedRow], None],
    *,
    answers_only: bool = False,
) -> None:
    """Grades the rows of a file and hands them to ``take`` in the file's order, as they come.

    Raises:
        DatasetError: the file or a row cannot be read, or a column is missing; what was graded has been handed over.
    """
    async with AsyncExitStack() as stack:
        rows = _gradable(path, text_column, gold_column)
        first = next(rows, None)
        if first is None:
            raise DatasetError(f"{path} holds no row.")
        grader = await stack.enter_async_context(Grader(workers=max(1, len(os.sched_getaffinity(0)))))

        async def judge(number: int, name: str | None, text: str, gold: str) -> GradedRow:
            answer = (text.strip() or None) if answers_only else find_answer(text)
            outcome: Outcome = "no_answer"
            if answer is not None:
                outcome = await grader.grade(answer, Problem(str(number), "", gold))
            return GradedRow(row=number, id=name, outcome=outcome, answer=answer, gold=gold)

        broken: DatasetError | None = None
        async with asyncio.TaskGroup() as group:
            waiting: deque[asyncio.Task[GradedRow]] = deque()
            try:
                for row in chain([first], rows):
                    waiting.append(group.create_task(judge(*row)))
                    if len(waiting) >= GRADED_AHEAD:
                        take(await waiting.popleft())
            except DatasetError as error:
                broken = error  # told once the rows before it have been handed over
            while waiting:
                take(await waiting.popleft())
    if broken is not None:
        raise broken


def _gradable(path: Path, text_column: str, gold_column: str) -> Iterator[tuple[int, str | None, str, str]]:
    for number, (place, row) in enumerate(read_rows(path), start=1):
        for column in (text_column, gold_column):
            if column not in row:
                raise DatasetError(
                    f"{path} {place}: no column {column!r}; the row has {', '.join(map(repr, row)) or 'nothing'}. Name "
                    "the columns with --text-column and --gold-column."
                )
        try:
            gold = text_of(row, (gold_column,))
            text = text_of(row, (text_column,)) or ""
            name = text_of(row, ID_COLUMNS)
        except DatasetError as error:
            raise DatasetError(f"{path} {place}: {error}.") from None
        if gold is None or not gold.strip():
            raise DatasetError(
                f"{path} {place}: {gold_column!r} is empty. Each row needs a right answer to be graded by."
            )
        yield number, name, text, gold
