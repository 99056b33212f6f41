"""``grade``: grades the outputs of any tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speclrm.commands.errors import guard, say
from speclrm.commands.evaluate import OUTCOMES
from speclrm.commands.screen import run_async


def grade(
    file: Annotated[Path, typer.Argument(help="A JSONL, CSV or Parquet file.")],
    text_column: Annotated[str, typer.Option(help="Column that holds the texts to find answers in.")] = "output",
    gold_column: Annotated[str, typer.Option(help="Column that holds the right answers.")] = "gold",
    answers_only: Annotated[bool, typer.Option("--answers-only", help="Take each text as the answer itself.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per row, in order.")] = False,
) -> None:
    """Grade the outputs of any tool: correct, wrong, no_answer or grader_failed for each row.

    A row without a right answer is ungraded, and does not count.
    """

    def start() -> None:
        from collections import Counter

        from speclrm.app import grade as grading
        from speclrm.commands.display import harmless, print_json
        from speclrm.commands.logs import configure

        configure("error")  # an answer that cannot be graded is a row of the result, not a warning
        outcomes: Counter[str] = Counter()

        def take(row: grading.GradedRow) -> None:
            outcomes[row.outcome] += 1
            if json:
                print_json(row.model_dump(mode="json"))
            elif row.gold is None:
                say(f"row {row.row}: ungraded: {gold_column!r} is empty")
            elif row.outcome != "correct":
                answer = "no answer" if row.answer is None else harmless(row.answer)
                say(f"row {row.row}: {row.outcome}: {answer}, gold {harmless(row.gold)}")

        run_async(lambda: grading.grade_file(file, text_column, gold_column, take, answers_only=answers_only))
        total = outcomes.total()
        graded = total - outcomes["ungraded"]
        if not json:
            counts = ", ".join(f"{outcomes[name]} {name}" for name in OUTCOMES if outcomes[name])
            of = "" if graded == total else f" of {graded} graded rows"
            say(f"{total} rows: {counts}; accuracy {outcomes['correct'] / graded:.1%}{of}")

    guard(start)
