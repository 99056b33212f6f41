from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from speclrm.evaluators.answers import find_answer, finished_answer, tidy

CASES = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_the_answer_is_found(case: dict[str, str | None]) -> None:
    assert find_answer(case["text"] or "") == case["answer"]


STEPS = [json.loads(line) for line in (Path(__file__).parent / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", STEPS, ids=lambda case: case["step"].strip())
def test_a_step_ends_its_track_by_a_finished_answer_alone(case: dict[str, str | None]) -> None:
    assert finished_answer(case["step"] or "", case.get("before") or "") == case["answer"]


@pytest.mark.parametrize(
    "hostile",
    ["\\boxed{" * 150_000, "{" * 1_000_000, "answer is " * 100_000, "\\" * 1_000_000, "the so " * 150_000 + "answer"],
    ids=["boxes", "braces", "answers", "backslashes", "words"],
)
def test_a_hostile_text_of_a_megabyte_takes_no_time(hostile: str) -> None:
    started = time.process_time()
    find_answer(hostile)
    finished_answer(hostile, hostile)
    assert time.process_time() - started < 10  # a quadratic search would take hours


def test_tidying_keeps_what_stands_inside() -> None:
    assert tidy("**$\\frac{1}{2}$**.") == "\\frac{1}{2}"
