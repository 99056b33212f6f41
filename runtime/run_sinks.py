"""Holds the sinks of the runtime itself: one ends a run with too many errors, one is followed by a caller."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from speclrm.runtime.errors import TooManyErrors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from speclrm.runtime.events import Event


ERRORS_MIN = 8


ERROR_SHARE_MAX = 0.5
"""A run stops when at least this many tracks failed and they are more than this share of all that ended: something is
wrong with the whole, and continuing would only waste time."""


SHOWN_MAX = 3
"""Failed samples that the error names."""


STREAM_EVENTS_MAX = 1_000
"""Events that a caller of ``stream`` may be behind before its tracks wait for it."""


class ErrorGuard:
    """Counts the tracks and samples that failed; ``room`` raises once they are too many.

    ``samples_max``: samples that may end with the outcome ``error`` (every track failed) or ``grader_failed``; None: no limit.
    """

    def __init__(self, samples_max: int | None = None) -> None:
        self._samples_max = samples_max
        self._ended = 0
        self._failed = 0
        self._samples: list[str] = []
        self._last = ""

    def emit(self, event: Event) -> None:
        match event.kind:
            case "track_finished":
                self._ended += 1
                if event.reason == "error":
                    self._failed += 1
                    self._last = event.error or ""
            case "sample_finished" if event.outcome in ("error", "grader_failed"):
                why = "the grader failed" if event.outcome == "grader_failed" else self._last
                self._samples.append(f"{event.problem}/{event.repeat} ({why})")
            case _:
                pass

    @property
    def has_room(self) -> bool:
        return not self._samples and self._failed < ERRORS_MIN

    async def room(self) -> None:
        if self._samples_max is not None and len(self._samples) > self._samples_max:
            few = "; ".join(self._samples[-SHOWN_MAX:])
            raise TooManyErrors(
                f"{len(self._samples)} samples ended in an error, and --max-errors allows {self._samples_max}, so the run was "
                f"stopped. The last: {few}. `speclrm resume` continues it with the samples that have not ended."
            )
        if self._failed >= ERRORS_MIN and self._failed > ERROR_SHARE_MAX * self._ended:
            raise TooManyErrors(
                f"{self._failed} of {self._ended} tracks failed, so the run was stopped. The last error: {self._last}"
            )

    async def aclose(self) -> None:
        pass


class Tap:
    """A sink that one reader follows."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False

    def emit(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    @property
    def has_room(self) -> bool:
        return len(self._events) < STREAM_EVENTS_MAX

    async def room(self) -> None:
        while len(self._events) >= STREAM_EVENTS_MAX:
            self._taken.clear()
            await self._taken.wait()

    async def aclose(self) -> None:
        self.end()

    def end(self) -> None:
        self._ended = True
        self._arrived.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        while self._events or not self._ended:
            if not self._events:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            yield self._events.popleft()
            self._taken.set()
