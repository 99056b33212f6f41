"""Measures how many answers a minute the grader judges, each text new to it.

python benchmarks/studies/grading.py --answers 2000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    asyncio.run(main(options.answers, options.workers))
