"""Numbers a run's events and hands them to its sinks, in one order for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import structlog

from speclrm.runtime.clock import clock
from speclrm.runtime.events import six_digits, stamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink

log = structlog.get_logger(__name__)


class EventBus:
    """Publishes without waiting, so a cancellation never loses an event; ``room`` holds back those who write much.

    ``required``: sinks whose failure ends the run (the journal). A failure of another sink is logged once, and that
    sink gets no more events.
    """

    def __init__(
        self,
        required: Sequence[Sink] = (),
        optional: Sequence[Sink] = (),
        *,
        attempt: int = 0,
        next_seq: int = 0,
        elapsed_s: float = 0.0,
    ) -> None:
        self._required = list(required)
        self._optional = tuple(optional)
        self._attempt = attempt
        self._next_seq = next_seq
        self._now_s = clock()
        self._started = self._now_s() - elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Run time in seconds, in the form that events carry."""
        return six_digits(self._now_s() - self._started)

    def set_clock(self, elapsed_s: float) -> None:
        """Sets the run time."""
        self._started = self._now_s() - elapsed_s

    def publish(self, event: Event, at_s: float | None = None) -> Event:
        """Stamps a new event with its number and time, passes it on, and returns it.

        ``at_s``: its time, if it was read before.
        """
        stamp(event, self._next_seq, self._attempt, self.elapsed_s if at_s is None else at_s)
        self._next_seq += 1
        for sink in self._required:
            sink.emit(event)
        for sink in self._optional:
            try:
                sink.emit(event)
            except Exception as error:  # noqa: BLE001  # whatever a listener does, the run goes on
                self._optional = tuple(one for one in self._optional if one is not sink)
                log.error("sink_failed", sink=type(sink).__name__, error=repr(error))
        return event

    async def turn(self, kind: Literal["problem_started", "sample_finished"], problem: str, repeat: int) -> None:
        """Waits until such an event is due; in a live run that is now."""

    def has_room(self) -> bool:
        """Returns whether ``room`` would return at once. The runtime's own sinks say so by a property of this name; any other
        is asked by its ``room``.
        """
        for sink in self._required:  # noqa: SIM110  # all tracks ask before each request, and a generator takes twice as long
            if getattr(sink, "has_room", None) is not True:
                return False
        return True

    async def room(self) -> None:
        for sink in self._required:
            await sink.room()
