"""Keeps a run's summary, scores and step lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.evaluators.metrics import Summary
from speclrm.runtime.events import StepDrafted, StepScored, StepWritten

if TYPE_CHECKING:
    from speclrm.runtime.events import Event


class SummarySink(Summary):
    """Keeps the summary of the events that it receives."""

    def emit(self, event: Event) -> None:
        self.add(event)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class ScoreLog(SummarySink):
    """Also keeps each score, with the probability of all digits, and the length of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[float] = []
        self.masses: list[float] = []
        self.lengths: dict[str, list[int]] = {"draft": [], "target": []}
        self._scored: list[tuple[tuple[str, int], float]] = []

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepScored):
            self.scores.append(event.value)
            self.masses.append(event.mass)
            self._scored.append(((event.problem, event.repeat), event.value))
        elif isinstance(event, StepDrafted):
            self.lengths["draft"].append(len(event.ids))
        elif isinstance(event, StepWritten) and event.write_kind != "closing":
            self.lengths["target"].append(len(event.ids))

    def labelled(self) -> list[tuple[float, bool]]:
        """Returns the scores of steps of graded samples, with whether the sample was right."""
        outcomes = {(row.problem, row.repeat): row.outcome for row in self.summary().samples}
        return [
            (score, outcomes[sample] == "correct")
            for sample, score in self._scored
            if outcomes.get(sample) in ("correct", "wrong")
        ]
