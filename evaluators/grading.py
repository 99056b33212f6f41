"""Whether two answers mean the same, and whether an answer is right.

Symbolic comparison can run for ever on what a model wrote, so it is done in worker processes, each call with a time
limit and each worker with a memory limit; a worker that hangs is killed and replaced. Simple numbers and equal texts
never leave this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import OrderedDict
from concurrent.futures import TimeoutError as CallTimeout
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import structlog

from speclrm.evaluators import judging, notation
from speclrm.runtime.errors import GraderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from speclrm.runtime.events import Outcome
    from speclrm.runtime.protocols import Problem

log = structlog.get_logger(__name__)

CALL_LIMIT_S = 5.0
TASK_LIMIT_S = 30.0
"""Added to a call's limit for a task's own rule: each worker loads the tasks at the first one."""
START_LIMIT_S = 120.0
CACHE_MAX = 10_000
CALLS_MAX = 64
"""Calls that may wait for a worker at once; further callers wait their turn."""

_NUMBER = re.compile(r"[+-]?\d{1,15}")
_NOISE = re.compile(r"\\[,;!: ]|\\left|\\right|\s+|\$|\\displaystyle|\\(?:text|mathrm|mbox)\{\s*\}")


def normalised(answer: str) -> str:
    """Without space and marks that mean nothing. Equal results mean equal answers; different ones mean nothing."""
    return _NOISE.sub("", answer).rstrip(".").replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")


def plainly_same(one: str, other: str) -> bool | None:
    """Equal texts are the same; two whole numbers are the same or not; None where it takes more to say."""
    one, other = normalised(one), normalised(other)
    if one == other:
        return True
    if _NUMBER.fullmatch(one) and _NUMBER.fullmatch(other):
        return int(one) == int(other)
    return None


class ExactEquivalence:
    """Judges without worker processes: equal after normalising. For tests and examples, under any clock."""

    async def same(self, one: str, other: str) -> bool:
        return bool(plainly_same(one, other))

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        return "correct" if plainly_same(answer, problem.answer or "") else "wrong"


class Grader:
    """Judges by math-verify in worker processes. Use ``async with Grader() as grader``.

    Start it before engines: its workers are then small, and see none of the engines' environment. Workers begin as
    fresh interpreters (spawn) and load no model. ``limit_s`` is counted from when a worker takes the call.
    """

    def __init__(self, *, workers: int = 1, limit_s: float = CALL_LIMIT_S) -> None:
        self._workers = workers
        self._limit_s = limit_s
        self._pool: Any = None
        self._cache: OrderedDict[tuple[str, str, str], bool] = OrderedDict()
        self._places = asyncio.Semaphore(CALLS_MAX)
        self.failures = 0
        """Calls that ran into a limit or crashed their worker."""

    async def __aenter__(self) -> Grader:
        from pebble import ProcessPool

        self._pool = ProcessPool(
            max_workers=self._workers, context=get_context("spawn"), initializer=judging.prepare_worker
        )
        try:
            # The first call makes the workers load sympy, on nobody's time.
            await asyncio.wait_for(
                asyncio.wrap_future(self._pool.schedule(judging.same, ("1/2", "0.5"))), START_LIMIT_S
            )
        except Exception as error:
            await self.aclose()
            raise GraderError(f"The processes that judge answers did not start: {error!r}.") from error
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            await asyncio.to_thread(pool.join, 5)

    async def same(self, one: str, other: str) -> bool:
        verdict = plainly_same(one, other)
        return verdict if verdict is not None else bool(await self._ask("math", other, one))

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        gold = problem.answer or ""
        if problem.grader == "choice":
            return "correct" if judging.by_choice(gold, problem.details, answer) else "wrong"
        if problem.grader == "math":
            verdict = plainly_same(answer, gold)
            if verdict is not None:
                return "correct" if verdict else "wrong"
        verdict = await self._ask(problem.grader, problem.details if problem.grader != "math" else gold, answer)
        if verdict is None:
            return "grader_failed"
        return "correct" if verdict else "wrong"

    async def _ask(self, rule: str, gold: str, answer: str) -> bool | None:
        """The verdict of a worker, or None where it failed, or where the answer is too much for any."""
        if notation.too_much(answer) or (rule == "math" and notation.too_much(gold)):
            self.failures += 1
            log.warning("answer_too_much", answer=answer[:80])
            return None
        key = rule, gold, answer
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        call: Callable[..., bool] = (
            partial(judging.same, gold, answer) if rule == "math" else partial(judging.by_task, rule, gold, answer)
        )
        async with self._places:
            if self._pool is None:
                raise GraderError("The grader is closed. Use it inside `async with Grader() as grader:`.")
            limit_s = self._limit_s if rule == "math" else self._limit_s + TASK_LIMIT_S
            future = self._pool.schedule(call, timeout=limit_s)
            try:
                verdict: bool = await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):
                    future.cancel()
                raise
            except CallTimeout:
                self.failures += 1
                log.warning("grader_limit", seconds=limit_s, answer=answer[:80])
                return None
            except Exception as error:  # noqa: BLE001  # a crashed worker, a parser's bug: never the run's problem
                self.failures += 1
                log.warning("grader_failed", error=repr(error), answer=answer[:80])
                return None
        self._cache[key] = verdict
        if len(self._cache) > CACHE_MAX:
            self._cache.popitem(last=False)
        return verdict
