"""Numbers a run's events and hands them to its sinks, in one order for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from speclrm.runtime.clock import now_s
from speclrm.runtime.events import stamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink

log = structlog.get_logger(__name__)


class EventBus:
    """``publish`` never waits, so an event is never lost to a cancellation; ``room`` holds back those who write much.

    ``required``: sinks whose failure ends the run (the journal). A failure of another sink is logged once, and that
    sink gets no more events.
    """

    def __init__(self, required: Sequence[Sink] = (), optional: Sequence[Sink] = (), *, attempt: int = 0) -> None:
        self._required = list(required)
        self._optional = list(optional)
        self._attempt = attempt
        self._next_seq = 0
        self._started = now_s()

    @property
    def elapsed_s(self) -> float:
        return now_s() - self._started

    def publish(self, event: Event) -> Event:
        """Stamps a new event with its number and time, hands it on, and returns it."""
        stamp(event, self._next_seq, self._attempt, round(self.elapsed_s, 6))
        self._next_seq += 1
        for sink in self._required:
            sink.emit(event)
        for sink in tuple(self._optional):
            try:
                sink.emit(event)
            except Exception as error:  # noqa: BLE001  # whatever a listener does, the run goes on
                self._optional.remove(sink)
                log.error("sink_failed", sink=type(sink).__name__, error=repr(error))
        return event

    async def room(self) -> None:
        for sink in self._required:
            await sink.room()
