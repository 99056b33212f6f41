"""Answers questions about answers from the trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.events import (
    SampleFinished,
    VoteUpdated,
)

if TYPE_CHECKING:
    from speclrm.runtime.events import Outcome
    from speclrm.runtime.protocols import Equivalence, Problem
    from speclrm.runtime.replay.playback import SamplePlayback


class RecordedVerdicts:
    """The verdicts of a trace, and a judge of answers for what it does not have."""

    def __init__(self, sample: SamplePlayback, judge: Equivalence) -> None:
        self._sample = sample
        self._judge = judge

    async def same(self, one: str, other: str) -> bool:
        await self._sample.due_next(VoteUpdated)
        verdict = self._sample.verdict(one, other)
        return await self._judge.same(one, other) if verdict is None else verdict

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        await self._sample.due_next(SampleFinished)
        outcome = self._sample.outcome(answer)
        return await self._judge.grade(answer, problem) if outcome is None else outcome
