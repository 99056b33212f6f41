"""Answers judged in real worker processes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import pytest_asyncio
from scripted_workers import ScriptedWorkers

from speclrm.evaluators import grading
from speclrm.evaluators.grading import ExactEquivalence, Grader, plainly_same
from speclrm.evaluators.thread_grader import GraderOfAThread
from speclrm.evaluators.workers import Workers
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.errors import GraderError
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "pairs.jsonl").read_text().splitlines()]


def slow(number: int) -> str:
    """A text that takes for ever, and of which no estimate says so."""
    return rf"\int_0^{{\infty}} x^{{x^x+{number}}} dx"


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grader() -> AsyncIterator[Grader]:
    async with Grader(limit_s=5) as running:
        yield running


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['gold']}~{pair['given']}")
async def test_answers_are_equal_as_mathematics(grader: Grader, pair: dict[str, str | bool]) -> None:
    outcome = await grader.grade(str(pair["given"]), Problem("p", "", str(pair["gold"])))
    assert outcome == ("correct" if pair["equal"] else "wrong")


async def test_an_answer_that_takes_for_ever_fails_the_grader_and_not_the_run() -> None:
    async with Grader(limit_s=1) as grader:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.05)
                ticks += 1

        clock = asyncio.create_task(tick())
        started = time.monotonic()
        outcome = await grader.grade(slow(1), Problem("p", "", "\\sqrt{7}+\\pi"))
        seconds = time.monotonic() - started
        clock.cancel()
        assert outcome == "grader_failed"
        assert 1 < seconds < 30
        assert ticks > 5
        assert await grader.grade("1/2", Problem("p", "", "0.50")) == "correct"


async def test_the_processes_end_with_the_grader_also_where_they_are_at_work() -> None:
    before = children()
    async with Grader() as grader:
        assert await grader.same("1/3", "2/6")
        call = asyncio.create_task(grader.grade(slow(1), Problem("p", "", "1/2")))
        await asyncio.sleep(0.3)
        assert len(children() - before) >= 2
    assert not children() - before
    with pytest.raises(GraderError, match="closed"):
        await call


async def test_a_terminal_that_is_closed_ends_no_judge() -> None:
    before = set(psutil.Process().children(recursive=True))
    async with Grader() as grader:
        judges = [p for p in psutil.Process().children(recursive=True) if p not in before]
        judges = [judge for judge in judges if "resource_tracker" not in " ".join(judge.cmdline())]
        for judge in judges:
            judge.send_signal(signal.SIGHUP)  # the terminal sends it to all that were started from it
        assert await grader.same("\\frac{1}{3}", "\\frac{2}{6}")
        assert all(judge.is_running() for judge in judges)


async def test_processes_begin_as_they_are_needed() -> None:
    before = children()
    async with Grader(workers=4) as grader:
        assert len(children() - before) == 1
        for number in range(5):
            assert await grader.same(f"{number}/3", f"\\frac{{{number}}}{{3}} + 0")
        assert len(children() - before) == 2


async def test_one_samples_slow_answers_do_not_keep_others_waiting() -> None:
    async with Grader(workers=1, limit_s=3) as grader:
        hostile, other = grader.of_sample(), grader.of_sample()
        slow_one = asyncio.create_task(hostile.same(slow(1), slow(2)))
        await asyncio.sleep(0)
        for number in range(1, 6):  # each has a place after a short try of the slow pair at the latest
            assert await other.same(f"\\frac{{{number}}}{{7}}", f"{number}/7 + 0")
        assert not slow_one.done()
        assert not await slow_one


async def test_a_cancelled_caller_leaves_a_worker_that_is_free_again_in_time() -> None:
    before = children()
    async with Grader(workers=1, limit_s=0.4) as grader:
        assert await grader.same("1/3", "2/6")
        workers = children() - before
        call = asyncio.create_task(grader.same("\\sqrt{12345}", "\\sqrt{54321}"))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await grader.grade("\\frac{3}{9}", Problem("p", "", "1/3")) == "correct"
        assert children() - before == workers  # the same ones: none was killed
        for number in range(3):  # nor does one that never ends keep its place
            call = asyncio.create_task(grader.same(slow(number), "1/2"))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert await grader.grade("\\frac{4}{12}", Problem("p", "", "1/3")) == "correct"


async def test_two_cancellations_leave_no_process() -> None:
    before = children()

    async def use() -> None:
        async with Grader() as grader:
            await grader.same(slow(1), slow(2))

    for wait_s in (0.0, 0.1, 3.0):
        user = asyncio.create_task(use())
        await asyncio.sleep(wait_s)
        user.cancel()
        await asyncio.sleep(0)
        user.cancel()
        await asyncio.gather(user, return_exceptions=True)
        assert user.cancelled()
        assert not children() - before


async def test_processes_that_were_killed_are_there_again_for_the_next_answer() -> None:
    before = children()
    async with Grader() as grader:
        assert await grader.same("1/3", "2/6")
        for process in children() - before:
            process.kill()
        await asyncio.sleep(0.2)
        assert await grader.same("1/7", "2/14")


async def test_a_worker_is_ended_in_whatever_code_it_is() -> None:
    workers = Workers("math", 1)
    workers.open()
    try:
        judged = await workers.call("math", "x+9^{9^9}", "5", 0.5, slow=False)  # one power, in C
        assert (judged.verdict, judged.why) == (None, "limit")
        judged = await workers.call("no such rule", "{}", "5", 5, slow=False)
        assert (judged.verdict, judged.why) == (None, "error")
        assert (await workers.call("math", "1/2", "0.5", 5, slow=False)).verdict
    finally:
        workers.close()


OWNER = """
import asyncio
import os
from speclrm.evaluators.grading import Grader

async def main():
    async with Grader() as grader:
        assert await grader.same("1/3", "2/6")
        asyncio.get_running_loop().call_later(0.3, os.write, 1, b"at work\\n")
        await grader.same("\\\\int_0^{\\\\infty} x^{x^x+1} dx", "\\\\int_0^{\\\\infty} x^{x^x+2} dx")

asyncio.run(main())
"""
"""A script as people write them first: nothing keeps it from running again where it is imported."""


async def test_no_process_outlives_an_owner_that_was_killed() -> None:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"at work\n"
    theirs = psutil.Process(owner.pid).children(recursive=True)
    assert len(theirs) >= 2
    owner.kill()
    await owner.communicate()
    assert not psutil.wait_procs(theirs, timeout=10)[1]


async def test_a_loop_with_virtual_time_judges_in_a_thread_and_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grading, "Workers", ScriptedWorkers)
    monkeypatch.setattr(ScriptedWorkers, "calls", [])
    monkeypatch.setattr(ScriptedWorkers, "costs_s", {"int": 100.0})

    async def judge() -> None:
        async with GraderOfAThread() as judge, asyncio.TaskGroup() as group:
            sample = judge.of_sample()
            for number in range(8):
                group.create_task(sample.same(slow(number), slow(number + 100)))
            group.create_task(judge.of_sample().same("x+1", "x+2"))

    def played() -> list[tuple[str, str, float, bool]]:
        ScriptedWorkers.calls.clear()
        run_virtual(judge())
        return [*ScriptedWorkers.calls]

    first = await asyncio.to_thread(played)
    assert sum(place for *_, place in first) == 2  # the account holds from call to call
    assert first[-1][:2] == ("x+2", "x+1")
    for _ in range(5):
        assert await asyncio.to_thread(played) == first


async def test_a_loop_with_virtual_time_gets_the_verdicts_of_real_workers() -> None:
    before = children()

    async def judge() -> list[object]:
        async with GraderOfAThread() as judge:
            problem = Problem("p", "", "1/2")
            return [await judge.grade("0.5", problem), await judge.same("1/2", "0.25"), await judge.same("4", "04")]

    assert await asyncio.to_thread(run_virtual, judge()) == ["correct", False, True]
    assert not children() - before


async def test_a_task_judges_by_its_own_rule(grader: Grader) -> None:
    details = json.dumps({"answer": "12", "metadata": {}})
    problem = Problem("p", "", "12", grader="reasoning-gym:gsm_symbolic", details=details)
    assert await grader.grade("12", problem) == "correct"
    assert await grader.grade("\\text{12}", problem) == "correct"
    for number in ("12.0", "\\frac{24}{2}", "+12", "012"):
        assert await grader.grade(number, problem) == "correct"
    for equation in ("x = 12", "24 - 5 - 7 = 12", "$-2 + 14 = 12$", "2 \\cdot 6 = 12"):
        assert await grader.grade(equation, problem) == "correct"
    for other in ("13", "6 + 6", "24 - 5 - 7", "2 \\cdot 6"):  # the last ones say a problem again
        assert await grader.grade(other, problem) == "wrong"
    for untrue in ("x = 13", "24 - 5 - 8 = 12"):
        assert await grader.grade(untrue, problem) == "wrong"


async def test_a_closed_grader_says_so() -> None:
    with pytest.raises(GraderError, match="closed"):
        await Grader().same("\\frac{1}{2}", "0.5")


@pytest.mark.parametrize(
    ("one", "other", "same"), [("4", "04", True), ("4", "5", False), (" $4$ ", "4", True), ("1/2", "0.5", None)]
)
async def test_simple_answers_need_no_worker(one: str, other: str, same: bool | None) -> None:
    assert plainly_same(one, other) is same
    assert await ExactEquivalence().same(one, other) is bool(same)
