from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from speclrm.evaluators.answers import find_answer, has_answer, tidy

CASES = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_the_answer_is_found(case: dict[str, str | None]) -> None:
    assert find_answer(case["text"] or "") == case["answer"]


@pytest.mark.parametrize(
    ("step", "has"), [("so \\boxed{3}", True), ("so \\boxed{3", False), ("Answer: 3", True), ("3", False)]
)
def test_a_step_with_a_whole_answer_is_told_from_one_without(step: str, has: bool) -> None:
    assert has_answer(step) is has


@pytest.mark.parametrize(
    "hostile",
    ["\\boxed{" * 150_000, "{" * 1_000_000, "answer is " * 100_000, "\\" * 1_000_000, "the so " * 150_000 + "answer"],
    ids=["boxes", "braces", "answers", "backslashes", "words"],
)
def test_a_hostile_text_of_a_megabyte_takes_no_time(hostile: str) -> None:
    started = time.process_time()
    find_answer(hostile)
    assert time.process_time() - started < 10  # a quadratic search would take hours


def test_tidying_keeps_what_stands_inside() -> None:
    assert tidy("**$\\frac{1}{2}$**.") == "\\frac{1}{2}"
