"""Decides whether two answers mean the same, and whether an answer is right.

Symbolic comparison can run for ever on what a model wrote. So what is too large by value is never handed to it
(``sizes``), and the rest is compared in worker processes with limits of time and memory (``workers``). Simple numbers and
equal texts never leave this process.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from speclrm.evaluators import grader_worker, sizes
from speclrm.evaluators.workers import Judged, Workers
from speclrm.runtime.errors import GraderError

if TYPE_CHECKING:
    from types import TracebackType

    from speclrm.runtime.events import Outcome
    from speclrm.runtime.protocols import Equivalence, Problem

log = structlog.get_logger(__name__)

CALL_LIMIT_S = 5.0
TASK_LIMIT_S = 30.0
"""Added to a call's limit for a task's own rule."""
QUICK_S = 0.5
"""Processor time of a first try. Of 1,080 pairs made from the answers of benchmarks 2 took longer, on a busy machine."""
SAMPLE_LIMIT_S = 15.0
"""Processor time that one sample's votes may take in all, beside what its easy pairs take."""
EASY_S = 0.1
"""What each pair may take without being counted. 97 of 100 take less, even where hundreds are compared."""
WORKERS_MAX = 4
"""Quick calls at once, unless told otherwise: answers are few, and engines want the processors too."""
FAILURES_MAX = 2
"""A text that failed so often, each time beside another, is handed to no worker any more."""
TASK_NESTING_MAX = 40
"""Brackets within brackets where a task judges: it compares texts, mostly."""
CACHE_MAX = 10_000

_NUMBER = re.compile(r"[+-]?\d{1,15}")
_NOISE = re.compile(
    r"\\[,;!: ]|\\left|\\right|(?<![\d\s])\s+|\s+(?![\d\s])|\$|\\displaystyle|\\(?:text|mathrm|mbox)\{\s*\}"
)

_END = re.compile(r"(?<!\.)\.$")
"""A full stop, and no dots by which a decimal or a list goes on."""


def normalised(answer: str) -> str:
    """Removes space and marks that mean nothing. Equal results mean equal answers; different ones mean nothing."""
    return _END.sub("", _NOISE.sub("", answer)).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")


def plainly_same(one: str, other: str) -> bool | None:
    """Compares equal texts and whole numbers. Returns None where it takes more to say."""
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


@dataclass(slots=True)
class Account:
    """The processor time that one sample's votes have taken, easy pairs aside."""

    spent_s: float = 0.0
    told: bool = False

    def open(self) -> bool:
        """Returns whether there is some left. Where there is none, the log says so once."""
        if self.spent_s >= SAMPLE_LIMIT_S and not self.told:
            self.told = True
            log.warning("answers_compared_by_text", spent_s=round(self.spent_s, 1), limit_s=SAMPLE_LIMIT_S)
        return self.spent_s < SAMPLE_LIMIT_S


class KeepsAccounts(Protocol):
    """A judge that is told on whose account it judges votes."""

    async def same(self, one: str, other: str, account: Account | None = None) -> bool: ...

    async def grade(self, answer: str, problem: Problem) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class JudgeOfSample:
    """A judge for the answers of one sample. What they may cost in all is bounded: ``Grader`` says how."""

    judge: KeepsAccounts
    account: Account

    async def same(self, one: str, other: str) -> bool:
        return await self.judge.same(one, other, self.account)

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        return await self.judge.grade(answer, problem)


class Grader:
    """Judges by math-verify in worker processes. Use ``async with Grader() as grader``.

    Start it before engines: it sees nothing of their environment then. ``limit_s``: a call's processor time.

    A call is first tried for ``QUICK_S``; only what does not end in that is tried for as long as it may take, in places of
    its own. Both kinds of places are given out in the order of asking, and a sample asks one thing at a time. So whatever
    other samples answer, a quick call waits for quick tries alone: the answers of one sample keep another's waiting for
    no longer than ``QUICK_S``, and for nothing where there are two workers. Slow calls wait for slow ones.

    What failed is remembered: a pair fails at once when it is asked for again, and so does a text that has failed
    ``FAILURES_MAX`` times, unless the texts are equal. A sample (``of_sample``) has ``SAMPLE_LIMIT_S`` for its votes: the
    last ``limit_s`` of them for quick tries alone, and after that its answers are compared by their texts.

    A caller that is cancelled leaves a worker that ends its call and is then free for the next.
    """

    def __init__(self, *, workers: int | None = None, limit_s: float = CALL_LIMIT_S) -> None:
        places = workers or max(2, min(len(os.sched_getaffinity(0)), WORKERS_MAX))
        self._limit_s = limit_s
        self._math, self._tasks = Workers("math", places), Workers("tasks", places)
        self._verdicts: OrderedDict[tuple[str, str, str], bool | None] = OrderedDict()
        self._failed: OrderedDict[str, int] = OrderedDict()
        self.failures = 0
        """Questions that got no verdict: a text is too much, or a worker ran into a limit or died."""

    async def __aenter__(self) -> Grader:
        self._math.open()
        self._tasks.open()
        try:
            await self._math.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends all workers. There is nothing to wait for in it, so nothing can cut it short."""
        self._math.close()
        self._tasks.close()

    def of_sample(self) -> Equivalence:
        """Returns a judge for one sample's answers, with an account of their own."""
        return JudgeOfSample(self, Account())

    async def same(self, one: str, other: str, account: Account | None = None) -> bool:
        verdict = plainly_same(one, other)
        return verdict if verdict is not None else bool(await self._ask("math", other, one, (one, other), account))

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        gold = problem.answer or ""
        if problem.grader == "choice":
            return "correct" if grader_worker.by_choice(gold, problem.details, answer) else "wrong"
        if problem.grader == "math":
            verdict = plainly_same(answer, gold)
            if verdict is not None:
                return "correct" if verdict else "wrong"
        # Not the gold answer: it is nobody's attempt to keep us busy, and stands beside all answers to the problem.
        verdict = await self._ask(
            problem.grader, problem.details if problem.grader != "math" else gold, answer, (answer,), None
        )
        if verdict is None:
            return "grader_failed"
        return "correct" if verdict else "wrong"

    async def _ask(
        self, rule: str, gold: str, answer: str, suspects: tuple[str, ...], account: Account | None
    ) -> bool | None:
        """Returns the verdict of a worker, or None where it failed, or where a text is too much for any.

        ``suspects``: the texts that a failure may be laid to.
        """
        verdict: bool | None = None
        key = rule, gold, answer
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            verdict = self._verdicts[key]
        elif self._too_much(rule, gold, answer):
            log.warning("answer_too_much", answer=answer[:80])
        elif account is None or account.open():
            judged, tried_enough = await self._judge(rule, gold, answer, account)
            verdict = judged.verdict
            if judged.why:
                log.warning(
                    "grader_failed", why=judged.why, error=judged.error, seconds=judged.seconds, answer=answer[:80]
                )
            if tried_enough:
                self._remember(key, judged, suspects)
        self.failures += verdict is None
        return verdict

    def _too_much(self, rule: str, gold: str, answer: str) -> bool:
        texts, nesting_max = ((gold, answer), sizes.NESTING_MAX) if rule == "math" else ((answer,), TASK_NESTING_MAX)
        return any(self._failed.get(text, 0) >= FAILURES_MAX or sizes.too_much(text, nesting_max) for text in texts)

    async def _judge(self, rule: str, gold: str, answer: str, account: Account | None) -> tuple[Judged, bool]:
        """Returns what workers say, and whether that is all that can be said: not where a short try is all there was."""
        limit_s = self._limit_s if rule == "math" else self._limit_s + TASK_LIMIT_S
        workers = self._math if rule == "math" else self._tasks
        quick_s = min(QUICK_S, limit_s)
        judged = await _call(workers, rule, gold, answer, quick_s, slow=False)
        seconds = judged.seconds
        enough = judged.why != "limit" or quick_s == limit_s
        if not enough and (account is None or account.spent_s <= SAMPLE_LIMIT_S - limit_s):
            judged, enough = await _call(workers, rule, gold, answer, limit_s, slow=True), True
            seconds += judged.seconds
        if account is not None:
            account.spent_s += max(0.0, seconds - EASY_S)
        return judged._replace(seconds=seconds), enough and judged.why != "lost"

    def _remember(self, key: tuple[str, str, str], judged: Judged, suspects: tuple[str, ...]) -> None:
        rule, gold, answer = key
        self._verdicts[key] = judged.verdict
        if judged.verdict is None and rule == "math":
            self._verdicts[rule, answer, gold] = None  # whichever way round
        if judged.why in ("limit", "died"):
            # Laid to the heavier text: a plain number fails beside any that fails. To both where they are alike.
            weights = {text: sizes.weight(text, TASK_NESTING_MAX) for text in suspects}
            for text, weight in weights.items():
                if 2 * weight >= max(weights.values()):
                    self._failed[text] = self._failed.pop(text, 0) + 1
        for memory in (self._verdicts, self._failed):
            while len(memory) > CACHE_MAX:
                memory.popitem(last=False)


async def _call(workers: Workers, rule: str, gold: str, answer: str, limit_s: float, *, slow: bool) -> Judged:
    """Returns the result of one try. Raises GraderError if the grader is closed; a nursery that does not start is no verdict."""
    try:
        judged = await workers.call(rule, gold, answer, limit_s, slow=slow)
    except GraderError as error:
        if workers.closed:
            raise
        return Judged(None, 0.0, "lost", str(error))
    return judged._replace(seconds=limit_s) if judged.why in ("limit", "died") else judged
