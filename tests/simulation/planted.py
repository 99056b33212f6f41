"""Ten bugs, planted one at a time, to see whether the simulation finds them and how soon. None is in the runtime itself."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from simulation.command import one

from speclrm.app.lock_step import Barrier
from speclrm.runtime.engine import continued
from speclrm.runtime.events import VoteUpdated
from speclrm.runtime.sample import Sample
from speclrm.runtime.scheduling import lanes
from speclrm.runtime.scheduling.engine_queue import EngineQueue
from speclrm.runtime.scheduling.lanes import LaneSlot
from speclrm.runtime.track.events import TrackEvents
from speclrm.runtime.track.track import RuntimeTrack

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from contextlib import AbstractContextManager

    from simulation.cases import Outcome

    from speclrm.runtime.engine import Request
    from speclrm.runtime.events import Event


@contextmanager
def lost_operation() -> Generator[None]:
    """Work ahead that turned out useless is accounted for nowhere."""
    dropped = TrackEvents.dropped

    def silent(
        self: TrackEvents, operation: Any, role: Any, purpose: Any, reason: Any, *rest: Any, **named: Any
    ) -> None:
        if reason != "useless":
            dropped(self, operation, role, purpose, reason, *rest, **named)

    with patch.object(TrackEvents, "dropped", silent):
        yield


@contextmanager
def double_commit() -> Generator[None]:
    """A rewritten second step is committed twice."""
    commit = RuntimeTrack.commit

    async def twice(self: RuntimeTrack, step: Any, score: float | None = None) -> None:
        await commit(self, step, score)
        if step.kind == "rewrite" and step.index == 1:
            await commit(self, step, score)

    with patch.object(RuntimeTrack, "commit", twice):
        yield


@contextmanager
def leaked_request() -> Generator[None]:
    """Who is cancelled does not close its stream: the request goes on in its engine."""

    async def leave(self: LaneSlot, *, aborted: bool) -> None:
        if self._inside:
            self._inside = False
            kept.append(self._stream)  # the garbage collector would close it
            self._queue.slots.pop(self, None)
            self._queue.leave(self._flight)

    kept: list[Any] = []
    with patch.object(LaneSlot, "_leave", leave):
        yield


@contextmanager
def missed_wake_up() -> Generator[None]:
    """A place that becomes free by a request that was given up is offered to nobody."""
    queue = EngineQueue
    leave = queue.leave

    def quietly(self: Any, request_state: Any) -> None:
        if request_state.finish is None:
            self._serve = lambda: None
        leave(self, request_state)
        self.__dict__.pop("_serve", None)

    with patch.object(queue, "leave", quietly):
        yield


@contextmanager
def another_seed() -> Generator[None]:
    """A request that goes on at another engine does so with another seed."""

    def reseeded(request: Request, ids: Sequence[int]) -> Request:
        again = continued(request, ids)
        return again if again is request or again.seed is None else replace(again, seed=again.seed + 1)

    with patch.object(lanes, "continued", reseeded):
        yield


@contextmanager
def wrong_track() -> Generator[None]:
    """A request that enters its engine in the same moment as another one of its kind gets the reply to that one."""
    enter = LaneSlot._enter

    async def confused(self: LaneSlot) -> None:
        await enter(self)
        mine = self._flight.request
        for other in self._queue.slots:
            assert isinstance(other, LaneSlot)
            theirs = other._flight.request
            same = mine.id.rpartition("/")[2] == theirs.id.rpartition("/")[2]
            if other is not self and other._started == self._started and same:
                self._stream = self._queue.engine.stream(continued(theirs, other._flight.ids))
                return

    with patch.object(LaneSlot, "_enter", confused):
        yield


@contextmanager
def swallowed_cancel() -> Generator[None]:
    """A request that is cancelled while it waits for a place goes on waiting."""
    wait = EngineQueue.wait

    async def stubborn(self: Any, request_state: Any) -> bool:
        try:
            return await wait(self, request_state)
        except asyncio.CancelledError:
            return await wait(self, request_state)

    with patch.object(EngineQueue, "wait", stubborn):
        yield


@contextmanager
def double_vote() -> Generator[None]:
    """A track that answered first is counted for the last other answer, too."""
    publish = Sample._publish

    def counted(self: Sample, event: Event, at_s: float | None = None) -> Event:
        if isinstance(event, VoteUpdated) and len(event.classes) > 1:
            first, *rest = event.classes
            event = event.model_copy(update={"classes": (first, *rest[:-1], (*rest[-1], first[0]))})
        return publish(self, event, at_s)

    with patch.object(Sample, "_publish", counted):
        yield


@contextmanager
def barrier() -> Generator[None]:
    """The tracks of a sample wait for each other before each commit."""
    commit, run_track = RuntimeTrack.commit, Sample._run_track
    barriers: dict[tuple[str, int], Barrier] = defaultdict(Barrier)

    async def together(self: RuntimeTrack, step: Any, score: float | None = None) -> None:
        await barriers[self.problem.id, self.repeat].wait()
        await commit(self, step, score)

    async def member(self: Sample, name: str, track: Any) -> None:
        with barriers[self.problem.id, self.repeat].member():
            await run_track(self, name, track)

    with patch.object(RuntimeTrack, "commit", together), patch.object(Sample, "_run_track", member):
        yield


@contextmanager
def unbounded_queue() -> Generator[None]:
    """An engine that is full gets whatever comes."""
    room = EngineQueue._has_room

    def ever(self: Any, lasting: bool) -> bool:
        return room(self, lasting) or self.in_flight >= self._cap

    with patch.object(EngineQueue, "_has_room", ever):
        yield


PLANTED: dict[str, Callable[[], AbstractContextManager[None]]] = {
    plant.__name__.replace("_", " "): plant
    for plant in (
        lost_operation,
        double_commit,
        leaked_request,
        missed_wake_up,
        another_seed,
        wrong_track,
        swallowed_cancel,
        double_vote,
        barrier,
        unbounded_queue,
    )
}


def find(name: str, first: int, seeds: int) -> Outcome | None:
    """Returns what the first seed found that the bug breaks; None if none of them does."""
    with PLANTED[name]():
        for seed in range(first, first + seeds):
            outcome = one(seed)
            if outcome.faults:
                return outcome
    return None


def find_all(first: int, seeds: int) -> int:
    missed = 0
    for name in PLANTED:
        found = find(name, first, seeds)
        missed += found is None
        told = (
            f"seed {found.seed}, the {found.seed - first + 1}.: {found.faults[0]}"
            if found
            else f"not within {seeds} seeds"
        )
        print(f"{name:18} {told}", flush=True)
    return 1 if missed else 0
