"""Publishes the events of loops that are driven again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from speclrm.runtime.events import (
    Event,
    ProblemStarted,
    SampleEvent,
    SampleFinished,
    TrackResumed,
)
from speclrm.runtime.trace.bus import EventBus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.protocols import Sink
    from speclrm.runtime.replay.playback import Playback


class PlaybackBus(EventBus):
    """Publishes events of loops that are driven again. Events that the trace has are published again only in a replay.

    New events are held back until the run continues: if the trace turns out not to fit, they never happened.
    """

    def __init__(self, playback: Playback, required: Sequence[Sink], optional: Sequence[Sink], *, anew: bool) -> None:
        past = playback.past
        if anew:
            super().__init__(required, optional)
        else:
            super().__init__(
                required, optional, attempt=len(past.attempts), next_seq=past.next_seq, elapsed_s=past.elapsed_s
            )
        self._playback = playback
        self._anew = anew
        self._held: list[Event] = []

    def publish(self, event: Event, at_s: float | None = None) -> Event:
        if isinstance(event, SampleEvent) and not isinstance(event, TrackResumed):
            recorded = self._playback.sample(event.problem, event.repeat).take(event)
            if recorded is not None and not self._anew:
                return recorded
        if not self._playback.released:
            self._held.append(event)
            return event
        return super().publish(event, at_s)

    def go_on(self, sinks: Sequence[Sink], first: Sequence[Event]) -> None:
        """Publishes what comes first, then what was held back. The time that it took to catch up does not count.

        ``sinks``: required ones that could not be opened before.
        """
        self._required += sinks
        self.set_clock(self._playback.past.elapsed_s)
        self._playback.release()
        held, self._held = self._held, []
        for event in (*first, *held):
            super().publish(event)

    async def turn(self, kind: Literal["problem_started", "sample_finished"], problem: str, repeat: int) -> None:
        event = ProblemStarted if kind == "problem_started" else SampleFinished
        await self._playback.sample(problem, repeat).due_next(event)
