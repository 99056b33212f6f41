"""Follows a run and tells its state, for displays."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speclrm.app.time_left import Left, TimeLeft
from speclrm.runtime.engines.simulated.presets import is_simulated
from speclrm.runtime.events import (
    ProblemStarted,
    SampleFinished,
    StepCommitted,
    TrackFinished,
    TrackResumed,
    TrackStarted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import Event, Operation

WINDOW_S = 10.0
"""Seconds over which tokens per second are measured."""
SLICE_S = 0.25
ESTIMATE_SHARE = 0.002
"""Share of the time, 0 to 1, that estimates of the time left may take."""


@dataclass(slots=True)
class _Track:
    """``written``: the text of the step that is not committed yet."""

    steps: int = 0
    tokens: int = 0
    score: float | None = None
    text: str = ""
    written: str = ""
    finished: bool = False


@dataclass(slots=True)
class _Sample:
    """An unfinished sample."""

    gold: str | None = None
    tracks: dict[str, _Track] = field(default_factory=dict[str, _Track])


class Monitor:
    """A sink that follows a run and tells its state.

    Times are those of the run, as its events carry them: real seconds without breaks between attempts, and virtual ones for
    simulated engines. An event costs the same however long the run is, and so does the state: everything shown is kept in
    that form. Finished samples are only counted. If events are missing, figures are wrong by these and no more.
    """

    def __init__(self) -> None:
        self.stage = "starting"
        self.total: int | None = None
        self._begun = time.monotonic()
        self._started = False
        self._clear()

    def _clear(self) -> None:
        self.steps: Counter[str] = Counter()
        """Committed ones, by who wrote them: ``draft``, ``rewrite``, ``write``, ``closing``."""
        self.outcomes: Counter[str] = Counter()
        self.tracks = 0
        self.ended = 0
        """Finished tracks."""
        self.busy: dict[tuple[str, int, str], _Track] = {}
        """Unfinished tracks, in the order of their starts."""
        self._samples: dict[tuple[str, int], _Sample] = {}
        self._rates = _Rates()
        self._left = TimeLeft()
        self.virtual = False
        """Whether the engines are simulated, so that times are virtual."""
        self._last_t, self.seen = 0.0, time.monotonic()
        self._estimate: Left | None = None
        self._estimate_t = self._next_estimate = 0.0

    # As a sink.

    def emit(self, event: Event) -> None:
        # By the kind and not by isinstance, which takes half a microsecond for each class of pydantic that is not it.
        self._started, self._last_t, self.seen = True, event.t, time.monotonic()
        match event.kind:
            case "step_drafted" | "step_written":
                if (track := self.busy.get((event.problem, event.repeat, event.track))) is not None:
                    track.written = event.text
                self._rates.add(event.t, "draft" if event.kind == "step_drafted" else "target", event.operations)
            case "step_scored":
                self._rates.add(event.t, "target", event.operations)
            case "step_committed":
                self._left.add(event)
                self._commit(event)
            case "track_started" | "track_finished" | "track_resumed" | "sample_finished" | "problem_started":
                self._left.add(event)
                self._change(event)
            case "operation_dropped":
                self._rates.add(event.t, event.role, (event.operation,))
            case "run_started":
                self._clear()
                self.virtual = any(is_simulated(facts.name) for facts in event.engines.values())
                self._left.add(event)
            case "run_resumed":
                self._left.add(event)
            case _:
                pass

    def _commit(self, event: StepCommitted) -> None:
        self.steps[event.origin] += 1
        track = self.busy.get((event.problem, event.repeat, event.track))
        if track is None:
            return
        track.steps += 1
        track.tokens += event.tokens
        track.score, track.text, track.written = event.score, track.written, ""

    def _change(self, event: ProblemStarted | TrackStarted | TrackFinished | TrackResumed | SampleFinished) -> None:
        """Updates a sample or the set of its tracks."""
        key = event.problem, event.repeat
        if (sample := self._samples.get(key)) is None:
            sample = self._samples[key] = _Sample()
        match event.kind:
            case "problem_started":
                sample.gold = event.gold
            case "track_started":
                sample.tracks[event.track] = self.busy[event.problem, event.repeat, event.track] = _Track()
                self.tracks += 1
            case "track_finished":
                track = self.busy.pop((event.problem, event.repeat, event.track), None)
                if track is not None:
                    track.finished = True
                    self.ended += 1
            case "track_resumed":
                track = sample.tracks.get(event.track)
                if track is not None and track.finished:
                    self.busy[event.problem, event.repeat, event.track] = track
                    track.finished = False
                    self.ended -= 1
            case "sample_finished":
                self.outcomes[event.outcome] += 1
                del self._samples[event.problem, event.repeat]
                for name in sample.tracks:
                    self.busy.pop((event.problem, event.repeat, name), None)  # whose end was missed
                return

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # What a display reads.

    def notify(self, what: str, done: float | None, total: float | None) -> None:
        self.stage = what + (f" {done / total:.0%}" if done is not None and total else "")

    def plan(self, samples: int) -> None:
        self.total = samples

    @property
    def elapsed_s(self) -> float:
        """Returns the run's seconds so far; before it has begun, those of its preparation."""
        if not self._started:
            return time.monotonic() - self._begun
        return self._last_t if self.virtual else self._last_t + time.monotonic() - self.seen

    @property
    def running(self) -> bool:
        return self._started

    @property
    def finished(self) -> int:
        """Number of finished samples."""
        return self.outcomes.total()

    def gold(self, problem: str, repeat: int) -> str | None:
        """Returns the gold answer of an unfinished sample."""
        sample = self._samples.get((problem, repeat))
        return None if sample is None else sample.gold

    def rates(self) -> dict[str, float]:
        """Returns the generated tokens per second of each model, over the last seconds."""
        now = self.elapsed_s
        span = max(1.0, min(WINDOW_S, now))
        return {role: tokens / span for role, tokens in self._rates.tokens(now).items()}

    def left(self) -> Left | None:
        """Estimates the seconds to go; None until something is known.

        An estimate is used, less the time since then, until making estimates has taken no more than ``ESTIMATE_SHARE`` of
        the time: a display must not hold its run up.
        """
        if not self._started:
            return None
        now = self.elapsed_s
        if self._estimate is None or time.monotonic() >= self._next_estimate:
            self._left.samples = self.total
            began = time.thread_time()
            self._estimate, self._estimate_t = self._left.left(now), now
            self._next_estimate = time.monotonic() + (time.thread_time() - began) / ESTIMATE_SHARE
        return None if self._estimate is None else self._estimate.after(now - self._estimate_t)


class _Rates:
    """Counts tokens of each model in the last ``WINDOW_S`` seconds, in slices of ``SLICE_S``."""

    def __init__(self) -> None:
        self._slices: dict[str, deque[list[int]]] = {"draft": deque(), "target": deque()}
        """A slice: its number, and its tokens."""
        self._sums = {"draft": 0, "target": 0}

    def add(self, t: float, role: str, operations: Sequence[Operation]) -> None:
        slices, number = self._slices[role], int(t / SLICE_S)
        if not slices or slices[-1][0] != number:
            self._forget(number)
            slices.append([number, 0])
        for operation in operations:
            slices[-1][1] += operation.output_tokens
            self._sums[role] += operation.output_tokens

    def tokens(self, now: float) -> dict[str, int]:
        self._forget(int(now / SLICE_S))
        return {role: tokens for role, tokens in self._sums.items() if tokens}

    def _forget(self, number: int) -> None:
        """Drops the slices that are too old once slice ``number`` is under way."""
        for role, slices in self._slices.items():
            while slices and slices[0][0] <= number - WINDOW_S / SLICE_S:
                self._sums[role] -= slices.popleft()[1]
