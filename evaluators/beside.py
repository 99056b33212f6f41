"""The grader in a thread of its own, for loops whose time is not real: worker processes have no place there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from speclrm.evaluators.grading import Grader, plainly_same

if TYPE_CHECKING:
    from speclrm.runtime.events import Outcome
    from speclrm.runtime.protocols import Problem


class GraderOfAThread:
    """Judges as ``Grader`` does. Each call that needs workers starts its own, which takes seconds: for a few calls."""

    async def same(self, one: str, other: str) -> bool:
        verdict = plainly_same(one, other)
        return await asyncio.to_thread(_same, one, other) if verdict is None else verdict

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        return await asyncio.to_thread(_grade, answer, problem)


def _same(one: str, other: str) -> bool:
    async def judge() -> bool:
        async with Grader() as grader:
            return await grader.same(one, other)

    return asyncio.run(judge())


def _grade(answer: str, problem: Problem) -> Outcome:
    async def judge() -> Outcome:
        async with Grader() as grader:
            return await grader.grade(answer, problem)

    return asyncio.run(judge())
