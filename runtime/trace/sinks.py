"""Gives each sink a queue and a task, so that it gets the events in order at its own pace.

The run never waits for such a sink. One that falls behind loses the oldest events that wait for it, one that fails gets
no more, and both are logged once when it happens and once at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink

log = structlog.get_logger(__name__)

SINK_EVENTS_MAX = 10_000
"""Events that may wait for a sink."""
SINK_CLOSE_S = 5.0
"""Seconds that a run's end waits for a sink: once until it has taken what waits for it, once more until it is closed."""
BLOCKING_S = 0.5
"""Seconds of an ``emit`` after which the sink is called in another thread from then on: a longer one holds up every
track. Well above the pauses of the interpreter itself, which no sink can help."""
BLOCKING_MEAN_S = 0.005
TURN_S = 0.02
"""Seconds in a sink's ``emit`` after which everything else on the loop has its turn before the next event."""
_MEAN_OVER = 20


class Subscriber:
    """Brings a run's events to one sink: calls ``emit``, then awaits ``room``, for one event after the other.

    A sink that does I/O keeps the event in ``emit`` and does the rest in ``room``, which only this task awaits. Use as
    ``async with Subscriber(sink)``.
    """

    def __init__(self, sink: Sink, *, events_max: int = SINK_EVENTS_MAX) -> None:
        self._sink = sink
        self._name = type(sink).__name__
        self._events_max = events_max
        self._events: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._failed = False
        self._in_thread = False
        self._count = 0
        self._spent_s = 0.0
        self._turn_ends_s = TURN_S
        self.missed = 0
        """Events that the sink did not get."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Subscriber:
        self._task = asyncio.create_task(self._deliver(), name=f"sink {self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def emit(self, event: Event) -> None:
        if self._failed:
            self.missed += 1
            return
        if len(self._events) >= self._events_max:
            # Drops the oldest: a display needs the present state most.
            self._events.popleft()
            self.missed += 1
            if self.missed == 1:
                log.warning("sink_behind", sink=self._name, waiting=self._events_max, notice="it loses events")
        self._events.append(event)
        self._wake.set()

    async def room(self) -> None:
        """Returns at once: the run does not wait for the sink."""

    async def aclose(self) -> None:
        """Lets the sink take what waits for it, and closes it, within a limit. Never raises for the sink's errors."""
        task, self._task = self._task, None
        if task is None:
            return
        self._closing = True
        self._wake.set()
        try:
            await asyncio.wait([task], timeout=SINK_CLOSE_S)
        finally:
            task.cancel()
        await asyncio.wait([task], timeout=SINK_CLOSE_S)  # a sink may ignore the cancellation
        self.missed += len(self._events)
        try:
            async with asyncio.timeout(SINK_CLOSE_S):
                await self._sink.aclose()
        except Exception as error:  # noqa: BLE001  # whatever a listener does, the run has ended well
            log.error("sink_not_closed", sink=self._name, error=repr(error))
        if self.missed:
            log.warning("sink_missed_events", sink=self._name, missed=self.missed)

    async def _deliver(self) -> None:
        while not self._closing or self._events:
            while self._events:
                event = self._events.popleft()
                try:
                    if self._in_thread:
                        await asyncio.to_thread(self._sink.emit, event)
                    else:
                        self._emit(event)
                    await self._sink.room()
                except Exception as error:  # noqa: BLE001  # whatever a listener does, the run goes on
                    log.error("sink_failed", sink=self._name, error=repr(error), notice="it gets no more events")
                    self._failed = True
                    self.missed += 1 + len(self._events)
                    self._events.clear()
                    return
                if self._spent_s >= self._turn_ends_s:
                    self._turn_ends_s = self._spent_s + TURN_S
                    await asyncio.sleep(0)
            self._wake.clear()
            if not self._closing:
                await self._wake.wait()

    def _emit(self, event: Event) -> None:
        started = time.perf_counter()
        self._sink.emit(event)
        took_s = time.perf_counter() - started
        self._count += 1
        self._spent_s += took_s
        if took_s > BLOCKING_S or (self._spent_s > BLOCKING_MEAN_S * self._count and self._count >= _MEAN_OVER):
            self._in_thread = True
            log.warning(
                "sink_blocks",
                sink=self._name,
                seconds=round(max(took_s, self._spent_s / self._count), 3),
                notice="its emit is called in another thread from now on; do I/O in room",
            )
