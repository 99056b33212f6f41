"""Holds the checker's own state of samples, and its own statement of the voting rules.

It shares no code with the runtime's fold and the strategies' vote: a fault there must not hide itself here.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speclrm.runtime.events import SampleFinished


@dataclass(slots=True)
class PendingStep:
    """A step that was made and not yet committed. ``spent``: tokens of its requests. ``fate``: of its tokens if it never is."""

    kind: str
    step: int
    ids: int
    spent: int
    fate: str = "dropped"


@dataclass(slots=True)
class CheckedTrack:
    steps: int = 0
    tokens: int = 0
    scores: list[float] = field(default_factory=list[float])
    pending: PendingStep | None = None
    lapsed: PendingStep | None = None
    reason: str | None = None
    answer: str | None = None
    error: str | None = None
    place: int = -1
    paused: bool = False

    @property
    def mean(self) -> float | None:
        return sum(self.scores) / len(self.scores) if self.scores else None


@dataclass(slots=True)
class CheckedSample:
    gold: str | None = None
    tracks: dict[str, CheckedTrack] = field(default_factory=dict[str, CheckedTrack])
    operations: dict[str, str] = field(default_factory=dict[str, str])
    classes: tuple[tuple[str, ...], ...] = ()
    leader: str | None = None
    ends: int = 0
    done: bool = False

    def row(self, event: SampleFinished) -> dict[str, Any]:
        """Returns the sample's line of ``results.jsonl``, as far as it is checked."""
        return {
            "problem": event.problem,
            "repeat": event.repeat,
            "answer": event.answer,
            "gold": self.gold,
            "outcome": event.outcome,
            "winner": event.winner,
            "votes": [
                [(self.tracks[names[0]].answer if names[0] in self.tracks else None) or "", list(names)]
                for names in self.classes
                if names
            ],
            "tracks": [
                {
                    "track": name,
                    "reason": track.reason,
                    "answer": track.answer,
                    "steps": track.steps,
                    "tokens": track.tokens,
                    "mean_score": track.mean,
                    "error": track.error,
                }
                for name, track in self.tracks.items()
            ],
            "tokens": sum(track.tokens for track in self.tracks.values()),
            "seconds": event.seconds,
        }


def winner(classes: tuple[tuple[str, ...], ...], tracks: Mapping[str, CheckedTrack], *, shortest: bool) -> str:
    """Returns the winner: of the only largest class of more than one, else of all, the best mean score, then the fewest
    tokens and the first of the plan if ``shortest``, else the first to end. A track without scores comes after those
    with some.
    """
    sizes = sorted(map(len, classes), reverse=True)
    alone = sizes[0] > 1 and (len(sizes) == 1 or sizes[0] > sizes[1])
    names = [name for members in classes if not alone or len(members) == sizes[0] for name in members]
    nobody = CheckedTrack()
    plan = {name: place for place, name in enumerate(tracks)}

    def rank(name: str) -> tuple[float, int, int]:
        track = tracks.get(name, nobody)
        mean = math.inf if track.mean is None else -track.mean
        return (mean, track.tokens, plan.get(name, -1)) if shortest else (mean, 0, track.place)

    return min(names, key=rank)


def original_winner(classes: tuple[tuple[str, ...], ...], tracks: Mapping[str, CheckedTrack]) -> str:
    """Returns the winner by SSR's rule: of the only largest class of more than one the track with most tokens, else
    of all the best mean score, where no score counts 0; then the first in the plan.
    """
    voters = [name for name in tracks if any(name in members for members in classes)]
    sizes = Counter(map(len, classes))
    largest = max(sizes)
    if largest > 1 and sizes[largest] == 1:
        (leaders,) = (members for members in classes if len(members) == largest)
        return max((name for name in voters if name in leaders), key=lambda name: tracks[name].tokens)
    return max(voters, key=lambda name: tracks[name].mean or 0.0)
