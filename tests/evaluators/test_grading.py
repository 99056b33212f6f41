"""Answers judged in real worker processes."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import pytest_asyncio

from speclrm.evaluators.grading import ExactEquivalence, Grader, plainly_same
from speclrm.runtime.errors import GraderError
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "pairs.jsonl").read_text().splitlines()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grader() -> AsyncIterator[Grader]:
    async with Grader(limit_s=5) as running:
        yield running


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['gold']}~{pair['given']}")
async def test_answers_are_equal_as_mathematics(grader: Grader, pair: dict[str, str | bool]) -> None:
    outcome = await grader.grade(str(pair["given"]), Problem("p", "", str(pair["gold"])))
    assert outcome == ("correct" if pair["equal"] else "wrong")


async def test_an_answer_that_takes_for_ever_fails_the_grader_and_not_the_run() -> None:
    async with Grader(limit_s=2) as grader:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.05)
                ticks += 1

        clock = asyncio.create_task(tick())
        started = time.monotonic()
        outcome = await grader.grade("9^{9^{9^{9^{9}}}}+1", Problem("p", "", "\\sqrt{7}+\\pi"))
        seconds = time.monotonic() - started
        clock.cancel()
        assert outcome in ("grader_failed", "wrong")
        assert seconds < 15
        assert ticks > 5 or seconds < 0.5
        assert await grader.grade("1/2", Problem("p", "", "0.50")) == "correct"


async def test_the_workers_end_with_the_grader() -> None:
    before = set(psutil.Process().children(recursive=True))
    async with Grader() as grader:
        assert await grader.same("1/3", "2/6")
        workers = [p for p in psutil.Process().children(recursive=True) if p not in before]
        assert workers
        judges = [worker for worker in workers if "resource_tracker" not in " ".join(worker.cmdline())]
        assert judges
    assert not psutil.wait_procs(judges, timeout=5)[1]


async def test_a_terminal_that_is_closed_ends_no_judge() -> None:
    before = set(psutil.Process().children(recursive=True))
    async with Grader() as grader:
        judges = [p for p in psutil.Process().children(recursive=True) if p not in before]
        judges = [judge for judge in judges if "resource_tracker" not in " ".join(judge.cmdline())]
        for judge in judges:
            judge.send_signal(signal.SIGHUP)  # the terminal sends it to all that were started from it
        assert await grader.same("\\frac{1}{3}", "\\frac{2}{6}")
        assert all(judge.is_running() for judge in judges)


async def test_a_cancelled_caller_leaves_the_grader_usable(grader: Grader) -> None:
    call = asyncio.create_task(grader.grade("\\sqrt{12345}", Problem("p", "", "\\sqrt{54321}")))
    await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await grader.grade("\\frac{3}{9}", Problem("p", "", "1/3")) == "correct"


async def test_a_task_judges_by_its_own_rule(grader: Grader) -> None:
    details = json.dumps({"answer": "12", "metadata": {}})
    problem = Problem("p", "", "12", grader="reasoning-gym:gsm_symbolic", details=details)
    assert await grader.grade("12", problem) == "correct"
    assert await grader.grade("\\text{12}", problem) == "correct"
    for number in ("12.0", "\\frac{24}{2}", "+12", "012"):
        assert await grader.grade(number, problem) == "correct"
    for other in ("13", "6 + 6", "24 - 5 - 7", "2 \\cdot 6"):  # the last ones say a problem again
        assert await grader.grade(other, problem) == "wrong"


async def test_a_closed_grader_says_so() -> None:
    with pytest.raises(GraderError, match="closed"):
        await Grader().same("\\frac{1}{2}", "0.5")


@pytest.mark.parametrize(
    ("one", "other", "same"), [("4", "04", True), ("4", "5", False), (" $4$ ", "4", True), ("1/2", "0.5", None)]
)
async def test_simple_answers_need_no_worker(one: str, other: str, same: bool | None) -> None:
    assert plainly_same(one, other) is same
    assert await ExactEquivalence().same(one, other) is bool(same)
