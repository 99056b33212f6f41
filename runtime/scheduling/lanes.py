"""Queues requests before the engines of one model role, and sends each as soon as there is room.

There is no dispatcher and no round: a request that finds room starts at once, and one that ends gives its place to the
most urgent one waiting. Nothing is held back to collect a batch: the engine batches by itself at each iteration. The
engine's own statistics decide how many requests it gets: what it would only queue is better queued here, where a more
urgent one can pass and one that became useless never reaches it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

from speclrm.runtime.cleanup import to_its_end
from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import Delta, continued
from speclrm.runtime.errors import EngineDeadError, EngineStalledError, RequestError
from speclrm.runtime.scheduling.health import Health
from speclrm.runtime.scheduling.overlap import Overlap
from speclrm.runtime.scheduling.waiting import Waiting
from speclrm.runtime.scheduling.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from types import TracebackType

    from speclrm.runtime.engine import Engine, EngineStats
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.scheduling.requests import RequestState

SURPLUS = 1.25
"""Requests in flight for each sequence that the engine runs. The surplus waits inside the engine, so that a free place
is filled at the very next iteration instead of one round trip later."""

CAP_INTERVAL_S = 0.25
"""Seconds between two adaptations of the number of requests in flight to the engine's statistics."""

RESERVE_SHARE = 8
"""One in this many of an engine's sequences, and at least one, is kept free of writes while there are short requests."""

RESERVE_S = 10.0
"""Seconds for which that lasts after the last short request, at least; at most twice as long."""

MOVES_MAX = 8
"""Times in a row that a request may lose its engine without a token between, before it is given up."""

STALL_LIMIT_S = 600.0
"""Seconds without progress after which an engine that somebody reads from has stalled: more than a long prompt on a
slow CPU takes."""


@dataclass(frozen=True, slots=True)
class LaneStats:
    """A snapshot of one engine's queue. Seconds and counts run from the start.

    ``waited_s``: the sum of all waits for a place. ``busy_s``: seconds in which at least one operation was in flight.
    ``idle_ready_s``: seconds in which none was, though a track was ready to send one: the runtime's own delay.
    ``engine``: the engine's own statistics; ``batch``: requests in one of its iterations, on average.
    """

    waiting: int
    in_flight: int
    in_flight_max: int
    operations: int
    waited_s: float
    busy_s: float
    idle_ready_s: float
    engine: EngineStats

    @property
    def batch(self) -> float:
        return self.engine.batched / self.engine.iterations if self.engine.iterations else 0.0


class LaneSlot:
    """A request's time in its lane: the block around it, and the iterator over its deltas.

    A class, since the loop keeps a weak reference to every generator, which was a tenth of a step's cost.
    """

    __slots__ = (
        "_began_s",
        "_flight",
        "_inside",
        "_lane",
        "_lost",
        "_moves",
        "_queue",
        "_reader",
        "_started",
        "_stream",
        "quiet_s",
        "told",
    )

    def __init__(self, lane: Lane, request_state: RequestState) -> None:
        self._lane = lane
        self._flight = request_state
        self._queue = lane.queues[request_state.place]
        self._reader: asyncio.Task[Any] | None = None
        self._lost: EngineDeadError | EngineStalledError | None = None
        self._inside = self.told = False
        self._moves = 0
        self.quiet_s = 0.0

    async def __aenter__(self) -> AsyncIterator[Delta]:
        await self._enter()
        self._began_s = self._started
        self._queue.operations += 1
        return self

    async def _enter(self) -> None:
        """Waits for a place at an engine that works, and opens the stream there, for what is left of the output."""
        request_state = self._flight
        asked = now_s()
        try:
            while True:
                queue = self._queue
                if not queue.health.works:
                    self._queue = queue = await self._lane.another(request_state)
                if await queue.enter(request_state):
                    break
        finally:
            request_state.queue_s += now_s() - asked
            self._queue.waited_s += now_s() - asked
        self._started = self.quiet_s = now_s()
        self._inside, self.told = True, False
        request_state.place, request_state.engine = self._lane.queues.index(queue), queue.engine.name
        queue.slots.add(self)
        self._stream = queue.engine.stream(continued(request_state.request, request_state.ids))

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while True:
            try:
                delta = await self._read()
                break
            except StopAsyncIteration:
                if self._flight.finish is None:  # nobody may take a part of an answer for the whole
                    raise RequestError(
                        f"Engine {self._queue.engine.name} ended request {self._flight.request.id} without a reason."
                    ) from None
                raise
            except (EngineDeadError, EngineStalledError) as error:
                await self._move(error)
                if len(self._flight.ids) >= self._flight.request.max_tokens:  # it failed behind the last token
                    delta = Delta((), "length")
                    break
        if delta.ids:
            self._moves = 0
            self._queue.health.progress()
        self._flight.take(delta)
        self.quiet_s, self.told = now_s(), False
        self._flight.engine_s = self.quiet_s - self._began_s
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

    async def _read(self) -> Delta:
        if self._lost is not None:
            raise self._lost
        task = asyncio.current_task()
        assert task is not None
        others = task.cancelling()
        self._reader = task
        try:
            delta = await self._stream.__anext__()
        except asyncio.CancelledError as error:
            # As in asyncio.timeout: only our own cancellation becomes another error.
            if self._lost is not None and task.uncancel() <= others:
                raise self._lost from error
            raise
        finally:
            self._reader = None
        return delta

    @property
    def waits(self) -> bool:
        """Whether somebody waits for the engine's next delta. A reader that is busy elsewhere cannot tell that it stalls."""
        return self._reader is not None

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
            if self._reader is not None:
                self._reader.cancel()

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
            self._queue.slots.discard(self)
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
        self.queues = [_Queue(role, engine, in_flight_max, stall_limit_s, overlap, tell) for engine in engines]
        self._patience_s = stall_limit_s
        self._returned = asyncio.Event()

    @property
    def engine(self) -> Engine:
        """The first engine; all of a role have the same model."""
        return self.queues[0].engine

    @property
    def engines(self) -> list[Engine]:
        return [queue.engine for queue in self.queues]

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

    async def another(self, request_state: RequestState) -> _Queue:
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


class _Queue:
    """The queue before one engine."""

    def __init__(
        self,
        role: Role,
        engine: Engine,
        in_flight_max: int | None,
        stall_limit_s: float,
        overlap: Overlap,
        tell: Callable[[Event], None],
    ) -> None:
        self.engine = engine
        self.health = Health(role, engine, tell)
        self._role = role
        self._overlap = overlap
        self.in_flight = 0
        self._fixed = in_flight_max is not None
        self._bound = in_flight_max or max(1, int(engine.max_num_seqs * SURPLUS))
        self._cap = self._bound
        self._cap_s = -CAP_INTERVAL_S
        self.stall_limit_s = stall_limit_s
        # Lasting requests wait in a queue of their own: others pass them into places that they may not have.
        self._waiting: dict[bool, Waiting[asyncio.Future[bool]]] = {lasting: Waiting() for lasting in (False, True)}
        self._lasting = 0
        self._short = _Peak()
        self._later: asyncio.TimerHandle | None = None
        self.slots: set[LaneSlot] = set()
        self.watchdog = Watchdog(role, engine, self.slots, stall_limit_s, tell)
        self._busy_s = 0.0
        self._since_s = 0.0
        self._idle_ready_s = 0.0
        self.waited_s = 0.0
        self.operations = 0

    def resize(self) -> None:
        """Adapts the bound of requests in flight to what the engine can run, which may be less than before."""
        if not self._fixed:
            self._bound = max(1, int(self.engine.max_num_seqs * SURPLUS))
            self._cap = min(self._cap, self._bound)

    def stats(self) -> LaneStats:
        return LaneStats(
            waiting=sum(map(len, self._waiting.values())),
            in_flight=self.in_flight,
            in_flight_max=self._cap,
            operations=self.operations,
            waited_s=self.waited_s,
            busy_s=self._busy_s + (now_s() - self._since_s if self.in_flight else 0.0),
            idle_ready_s=self._idle_ready_s,
            engine=self.engine.stats(),
        )

    def fail(self, error: EngineDeadError | EngineStalledError) -> None:
        """Notes that the engine failed; those that wait for a place look for another engine, and so do those in it if it is
        to be started anew.
        """
        self.health.fail(error, self.in_flight + 1)
        if self.health.restarts:
            for slot in self.slots:
                slot.lose(self.health.failed())
        for waiting in self._waiting.values():
            while waiting:
                turn = waiting.pop()
                if not turn.done():
                    turn.set_result(False)

    async def enter(self, request_state: RequestState) -> bool:
        """Waits for a place. Returns whether it has one: False if the engine failed meanwhile."""
        self._adapt()
        lasting = request_state.lasting
        waiting = self._waiting[lasting]
        if not lasting:
            self._short.see(self.in_flight - self._lasting + len(waiting) + 1)
        if self._has_room(lasting) and self._next() is None:
            if not self.in_flight and request_state.ready_s is not None:
                self._idle_ready_s += now_s() - max(request_state.ready_s, self._since_s)
            self._take_place(lasting)
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        number = waiting.push(request_state.request.priority, turn)
        self._serve()  # the bound may have grown while others waited
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                if turn.result():
                    self.leave(request_state)  # the place was given at the same moment: pass it on
            else:
                waiting.remove(number)
            raise

    def wants_place(self, request_state: RequestState) -> bool:
        if not request_state.lasting:
            return False
        short = self.in_flight - self._lasting
        if short:  # a request in the engine may still wait there, behind writes that fill it
            return self._lasting >= self.engine.max_num_seqs
        waiting = self._waiting[False]
        return bool(waiting) and waiting.first()[0] < request_state.request.priority

    def _has_room(self, lasting: bool) -> bool:
        """Returns whether one more request may go to the engine. Lasting ones leave a few of its sequences to others, while
        there are any.
        """
        if not lasting or self.in_flight >= self._cap:
            return self.in_flight < self._cap
        short = self._short.value
        if not short:
            return True
        runs = min(self._cap, self.engine.max_num_seqs)
        return self._lasting < max(1, runs - min(short, max(1, runs // RESERVE_SHARE)))

    def _adapt(self) -> None:
        """Adapts the bound of requests in flight to what the engine runs and what it only queues."""
        if self._fixed or now_s() - self._cap_s < CAP_INTERVAL_S:
            return
        self._cap_s = now_s()
        stats = self.engine.stats()
        wanted = max(1, int(stats.running * SURPLUS) + 1)
        if stats.running and stats.waiting > stats.running * (SURPLUS - 1) + 1:
            self._cap = min(self._bound, wanted)
        elif not stats.waiting:
            self._cap = min(self._bound, max(self._cap, wanted) + 1 + self._cap // 8)

    def _take_place(self, lasting: bool) -> None:
        if not self.in_flight:
            self._since_s = now_s()
            self._overlap.change(self._role, 1)
        self.in_flight += 1
        self._lasting += lasting

    def leave(self, request_state: RequestState) -> None:
        self.in_flight -= 1
        self._lasting -= request_state.lasting
        if not self.in_flight:
            self._busy_s += now_s() - self._since_s
            self._since_s = now_s()  # from now on: it counts idle time
            self._overlap.change(self._role, -1)
        self._serve()

    def _serve(self) -> None:
        """Gives free places to the most urgent requests."""
        while (lasting := self._next()) is not None:
            turn = self._waiting[lasting].pop()
            if not turn.done():
                self._take_place(lasting)
                turn.set_result(True)
        if self._later is None and self._waiting[True] and self.in_flight < self._cap:
            # Remaining free places are kept for others. If none come, no event would say so: check again later.
            self._later = asyncio.get_running_loop().call_later(RESERVE_S, self._serve_later)

    def _serve_later(self) -> None:
        self._later = None
        self._serve()

    def _next(self) -> bool | None:
        """Returns the kind of request that gets the next place; None if there is no place or nobody waits for it."""
        found: tuple[int, bool] | None = None
        for lasting, waiting in self._waiting.items():
            if waiting and self._has_room(lasting):
                urgent = waiting.first()[0], lasting
                found = urgent if found is None else min(found, urgent)
        return None if found is None else found[1]


class _Peak:
    """Tracks the maximum of a number over the last ``RESERVE_S`` seconds and up to twice as many."""

    def __init__(self) -> None:
        self._since_s = float("-inf")
        self._now = self._before = 0

    def see(self, number: int) -> None:
        self._turn()
        self._now = max(self._now, number)

    @property
    def value(self) -> int:
        self._turn()
        return max(self._now, self._before)

    def _turn(self) -> None:
        passed_s = now_s() - self._since_s
        if passed_s >= RESERVE_S:
            self._before = self._now if passed_s < 2 * RESERVE_S else 0
            self._now = 0
            self._since_s = now_s()
