"""What the grader makes of slow and failed calls: on scripted workers, so that a second of work takes none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from scripted_workers import ScriptedWorkers
from structlog.testing import capture_logs

from speclrm.evaluators import grading
from speclrm.evaluators.grading import CALL_LIMIT_S, QUICK_S, SAMPLE_LIMIT_S, Grader
from speclrm.evaluators.workers import Judged
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from speclrm.runtime.protocols import Equivalence


def slow(number: int) -> str:
    """A text that takes for ever, and of which no estimate says so."""
    return rf"\int_0^{{\infty}} x^{{x^x}} dx + {number}"


@pytest_asyncio.fixture
async def grader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Grader]:
    monkeypatch.setattr(grading, "Workers", ScriptedWorkers)
    monkeypatch.setattr(ScriptedWorkers, "costs_s", {"int": 100.0})
    monkeypatch.setattr(ScriptedWorkers, "calls", [])
    monkeypatch.setattr(ScriptedWorkers, "ends", {})
    async with Grader() as running:
        yield running


async def vote(judge: Equivalence, answers: list[str]) -> list[list[str]]:
    """As a sample counts its votes: each answer beside the first of each class."""
    classes: list[list[str]] = []
    for answer in answers:
        for members in classes:
            if await judge.same(members[0], answer):
                members.append(answer)
                break
        else:
            classes.append([answer])
    return classes


async def test_a_pair_that_failed_is_not_tried_again_whichever_way_round(grader: Grader) -> None:
    for one, other in [(slow(1), slow(2)), (slow(1), slow(2)), (slow(2), slow(1))]:
        assert not await grader.same(one, other)
    assert [(limit_s, place) for *_, limit_s, place in ScriptedWorkers.calls] == [
        (QUICK_S, False),
        (CALL_LIMIT_S, True),
    ]
    assert grader.failures == 3


async def test_a_quick_pair_takes_one_try_and_none_when_it_is_asked_again(grader: Grader) -> None:
    for _ in range(2):
        assert not await grader.same("x+1", "x+2")
    assert len(ScriptedWorkers.calls) == 1
    assert grader.failures == 0


async def test_a_text_that_failed_twice_is_handed_to_no_worker_any_more(grader: Grader) -> None:
    await grader.same(slow(1), slow(2))
    await grader.same(slow(1), slow(3))
    ScriptedWorkers.calls.clear()
    assert not await grader.same(slow(1), slow(4))
    assert await grader.grade(slow(1), Problem("p", "", "7")) == "grader_failed"
    assert not ScriptedWorkers.calls
    assert await grader.same(slow(1), f" {slow(1)} ")
    assert await grader.grade(slow(1), Problem("p", "", slow(1))) == "correct"
    await grader.same(slow(2), slow(4))  # it failed once
    assert ScriptedWorkers.calls


async def test_what_is_light_is_not_blamed_for_what_it_was_compared_with(grader: Grader) -> None:
    for number in range(1, 5):
        assert not await grader.same("1/2", slow(number))
    ScriptedWorkers.calls.clear()
    assert not await grader.same("1/2", "2/3")
    assert ScriptedWorkers.calls


async def test_a_gold_answer_is_never_blamed(grader: Grader) -> None:
    problem = Problem("p", "", slow(0))
    for number in range(1, 5):
        assert await grader.grade(slow(number), problem) == "grader_failed"
    ScriptedWorkers.calls.clear()
    assert await grader.grade(slow(9), problem) == "grader_failed"
    assert ScriptedWorkers.calls


async def test_slow_answers_of_one_sample_take_a_bounded_time_in_all(grader: Grader) -> None:
    with capture_logs() as logs:
        classes = await vote(grader.of_sample(), [slow(number) for number in range(32)])
    assert len(classes) == 32
    assert SAMPLE_LIMIT_S <= ScriptedWorkers.spent_s() < SAMPLE_LIMIT_S + QUICK_S + CALL_LIMIT_S
    assert [line["event"] for line in logs].count("answers_compared_by_text") == 1


async def test_answers_count_by_their_texts_when_the_time_of_a_sample_is_used_up(grader: Grader) -> None:
    judge = grader.of_sample()
    await vote(judge, [slow(number) for number in range(32)])
    ScriptedWorkers.calls.clear()
    assert await judge.same("x + 1", "x+1")
    assert await judge.same("7", "07")
    assert not await judge.same("x+1", "1+x+0")
    assert not ScriptedWorkers.calls
    assert await judge.grade("3/4", Problem("p", "", "1/2")) == "wrong"  # the result is judged all the same
    await grader.of_sample().same("x+1", "1+x+0")  # and so are other samples' votes
    assert len(ScriptedWorkers.calls) == 2


async def test_easy_pairs_are_not_counted_however_many_there_are(grader: Grader) -> None:
    judge = grader.of_sample()
    await vote(judge, [f"x+{number}" for number in range(60)])
    assert len(ScriptedWorkers.calls) == 60 * 59 / 2
    assert ScriptedWorkers.spent_s() > SAMPLE_LIMIT_S
    ScriptedWorkers.calls.clear()
    await judge.same("y+1", "y+2")
    assert ScriptedWorkers.calls


async def test_pairs_that_take_nearly_too_long_are_counted_as_well(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedWorkers, "costs_s", {"x": 0.4})
    await vote(grader.of_sample(), [f"x+{number}" for number in range(60)])
    assert ScriptedWorkers.spent_s() < 1.5 * SAMPLE_LIMIT_S


async def test_a_sample_that_had_a_short_try_alone_decides_nothing_for_others(grader: Grader) -> None:
    judge = grader.of_sample()
    await vote(judge, [slow(number) for number in range(4)])
    ScriptedWorkers.calls.clear()
    assert not await judge.same(slow(91), slow(92))
    assert not any(place for *_, place in ScriptedWorkers.calls)
    await grader.of_sample().same(slow(91), slow(92))
    assert any(place for *_, place in ScriptedWorkers.calls)


async def test_a_call_that_was_lost_with_the_processes_is_tried_again_when_asked(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem("p", "", "x+1")
    monkeypatch.setattr(ScriptedWorkers, "ends", {"x+2": Judged(None, 0.0, "lost")})
    assert await grader.grade("x+2", problem) == "grader_failed"
    monkeypatch.setattr(ScriptedWorkers, "ends", {"x+2": Judged(True, 0.0)})
    assert await grader.grade("x+2", problem) == "correct"


@pytest.mark.parametrize("why", ["died", "error"])
async def test_a_call_whose_worker_failed_is_remembered(
    grader: Grader, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    problem = Problem("p", "", "x+1")
    monkeypatch.setattr(ScriptedWorkers, "ends", {"x+2": Judged(None, 0.0, "died" if why == "died" else "error")})
    assert [await grader.grade("x+2", problem) for _ in range(2)] == ["grader_failed"] * 2
    assert len(ScriptedWorkers.calls) == 1


async def test_what_is_remembered_is_bounded(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "CACHE_MAX", 10)
    for number in range(30):
        await grader.grade(slow(number), Problem("p", "", "1/2"))
    assert len(grader._verdicts) <= 10  # pyright: ignore[reportPrivateUsage]
    assert len(grader._failed) <= 10  # pyright: ignore[reportPrivateUsage]


async def test_what_is_too_large_by_value_reaches_no_worker(grader: Grader) -> None:
    classes = await vote(grader.of_sample(), [f"(x+{number})^{{999}}" for number in range(32)])
    assert len(classes) == 32
    assert not ScriptedWorkers.calls
    assert await grader.same("(x+1)^{999}", "(x+1)^{ 999 }")
    assert await grader.grade("9^{9^9}", Problem("p", "", "5")) == "grader_failed"
