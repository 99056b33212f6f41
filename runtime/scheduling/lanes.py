"""Queues requests before the engines of one model role, and sends each as soon as there is room.

There is no dispatcher and no round: a request that finds room starts at once, and one that ends gives its place to the
most urgent one waiting. Nothing is held back to collect a batch: the engine batches by itself at each iteration. A request
whose engine fails goes on at another, or here when that one works again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from zlib import crc32

from speclrm.runtime.cleanup import to_its_end
from speclrm.runtime.engine import Delta, continued
from speclrm.runtime.errors import EngineDeadError, EngineStalledError, RequestError
from speclrm.runtime.scheduling.engine_queue import EngineQueue, LaneStats
from speclrm.runtime.scheduling.overlap import Overlap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from types import TracebackType

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.scheduling.requests import RequestState

MOVES_MAX = 8
"""Times in a row that a request may lose its engine without a token between, before it is given up."""

STALL_LIMIT_S = 600.0
"""Seconds without progress after which an engine that somebody reads from has stalled: more than a long prompt on a
slow CPU takes."""


class LaneSlot:
    """A request's time in its lane: the block around it, and the iterator over its deltas. The task that enters it reads it.

    A class, since the loop keeps a weak reference to every generator, which was a tenth of a step's cost.
    """

    __slots__ = (
        "_began_s",
        "_flight",
        "_inside",
        "_lane",
        "_loop",
        "_lost",
        "_moves",
        "_queue",
        "_reads",
        "_started",
        "_stream",
        "_task",
        "quiet_s",
        "told",
    )

    def __init__(self, lane: Lane, request_state: RequestState) -> None:
        self._lane = lane
        self._flight = request_state
        self._queue = lane.queues[request_state.place]
        self._lost: EngineDeadError | EngineStalledError | None = None
        self._inside = self._reads = self.told = False
        self._moves = 0
        self._loop = asyncio.get_running_loop()  # to find it takes twice as long as to read its clock
        self.quiet_s = 0.0

    async def __aenter__(self) -> AsyncIterator[Delta]:
        await self._enter()
        self._began_s = self._started
        self._queue.operations += 1
        return self

    async def _enter(self) -> None:
        """Waits for a place at an engine that works, and opens the stream there, for what is left of the output."""
        request_state, queue = self._flight, self._queue
        loop = self._loop
        asked = now = loop.time()
        try:
            while True:
                if not queue.health.works:
                    self._queue = queue = await self._lane.another(request_state)
                    now = loop.time()
                if queue.enter_at_once(request_state, now) or await queue.wait(request_state):
                    break
                now = loop.time()
        finally:
            entered = loop.time()
            request_state.queue_s += entered - asked
            self._queue.waited_s += entered - asked
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._started = self.quiet_s = entered
        self._inside, self.told = True, False
        request_state.place, request_state.engine = self._lane.queues.index(queue), queue.engine.name
        queue.slots[self] = None
        self._stream = queue.engine.stream(continued(request_state.request, request_state.ids))

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        flight, task = self._flight, self._task
        while True:
            others = task.cancelling()
            self._reads = True
            try:
                if self._lost is not None:
                    raise self._lost
                delta = await self._stream.__anext__()
                break
            except StopAsyncIteration:
                if flight.finish is None:  # nobody may take a part of an answer for the whole
                    raise RequestError(
                        f"Engine {self._queue.engine.name} ended request {flight.request.id} without a reason."
                    ) from None
                raise
            except asyncio.CancelledError:
                # As in asyncio.timeout: only our own cancellation becomes another error.
                if self._lost is None or task.uncancel() > others:
                    raise
                error = self._lost
            except (EngineDeadError, EngineStalledError) as failure:
                error = failure
            finally:
                self._reads = False
            await self._move(error)
            if len(flight.ids) >= flight.request.max_tokens:  # it failed behind the last token
                delta = Delta((), "length")
                break
        if delta.ids:
            self._moves = 0
            self._queue.health.progress()
        flight.take(delta)
        self.quiet_s = now = self._loop.time()
        self.told = False
        flight.engine_s = now - self._began_s
        return delta

    async def _move(self, error: EngineDeadError | EngineStalledError) -> None:
        """Leaves an engine that failed and goes on at another, or here when it works again. Raises if that cannot be."""
        queue, lane = self._queue, self._lane
        await self._leave(aborted=True)
        alone = not any(other.health.works for other in lane.queues if other is not queue)
        if isinstance(error, EngineStalledError) and alone and not queue.health.may_return:
            raise error
        # What failed before the engine came back says nothing of it now.
        if queue.health.works and self._started >= queue.health.since_s:
            queue.fail(error)
        self._moves += 1
        if self._moves > max(MOVES_MAX, queue.health.restarts):
            raise error
        self._lost = None
        await self._enter()

    @property
    def waits(self) -> bool:
        """Whether somebody waits for the engine's next delta. A reader that is busy elsewhere cannot tell that it stalls."""
        return self._reads

    @property
    def operation(self) -> str:
        return self._flight.request.id

    def stall(self) -> None:
        """Ends the wait for the next delta with EngineStalledError."""
        self.lose(
            EngineStalledError(
                f"Engine {self._queue.engine.name} showed no progress for {self._queue.stall_limit_s:g} s while request "
                f"{self._flight.request.id} was in it. The machine may be out of memory or far too slow for this model."
            )
        )

    def lose(self, error: EngineDeadError | EngineStalledError) -> None:
        """Ends the wait for the next delta with this error, or the next one if nobody waits now."""
        if self._lost is None:
            self._lost = error
            if self._reads:
                self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(aborted=error is not None or self._flight.finish is None)

    async def _leave(self, *, aborted: bool) -> None:
        if not self._inside:
            return  # it was on its way from one engine to another
        self._inside = False
        try:
            if aborted:
                await to_its_end(self._stream.aclose())
            else:
                await self._stream.aclose()  # there is nothing left to abort
        finally:
            self._queue.slots.pop(self, None)
            self._queue.leave(self._flight)


class Lane:
    """The queues before the engines of a role. Callers bound their length: each waits with a few operations at most."""

    def __init__(
        self,
        role: Role,
        *engines: Engine,
        in_flight_max: int | None = None,
        stall_limit_s: float = STALL_LIMIT_S,
        overlap: Overlap | None = None,
        tell: Callable[[Event], None] = lambda event: None,
    ) -> None:
        overlap = overlap or Overlap()
        self.role = role
        self.engines = engines
        self.queues = [EngineQueue(role, engine, in_flight_max, stall_limit_s, overlap, tell) for engine in engines]
        self._patience_s = stall_limit_s
        self._returned = asyncio.Event()

    @property
    def engine(self) -> Engine:
        """The first engine; all of a role have the same model."""
        return self.engines[0]

    def recall(self, request_state: RequestState) -> None:
        """Does nothing: a live lane has no trace behind it."""

    def fly(self, request_state: RequestState) -> LaneSlot:
        """Waits for room, then opens the engine's stream. Each delta updates ``request_state``.

        Leaving the block, also by cancellation, aborts the request in the engine and frees the place. If the engine fails, the
        request continues at another one, or waits until one works again: with its id, its seed, and the ids that it has.

        Raises, on entry or from the iterator:
            EngineDeadError: no engine works, and none has returned for ``stall_limit_s``, or none can.
            EngineStalledError: the engine as a whole showed no progress for ``stall_limit_s``, somebody waited for it, and
                there is no other.
        """
        return LaneSlot(self, request_state)

    async def another(self, request_state: RequestState) -> EngineQueue:
        """Returns the queue of an engine that works, instead of the request's own: the same one for all requests of a track as
        long as the same engines work, so that its cache serves them. Waits for one if there is none.
        """
        while not (working := [queue for queue in self.queues if queue.health.works]):
            failed = self.queues[request_state.place].health
            if not any(queue.health.may_return for queue in self.queues):
                raise failed.failed()
            self._returned.clear()
            # One that is started anew has limits of its own: of each start, and of how many there may be.
            starting = any(queue.health.restarts and queue.health.may_return for queue in self.queues)
            try:
                async with asyncio.timeout(None if starting else self._patience_s):
                    await self._returned.wait()
            except TimeoutError:
                if not failed.works:
                    raise failed.failed() from None
        track = request_state.request.id.rsplit("/", 2)[0]
        return working[crc32(track.encode()) % len(working)]

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        """Returns what has to run beside the lane for as long as it is used: for each engine, what notices that it stalls, and
        what asks one that failed whether it works again.
        """
        found: list[Coroutine[Any, Any, None]] = [queue.watchdog.watch() for queue in self.queues]
        return found + [queue.health.mend(self._returned.set) for queue in self.queues if queue.health.may_return]

    def resize(self) -> None:
        """Adapts to what the engines can run now."""
        for queue in self.queues:
            queue.resize()

    def wants_place(self, request_state: RequestState) -> bool:
        """Returns whether a lasting request in its engine should give its place up at the end of its step, and ask again.

        True while something more urgent waits and lasting requests hold all places.
        """
        return self.queues[request_state.place].wants_place(request_state)

    async def run(self, request_state: RequestState) -> None:
        """Reads a request to its end."""
        async with self.fly(request_state) as deltas:
            async for _ in deltas:
                pass

    def stats(self) -> tuple[LaneStats, ...]:
        """Returns a snapshot of each engine's queue."""
        return tuple(queue.stats() for queue in self.queues)
