"""Follows a run and tells its state, for displays."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from speclrm.app.time_left import Left, TimeLeft
from speclrm.runtime.engines.simulated.presets import is_simulated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import Event, Operation

WINDOW_S = 10.0
"""Seconds over which tokens per second are measured."""
SLICE_S = 0.25
SLICES = int(WINDOW_S / SLICE_S)
ESTIMATE_SHARE = 0.001
"""Share of the time, 0 to 1, that estimates of the time left may take."""


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
        self._golds: dict[tuple[str, int], str | None] = {}
        """Of unfinished samples."""
        self._rates = _Rates()
        self._left = TimeLeft()
        self.virtual = False
        """Whether the engines are simulated, so that times are virtual."""
        self._last_t = 0.0
        self.seen = time.monotonic()
        """When the last event came, on the monotonic clock."""
        self._estimate: Left | None = None
        self._estimate_t = self._next_estimate = 0.0

    # As a sink.

    def emit(self, event: Event) -> None:
        # By the kind and not by isinstance, which takes half a microsecond for each class of pydantic that is not it.
        self._started, self._last_t, self.seen = True, event.t, time.monotonic()
        match event.kind:
            case "step_drafted":
                self._rates.add(event.t, "draft", event.operations)
            case "step_written" | "step_scored":
                self._rates.add(event.t, "target", event.operations)
            case "step_committed":
                self.steps[event.origin] += 1
                self._left.add(event)
            case "operation_dropped":
                self._rates.add(event.t, event.role, (event.operation,))
            case "problem_started":
                self._golds[event.problem, event.repeat] = event.gold
            case "track_started":
                self.tracks += 1
                self._left.add(event)
            case "track_finished":
                self.ended += 1
                self._left.add(event)
            case "track_resumed":
                self.ended -= 1
                self._left.add(event)
            case "sample_finished":
                self.outcomes[event.outcome] += 1
                self._golds.pop((event.problem, event.repeat), None)
                self._left.add(event)
            case "run_started":
                self._clear()
                self.virtual = any(is_simulated(facts.name) for facts in event.engines.values())
                self._left.add(event)
            case "run_resumed":
                self._left.add(event)
            case _:
                pass

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
        return self._golds.get((problem, repeat))

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
        # A ring, which allocates nothing: under virtual time nearly every event begins a slice.
        self._numbers = [-1] * SLICES
        self._tokens = {"draft": [0] * SLICES, "target": [0] * SLICES}

    def add(self, t: float, role: str, operations: Sequence[Operation]) -> None:
        number = int(t / SLICE_S)
        place = number % SLICES
        if self._numbers[place] != number:
            self._numbers[place] = number
            for tokens in self._tokens.values():
                tokens[place] = 0
        for operation in operations:
            self._tokens[role][place] += operation.output_tokens

    def tokens(self, now: float) -> dict[str, int]:
        oldest = int(now / SLICE_S) - SLICES
        places = [place for place, number in enumerate(self._numbers) if number > oldest]
        found = {role: sum([tokens[place] for place in places]) for role, tokens in self._tokens.items()}
        return {role: tokens for role, tokens in found.items() if tokens}
