"""Stands for the processes that judge, where a test is about what the grader does with their verdicts."""

from __future__ import annotations

from typing import ClassVar

from speclrm.evaluators.workers import Judged


class ScriptedWorkers:
    """Each call takes as long as its texts say, and is ended where that is more than it has."""

    costs_s: ClassVar[dict[str, float]] = {}
    """Processor time of calls with a text that holds the key. Any other takes 0.01 s."""
    ends: ClassVar[dict[str, Judged]] = {}
    """What comes of calls with such an answer, whatever they cost."""
    calls: ClassVar[list[tuple[str, str, float, bool]]] = []
    """Gold, answer, limit, and whether it took a place for slow ones."""

    def __init__(self, kind: str, places: int) -> None:
        self.closed = True

    def open(self) -> None:
        self.closed = False

    async def start(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    async def call(self, rule: str, gold: str, answer: str, limit_s: float, *, slow: bool) -> Judged:
        self.calls.append((gold, answer, limit_s, slow))
        if answer in self.ends:
            return self.ends[answer]
        seconds = self.cost_s(gold, answer)
        return Judged(None, 0.0, "limit") if seconds > limit_s else Judged(False, seconds)

    @classmethod
    def cost_s(cls, *texts: str) -> float:
        return max((cost for part, cost in cls.costs_s.items() if any(part in text for text in texts)), default=0.01)

    @classmethod
    def spent_s(cls) -> float:
        """Processor time that all calls took."""
        return sum(min(limit_s, cls.cost_s(gold, answer)) for gold, answer, limit_s, _ in cls.calls)
