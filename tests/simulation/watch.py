"""Looks at the runtime whenever virtual time moves: whoever does nothing then must have a reason, and every queue its bound."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import structlog
from attack.attempts import AttackLoop, Fault

from speclrm.runtime.sample import Sample
from speclrm.runtime.scheduling.engine_queue import SURPLUS
from speclrm.runtime.scheduling.lanes import Lane, LaneSlot
from speclrm.runtime.trace.bus import EventBus
from speclrm.runtime.trace.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Generator

    from simulation.books import Books

    from speclrm.runtime.scheduling.admission import Admission
    from speclrm.runtime.scheduling.scheduler import Scheduler

TURNS_MAX = 300_000
"""A run of this size takes a few thousand turns of its loop: one that takes more goes in a circle."""
LINES_SPARE = 200
"""Events that all tracks of a small run may publish between two looks at whether there is room for them."""
EXPECTED = ("trace_failed", "sink_failed", "engine_given_up")
"""Errors in the log that are told to whoever waits, too."""


class Circle(BaseException):
    """The loop turns and turns. Not an Exception, so that nothing takes it for its own."""


class Watch:
    """``tracks``: those that run; ``busy``: how many requests each has on their way; ``rooms``: tracks that wait for readers."""

    def __init__(self, books: Books, tight: int) -> None:
        self.books = books
        self.tight = tight
        self.tracks: set[str] = set()
        self.busy: Counter[str] = Counter()
        self.rooms = 0
        self.scheduler: Scheduler | None = None
        self.journals: list[Journal] = []
        self.faults: list[Fault] = []
        self.idle_allowed = False

    def look(self) -> None:
        if self.scheduler is None or len(self.faults) > 3:
            return
        for lane in self.scheduler.lanes.values():
            for queue in lane.queues:
                most = queue._bound if queue._fixed else max(1, int(queue.engine.max_num_seqs * SURPLUS))
                if queue.in_flight > most:
                    self._tell("bound", f"{queue.in_flight} requests in {queue.engine.name}, which takes {most}")
                waiting = len(queue._waiting[False])
                if waiting and queue._has_room(lasting=False):
                    self._tell("asleep", f"{waiting} requests wait before {queue.engine.name}, which has room")
        for journal in self.journals:
            if len(journal._lines) > self.tight + LINES_SPARE:
                self._tell("bound", f"{len(journal._lines)} events wait for the disk")
        if not self.idle_allowed:
            idle = [name for name in self.tracks if not self.busy[name]]
            if len(idle) > self.scheduler.admission.waiting + self.rooms:
                self._tell("barrier", f"{', '.join(sorted(idle))}: nothing is asked, and nothing waited for")

    def _tell(self, kind: str, text: str) -> None:
        self.faults.append(Fault(kind, text))


class WatchedLoop(AttackLoop):
    watch: Watch | None = None
    circle = False

    def advance(self, seconds: float) -> None:
        if seconds > 0 and self.watch is not None:
            self.watch.look()
        super().advance(seconds)
        if self.turns > TURNS_MAX and not self.circle:
            self.circle = True
            raise Circle


@contextmanager
def on_watch(watch: Watch) -> Generator[None]:
    """Runtimes in this block tell the watch what their tracks do."""
    run_track, enter, leave, fly, room = (
        Sample._run_track,
        LaneSlot.__aenter__,
        LaneSlot.__aexit__,
        Lane.fly,
        EventBus.room,
    )
    journal_enter = Journal.__aenter__

    async def watched_track(self: Sample, name: str, track: Any) -> None:
        key = f"{self.problem.id}/{self.repeat}/{name}"
        watch.tracks.add(key)
        try:
            await run_track(self, name, track)
        finally:
            watch.tracks.discard(key)

    async def watched_enter(self: LaneSlot) -> Any:
        key = self._flight.request.id.rsplit("/", 2)[0]
        watch.busy[key] += 1
        try:
            return await enter(self)
        except BaseException:
            watch.busy[key] -= 1
            raise

    async def watched_leave(self: LaneSlot, *why: Any) -> None:
        try:
            await leave(self, *why)
        finally:
            watch.busy[self._flight.request.id.rsplit("/", 2)[0]] -= 1

    def watched_fly(self: Lane, request_state: Any) -> LaneSlot:
        watch.books.flights[request_state.request.id] += 1
        return fly(self, request_state)

    async def watched_room(self: EventBus) -> None:
        watch.rooms += 1
        try:
            await room(self)
        finally:
            watch.rooms -= 1

    async def watched_journal(self: Journal) -> Journal:
        watch.journals.append(self)
        return await journal_enter(self)

    with ExitStack() as stack:
        for owner, name, new in (
            (Sample, "_run_track", watched_track),
            (LaneSlot, "__aenter__", watched_enter),
            (LaneSlot, "__aexit__", watched_leave),
            (Lane, "fly", watched_fly),
            (EventBus, "room", watched_room),
            (Journal, "__aenter__", watched_journal),
        ):
            stack.enter_context(patch.object(owner, name, new))
        yield


@contextmanager
def logged(faults: list[Fault]) -> Generator[None]:
    """Errors that the runtime writes into its log are faults, but for those that it tells somebody."""

    def note(_: object, method: str, event: Any) -> Any:
        if event.get("event") not in EXPECTED:
            error = event.get("exc_info") or {name: value for name, value in event.items() if name != "event"}
            faults.append(Fault("log", f"{event.get('event')}: {error!r}"))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(40))
    try:
        yield
    finally:
        structlog.configure(**before)


def held(scheduler: Scheduler, admission: Admission) -> list[Fault]:
    """What somebody holds though nobody is there."""
    found: list[str] = []
    for lane in scheduler.lanes.values():
        for queue in lane.queues:
            stats = queue.stats()
            if stats.in_flight or stats.waiting or queue.slots:
                found.append(f"{stats.in_flight} in flight and {stats.waiting} waiting before {queue.engine.name}")
            if stats.engine.alive and (stats.engine.running or stats.engine.waiting):
                found.append(
                    f"{stats.engine.running} running and {stats.engine.waiting} waiting in {queue.engine.name}"
                )
    if admission.admitted or admission.waiting:
        found.append(f"{admission.admitted} reservations, {admission.waiting} waiting for one")
    if scheduler.controller is not None and scheduler.controller.problems:
        found.append(f"{scheduler.controller.problems} problems in the controller's mind")
    return [Fault("left", one) for one in found]
