"""Grades the answers in a file of any tool."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import AsyncExitStack
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from speclrm.evaluators.answers import find_answer
from speclrm.evaluators.benchmarks import answer_of, text_of
from speclrm.evaluators.datasets import ID_COLUMNS
from speclrm.evaluators.grading import Grader
from speclrm.evaluators.tables import read_rows
from speclrm.runtime.errors import DatasetError
from speclrm.runtime.events import Outcome
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GRADED_AHEAD = 256
"""Rows of a file that are graded side by side."""


class GradedRow(BaseModel):
    """``row``: from 1, in the order of the file. ``answer``: as found in the text, or None. ``gold``: None where the row has
    none, which is then ``ungraded``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: int
    id: str | None
    outcome: Outcome
    answer: str | None
    gold: str | None


async def grade_file(
    path: Path,
    text_column: str,
    gold_column: str,
    take: Callable[[GradedRow], None],
    *,
    answers_only: bool = False,
) -> None:
    """Grades the rows of a file and passes them to ``take`` in the file's order, as they come.

    Raises:
        DatasetError: the file or a row cannot be read, or a column is missing; the rows graded so far have been passed on.
            Or no row has a right answer.
    """
    async with AsyncExitStack() as stack:
        rows = _gradable(path, text_column, gold_column)
        first = next(rows, None)
        if first is None:
            raise DatasetError(f"{path} holds no row.")
        grader = await stack.enter_async_context(Grader(workers=max(1, len(os.sched_getaffinity(0)))))

        async def judge(number: int, name: str | None, text: str, gold: str | None) -> GradedRow:
            answer = (text.strip() or None) if answers_only else find_answer(text)
            outcome: Outcome = "no_answer" if gold is not None else "ungraded"
            if gold is not None and answer is not None:
                outcome = await grader.grade(answer, Problem(str(number), "", gold))
            return GradedRow(row=number, id=name, outcome=outcome, answer=answer, gold=gold)

        def passed_on(row: GradedRow) -> None:
            nonlocal graded
            graded = graded or row.gold is not None
            take(row)

        graded = False
        broken: DatasetError | None = None
        async with asyncio.TaskGroup() as group:
            waiting: deque[asyncio.Task[GradedRow]] = deque()
            try:
                for row in chain([first], rows):
                    waiting.append(group.create_task(judge(*row)))
                    if len(waiting) >= GRADED_AHEAD:
                        passed_on(await waiting.popleft())
            except DatasetError as error:
                broken = error  # raised once the rows before it have been passed on
            while waiting:
                passed_on(await waiting.popleft())
    if broken is not None:
        raise broken
    if not graded:
        raise DatasetError(
            f"{path}: no row was graded, because {gold_column!r} is empty in each. Name the column with the right answers "
            "with --gold-column."
        )


def _gradable(path: Path, text_column: str, gold_column: str) -> Iterator[tuple[int, str | None, str, str | None]]:
    for number, (place, row) in enumerate(read_rows(path), start=1):
        for column in (text_column, gold_column):
            if column not in row:
                raise DatasetError(
                    f"{path} {place}: no column {column!r}; the row has {', '.join(map(repr, row)) or 'nothing'}. Name "
                    "the columns with --text-column and --gold-column."
                )
        try:
            gold = answer_of(row, (gold_column,))
            text = text_of(row, (text_column,)) or ""
            name = text_of(row, ID_COLUMNS)
        except DatasetError as error:
            raise DatasetError(f"{path} {place}: {error}.") from None
        yield number, name, text, gold
