"""Runs the grader in a thread of its own, for loops whose time is not real: sockets and processes have no place there."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from speclrm.evaluators.grading import Account, Grader, JudgeOfSample, plainly_same

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from speclrm.runtime.events import Outcome
    from speclrm.runtime.protocols import Equivalence, Problem

T = TypeVar("T")


class GraderOfAThread:
    """Judges as ``Grader`` does, which begins with the first call that needs workers. Use it as a context.

    One call after the other, in the order of asking: so what one call leaves to the next, memory and accounts, is the
    same however fast the threads of a loop with virtual time are.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "grader")
        self._runner = asyncio.Runner()
        self._grader: Grader | None = None

    async def __aenter__(self) -> GraderOfAThread:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._in_thread(self._end)
        self._thread.shutdown()

    def of_sample(self) -> Equivalence:
        return JudgeOfSample(self, Account())

    async def same(self, one: str, other: str, account: Account | None = None) -> bool:
        verdict = plainly_same(one, other)
        if verdict is not None:
            return verdict
        return await self._in_thread(lambda: self._judge(lambda grader: grader.same(one, other, account)))

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        return await self._in_thread(lambda: self._judge(lambda grader: grader.grade(answer, problem)))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _judge(self, ask: Callable[[Grader], Coroutine[None, None, T]]) -> T:
        async def judge() -> T:
            if self._grader is None:
                self._grader = await Grader().__aenter__()
            return await ask(self._grader)

        return self._runner.run(judge())

    def _end(self) -> None:
        with self._runner as runner:
            if self._grader is not None:
                runner.run(self._grader.aclose())
