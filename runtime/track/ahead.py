"""Keeps work ahead: steps that are made before it is known that they are needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from speclrm.runtime.errors import CapacityError
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from speclrm.runtime.cleanup import Leaving
    from speclrm.runtime.events import DropReason
    from speclrm.runtime.protocols import Step
    from speclrm.runtime.replay.playback import SamplePlayback
    from speclrm.runtime.track.events import TrackEvents
    from speclrm.runtime.track.generate import Ahead, Made, Making, StepMaker
    from speclrm.runtime.track.requests import TrackRequests


class WorkAhead:
    """Holds what one track has begun ahead: at most one draft and one rewrite."""

    __slots__ = ("_events", "_leaving", "_maker", "_makings", "_record", "_requests")

    def __init__(
        self,
        requests: TrackRequests,
        events: TrackEvents,
        maker: StepMaker,
        leaving: Leaving,
        record: SamplePlayback | None,
    ) -> None:
        self._requests = requests
        self._events = events
        self._maker = maker
        self._leaving = leaving
        self._record = record
        self._makings: dict[Ahead, Making] = {}

    def begin(self, purpose: Ahead, after: Step | None = None) -> None:
        """Starts a step that ``made`` will use or ``give_up`` will end. ``after``: the uncommitted step before a draft."""
        role = Role.DRAFT if purpose == "draft" else Role.TARGET
        try:
            making = self._maker.making(role, purpose, after=after, ahead=True)
        except CapacityError:
            return  # if the step is needed after all, its own request will fail
        name = f"{self._requests.problem}/{self._requests.track} {purpose} ahead"
        making.task = asyncio.create_task(self._maker.make(making), name=name)
        self._makings[purpose] = making

    def made(self, purpose: Ahead) -> Coroutine[Any, Any, Made]:
        """Returns the step that was begun ahead, or makes one now."""
        making = self._makings.pop(purpose, None)
        if making is not None and making.task is not None:
            return self._begun(making, making.task)
        return self._maker.make(self._maker.making(Role.DRAFT if purpose == "draft" else Role.TARGET, purpose))

    async def _begun(self, making: Making, task: asyncio.Task[Made]) -> Made:
        try:
            return await task
        except asyncio.CancelledError:
            self._leave(making)
            self._maker.drop(making, self._events.stop_reason)
            raise

    def give_up(self, purpose: Ahead, reason: DropReason) -> None:
        """Ends what was begun and accounts for it at once; what its engine still sends is ignored."""
        making = self._makings.pop(purpose, None)
        if making is None:
            return
        self._leave(making)
        if self._record is not None:
            # How far it had come is a matter of moments, so the trace decides if it has the answer.
            started = self._requests.name(f"{purpose}-ahead", index=making.index)
            for event in self._record.given_up(self._requests.track, started):
                self._events.emit(event)
                making.given_up = True
            if self._record.coming(self._requests.track) is not None:
                # The trace continues without it: it had failed with its attempt, which is accounted for.
                making.given_up = True
        self._maker.drop(making, reason)

    def stop(self) -> None:
        """Cancels all of it; ``end`` accounts for it."""
        for making in self._makings.values():
            self._leave(making)

    def end(self, reason: DropReason) -> None:
        """Gives all of it up and accounts for it."""
        for purpose in tuple(self._makings):
            self.give_up(purpose, reason)

    def _leave(self, making: Making) -> None:
        if making.task is not None:
            self._leaving.add(making.task)
