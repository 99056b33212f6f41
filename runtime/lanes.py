"""A lane: the queue of one model role. Each operation goes to the engine as soon as there is room, by priority.

There is no dispatcher and no round: an operation that finds room starts at once, and one that ends hands its place to
the most urgent one waiting. Nothing is held back to collect a batch: the engine batches by itself at each iteration.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from speclrm.runtime.clock import now_s
from speclrm.runtime.errors import EngineStalledError
from speclrm.runtime.events import Operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from speclrm.runtime.protocols import Delta, Engine, Finish, Request, Role

SURPLUS = 1.25
"""In-flight requests for each sequence that the engine runs. The surplus waits inside the engine, so that a place that
falls free is filled at the very next iteration instead of one round trip later."""

STALL_LIMIT_S = 600.0
"""How long an engine with work may show no progress at all. A long prompt on a slow CPU takes minutes, never ten."""


@dataclass(slots=True)
class Flight:
    """One request and what has become of it so far; complete enough to be accounted for at any moment.

    ``queue_s`` and ``engine_s``: seconds waited for the engine, and seconds in it, up to the last delta.
    """

    request: Request
    engine: str
    ids: list[int] = field(default_factory=list[int])
    finish: Finish | None = None
    logprobs: Mapping[int, float] | None = None
    cached_tokens: int = 0
    queue_s: float = 0.0
    engine_s: float = 0.0
    _reported_tokens: int = 0
    _reported_s: float = 0.0

    def take(self, delta: Delta) -> None:
        self.ids.extend(delta.ids)
        self.finish = delta.finish
        if delta.logprobs is not None:
            self.logprobs = delta.logprobs
        if delta.cached_tokens is not None:
            self.cached_tokens = delta.cached_tokens

    @property
    def unreported_tokens(self) -> int:
        return len(self.ids) - self._reported_tokens

    def report(self, tokens: int | None = None) -> Operation:
        """The cost since the last report, of the next ``tokens`` output tokens (all that came, unless told).

        The sum over all reports of a flight is the flight's whole cost.
        """
        first = self._reported_s == 0.0 and self._reported_tokens == 0
        tokens = self.unreported_tokens if tokens is None else tokens
        seconds = self.engine_s - self._reported_s
        self._reported_tokens += tokens
        self._reported_s = self.engine_s
        return Operation(
            id=self.request.id,
            engine=self.engine,
            seed=self.request.seed,
            prompt_tokens=len(self.request.prompt_ids) if first else 0,
            cached_tokens=self.cached_tokens if first else 0,
            output_tokens=tokens,
            queue_s=self.queue_s if first else 0.0,
            engine_s=seconds,
        )


@dataclass(frozen=True, slots=True)
class LaneStats:
    """A snapshot. ``busy_s``: seconds in which at least one operation was in flight."""

    waiting: int
    in_flight: int
    in_flight_max: int
    busy_s: float


class Stay:
    """A flight's time in its lane: the block around it, and the iterator over its deltas.

    Written out, where two generators would be shorter: the loop keeps a weak reference to every one, and so much
    ceremony was a tenth of all that a step costs.
    """

    __slots__ = ("_flight", "_lane", "_scope", "_started", "_stream")

    def __init__(self, lane: Lane, flight: Flight) -> None:
        self._lane = lane
        self._flight = flight

    async def __aenter__(self) -> AsyncIterator[Delta]:
        lane, flight = self._lane, self._flight
        asked = now_s()
        await lane.enter(flight.request.priority)
        self._started = now_s()
        flight.queue_s = self._started - asked
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()
        lane.scopes.add(self._scope)
        self._stream = lane.engine.stream(flight.request)
        return self

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        delta = await self._stream.__anext__()
        self._flight.take(delta)
        self._flight.engine_s = now_s() - self._started
        return delta

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lane, scope = self._lane, self._scope
        try:
            try:
                await self._stream.aclose()
            except BaseException as other:
                error = other
                raise
            finally:
                lane.scopes.discard(scope)
                await scope.__aexit__(None if error is None else type(error), error, trace)
        except TimeoutError as late:
            if not scope.expired():
                raise
            raise EngineStalledError(
                f"Engine {lane.engine.name} showed no progress for {lane.stall_limit_s:.0f} s while request "
                f"{self._flight.request.id} was in it. The machine may be out of memory or far too slow for this model."
            ) from late
        finally:
            lane.leave()


class Lane:
    """The queue before one engine. Its callers bound its length: each waits in it with one operation at most."""

    def __init__(
        self, role: Role, engine: Engine, *, in_flight_max: int | None = None, stall_limit_s: float = STALL_LIMIT_S
    ) -> None:
        self.role = role
        self.engine = engine
        self.in_flight_max = in_flight_max or max(1, int(engine.max_num_seqs * SURPLUS))
        self.stall_limit_s = stall_limit_s
        self._in_flight = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()
        self.scopes: set[asyncio.Timeout] = set()
        self._busy_s = 0.0
        self._busy_since = 0.0

    def fly(self, flight: Flight) -> Stay:
        """Waits for room, then opens the engine's stream. ``flight`` is kept up to date with each delta.

        Leaving the block, also by cancellation, aborts the request in the engine and frees the place.

        Raises:
            EngineStalledError: the engine as a whole showed no progress for ``stall_limit_s``.
        """
        return Stay(self, flight)

    async def run(self, flight: Flight) -> None:
        """Takes a flight to its end."""
        async with self.fly(flight) as deltas:
            async for _ in deltas:
                pass

    async def watch(self) -> None:
        """Ends all operations in flight when the engine stands still. Runs until cancelled; one per lane."""
        seen = (-1, 0.0)
        while True:
            await asyncio.sleep(self.stall_limit_s / 10)
            progress = self.engine.stats().progress
            if not self._in_flight or progress != seen[0]:
                seen = (progress, now_s())
            elif now_s() - seen[1] >= self.stall_limit_s:
                for scope in self.scopes:
                    scope.reschedule(now_s())

    def stats(self) -> LaneStats:
        busy_s = self._busy_s + (now_s() - self._busy_since if self._in_flight else 0.0)
        return LaneStats(len(self._waiting), self._in_flight, self.in_flight_max, busy_s)

    async def enter(self, priority: int) -> None:
        """Waits for a place."""
        if self._in_flight < self.in_flight_max and not self._waiting:
            self._take_place()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._arrivals), turn)
        heapq.heappush(self._waiting, entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place was given in the same moment: hand it on
            elif entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def _take_place(self) -> None:
        if not self._in_flight:
            self._busy_since = now_s()
        self._in_flight += 1

    def leave(self) -> None:
        """Gives a place back, or on to the most urgent one waiting."""
        self._in_flight -= 1
        if not self._in_flight:
            self._busy_s += now_s() - self._busy_since
        while self._waiting and self._in_flight < self.in_flight_max:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._take_place()
                turn.set_result(None)
