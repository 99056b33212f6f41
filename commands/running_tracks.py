"""Follows the tracks that run, for the live display's table."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speclrm.runtime.events import Event


@dataclass(slots=True)
class RunningTrack:
    """``text``: of the last committed step; ``written``: of the one that is not committed yet."""

    steps: int = 0
    tokens: int = 0
    score: float | None = None
    text: str = ""
    written: str = ""


Sample = tuple[str, int]
"""A problem's id and the number of the repeat."""


class RunningTracks:
    """A fold over events. Tracks of finished samples are forgotten."""

    def __init__(self) -> None:
        self.running: dict[tuple[str, int, str], RunningTrack] = {}
        """In the order of their starts."""
        self._samples: dict[Sample, dict[str, RunningTrack]] = defaultdict(dict)
        """All tracks of samples that have not ended: one that has may be resumed."""

    def add(self, event: Event) -> None:
        match event.kind:
            case "run_started":
                self.running.clear()
                self._samples.clear()
            case "track_started":
                track = self.running[event.problem, event.repeat, event.track] = RunningTrack()
                self._samples[event.problem, event.repeat][event.track] = track
            case "step_drafted" | "step_written":
                if (track := self.running.get((event.problem, event.repeat, event.track))) is not None:
                    track.written = event.text
            case "step_committed":
                if (track := self.running.get((event.problem, event.repeat, event.track))) is not None:
                    track.steps += 1
                    track.tokens += event.tokens
                    track.score, track.text, track.written = event.score, track.written, ""
            case "track_finished":
                self.running.pop((event.problem, event.repeat, event.track), None)
            case "track_resumed":
                if (track := self._samples[event.problem, event.repeat].get(event.track)) is not None:
                    self.running[event.problem, event.repeat, event.track] = track
            case "sample_finished":
                for name in self._samples.pop((event.problem, event.repeat), ()):
                    self.running.pop((event.problem, event.repeat, name), None)  # whose end was missed
            case _:
                pass
