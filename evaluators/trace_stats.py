"""Describes what a trace is made of: counts, bytes and rates by kind of event."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from speclrm.runtime.events import RunStarted, StepCommitted, StepDrafted, StepScored, StepWritten

if TYPE_CHECKING:
    from speclrm.runtime.events import Event


class KindStats(BaseModel):
    """``per_s``: events of the kind a second of run time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    bytes: int
    per_s: float


class TraceStats(BaseModel):
    """``text_bytes``: of all steps, UTF-8; ``tokens``: ids of all steps, by who wrote them; ``step_bytes``: of a committed
    step, all events of steps included and 8 bytes for each id left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seconds: float
    attempts: int
    events: int
    bytes: int
    kinds: dict[str, KindStats]
    steps: int
    text_bytes: int
    tokens: dict[str, int]
    tokens_per_s: dict[str, float]
    step_bytes: float | None


class StatsFold:
    """Add each event with the size of its line."""

    def __init__(self) -> None:
        self._run = ""
        self._t = 0.0
        self._attempts = 0
        self._count: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._step_bytes = 0
        self._text_bytes = 0
        self._tokens: Counter[str] = Counter()

    def add(self, event: Event, size: int) -> None:
        self._t = max(self._t, event.t)
        self._attempts = max(self._attempts, event.attempt + 1)
        self._count[event.kind] += 1
        self._bytes[event.kind] += size
        if isinstance(event, RunStarted):
            self._run = self._run or event.run
        if isinstance(event, StepDrafted | StepWritten):
            self._tokens["draft" if isinstance(event, StepDrafted) else "target"] += len(event.ids)
            self._text_bytes += len(event.text.encode("utf-8", "surrogatepass"))
        if isinstance(event, StepDrafted | StepWritten | StepScored | StepCommitted):
            self._step_bytes += size

    def stats(self) -> TraceStats:
        steps = self._count["step_committed"]
        seconds = self._t or 1.0
        return TraceStats(
            run=self._run,
            seconds=self._t,
            attempts=self._attempts,
            events=sum(self._count.values()),
            bytes=sum(self._bytes.values()),
            kinds={
                kind: KindStats(count=count, bytes=self._bytes[kind], per_s=round(count / seconds, 3))
                for kind, count in self._count.most_common()
            },
            steps=steps,
            text_bytes=self._text_bytes,
            tokens=dict(sorted(self._tokens.items())),
            tokens_per_s={role: round(count / seconds, 3) for role, count in sorted(self._tokens.items())},
            step_bytes=(self._step_bytes - 8 * sum(self._tokens.values())) / steps if steps else None,
        )
