"""Measures how many answers a minute the grader judges, each text new to it; or judges rows whose verdict is known.

python benchmarks/studies/grading.py --answers 2000
python benchmarks/studies/grading.py --rows tests/evaluators/reading.jsonl tests/evaluators/steps.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from speclrm.evaluators.answers import find_answer, finished_answer
from speclrm.evaluators.grading import Grader
from speclrm.runtime.protocols import Problem

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from grading_cases import PAIRS  # the table of the tests, made new by adding to it


def fresh(number: int) -> tuple[str, str]:
    """Returns a gold answer and an answer that no cache has seen: a pair of the table, each plus the same number."""
    _, gold, answer, _ = PAIRS[number % len(PAIRS)]
    return f"{gold} + {number + 1000}", f"{answer} + {number + 1000}"


async def main(answers: int, workers: int) -> None:
    async with Grader(workers=workers) as grader:
        started = time.perf_counter()
        outcomes = await asyncio.gather(
            *(grader.grade(answer, Problem("p", "", gold)) for gold, answer in map(fresh, range(answers)))
        )
        seconds = time.perf_counter() - started
    print(f"{answers} answers in {seconds:.1f} s on {workers} workers: {answers / seconds * 60:.0f} a minute")
    print(dict(Counter(outcomes)))


async def agreement(files: list[Path], workers: int) -> None:
    """Rows of texts (``output``, ``gold``, ``equal``), judged from the search for the answer on, and rows of steps (``step``,
    ``answer``, and ``before`` where there is one).
    """
    async with Grader(workers=workers) as grader:

        async def correct(row: dict[str, Any]) -> bool:
            answer = find_answer(row["output"])
            return answer is not None and await grader.grade(answer, Problem("p", "", row["gold"])) == "correct"

        for file in files:
            rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
            if "step" in rows[0]:
                wrong = [row for row in rows if finished_answer(row["step"], row.get("before", "")) != row["answer"]]
                print(f"{file}: {len(rows)} steps, {len(rows) - len(wrong)} right")
            else:
                verdicts = await asyncio.gather(*map(correct, rows))
                wrong = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict != row["equal"]]
                accepts = sum(not row["equal"] for row in wrong)
                print(
                    f"{file}: {len(rows)} texts, {len(rows) - len(wrong)} right, {accepts} false accepts, "
                    f"{len(wrong) - accepts} false refusals"
                )
            for row in wrong:
                print("   ", json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=Path, nargs="+")
    options = parser.parse_args()
    if options.rows:
        asyncio.run(agreement(options.rows, options.workers))
    else:
        asyncio.run(main(options.answers, options.workers))
