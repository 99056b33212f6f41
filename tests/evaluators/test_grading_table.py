"""The whole table through the real grader, its worker processes and all."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from grading_cases import COMPLETIONS, PAIRS

from speclrm.evaluators.answers import find_answer, finished_answer
from speclrm.evaluators.grading import Grader
from speclrm.runtime.protocols import Problem


async def test_every_pair_of_the_table() -> None:
    async with Grader(workers=2) as grader:
        outcomes = await asyncio.gather(*(grader.grade(answer, Problem("p", "", gold)) for _, gold, answer, _ in PAIRS))
    wrong = [
        f"{topic}: {gold!r} {'=' if same else '!='} {answer!r}: {outcome}"
        for (topic, gold, answer, same), outcome in zip(PAIRS, outcomes, strict=True)
        if outcome != ("correct" if same else "wrong")
    ]
    assert not wrong, "\n".join(wrong)


HERE = Path(__file__).parent
OTHERS = HERE.parents[2] / "shared" / "cases"
"""Rows of other people's, beside this repository where there are any."""


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def misjudged(rows: list[dict[str, Any]]) -> list[str]:
    async with Grader(workers=2) as grader:

        async def correct(row: dict[str, Any]) -> bool:
            answer = find_answer(row["output"])
            return answer is not None and await grader.grade(answer, Problem("p", "", row["gold"])) == "correct"

        verdicts = await asyncio.gather(*map(correct, rows))
    return [str(row) for row, verdict in zip(rows, verdicts, strict=True) if verdict != row["equal"]]


async def test_every_text_of_the_table_is_read_as_a_person_would() -> None:
    wrong = await misjudged(rows_of(HERE / "reading.jsonl"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", sorted(OTHERS.glob("grading-*.jsonl")) or [None], ids=str)
async def test_texts_of_other_people_are_read_as_a_person_would(file: Path | None) -> None:
    if file is None:
        pytest.skip(f"no grading-*.jsonl in {OTHERS}")
    wrong = await misjudged(rows_of(file))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", sorted(OTHERS.glob("steps-*.jsonl")) or [None], ids=str)
def test_steps_of_other_people_end_their_tracks_by_a_finished_answer_alone(file: Path | None) -> None:
    if file is None:
        pytest.skip(f"no steps-*.jsonl in {OTHERS}")
    assert not [row for row in rows_of(file) if finished_answer(row["step"]) != row["answer"]]


@pytest.mark.parametrize(("text", "answer"), COMPLETIONS)
def test_every_completion_of_the_table(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


def test_the_table_has_both_classes_in_like_numbers() -> None:
    same = sum(case[3] for case in PAIRS)
    assert len(PAIRS) >= 300
    assert len(COMPLETIONS) >= 60
    assert 0.4 < same / len(PAIRS) < 0.6


HOSTILE = [
    "9^{9^{9^9}}",
    "9**9**9**9",
    "10^{10000000}",
    "1^{9^{9^{9}}}",
    "7" * 10_000,
    "7" * 150 + "^" + "9" * 3,
    "(" * 1_000 + "1" + ")" * 1_000,
    "{" * 1_000 + "1" + "}" * 1_000,
    "\\frac{1}{" * 500 + "2" + "}" * 500,
    "\\sqrt{" * 500 + "2" + "}" * 500,
    "\\left(" * 300 + "x" + "\\right)" * 300,
    "1000000000!",
    "(10^{9})!",
    "170!!!!",
    "\\binom{1000000}{500000}",
    "\\sum_{n=1}^{10^{12}} n^{n}",
    "\\int_0^{\\infty} x^{x^x} dx",
    "\\prod_{k=1}^{99999} k^k",
    "x" * 100_000,
    "+".join("x^2" for _ in range(5_000)),
    "\\frac{" * 10_000,
    "\\begin{pmatrix}" + "1&" * 3_000 + "1\\end{pmatrix}",
    "__import__('os').system('touch /tmp/speclrm-was-here')",
    "\\x00\\ud800 \x00 \u202e𝔘𝔫𝔦 ☃",
    "$$$$$$" * 100,
    "\\cos(" * 30 + "1" + ")" * 30,
    "((x+1)^{999}+(y+2)^{999})^{99}",
    "\\{" + ",".join(str(n) for n in range(300)) + "\\}",
    "\\mathrm{" + "CoH2" * 240 + "!}",
]


async def test_hostile_answers_get_a_verdict_and_the_grader_goes_on() -> None:
    async with Grader(workers=2, limit_s=3.0) as grader:
        outcomes = await asyncio.gather(*(grader.grade(text, Problem("p", "", "\\frac{1}{2}")) for text in HOSTILE))
        assert set(outcomes) <= {"wrong", "grader_failed"}
        # Not the other way round either: a gold answer may be strange too.
        await asyncio.gather(*(grader.grade("\\frac12", Problem("p", "", text)) for text in HOSTILE[:8]))
        assert await grader.grade("0.5", Problem("p", "", "\\frac{1}{2}")) == "correct"
    assert not Path("/tmp/speclrm-was-here").exists()
