"""A lane: the queue of one model role. Each operation goes to the engine as soon as there is room, by priority.

There is no dispatcher and no round: an operation that finds room starts at once, and one that ends hands its place to
the most urgent one waiting. Nothing is held back to collect a batch: the engine batches by itself at each iteration.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
from array import array
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from speclrm.runtime.clock import now_s
from speclrm.runtime.errors import EngineStalledError
from speclrm.runtime.events import Operation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from speclrm.runtime.protocols import Delta, Engine, Finish, Request, Role

SURPLUS = 1.25
"""In-flight requests for each sequence that the engine runs. The surplus waits inside the engine, so that a place that
falls free is filled at the very next iteration instead of one round trip later."""

STALL_LIMIT_S = 600.0
"""How long an engine with work may show no progress at all. A long prompt on a slow CPU takes minutes, never ten."""


DIGEST_BYTES = 9


def digest(request: Request) -> str:
    """Twelve characters that are equal for equal requests: all that an engine's answer may depend on, but for its limits.

    Left out are the id, the priority, and ``max_tokens``, which follows the machine's memory, too.
    """
    rest = (
        request.temperature,
        request.top_p,
        request.seed,
        request.stop_ids,
        request.allowed_ids,
        request.logprob_ids,
        request.sampled_logprobs,
        request.first_entropy,
        request.likelihood_from,
    )
    state = blake2b(array("I", request.prompt_ids).tobytes(), digest_size=DIGEST_BYTES)
    state.update(repr(rest).encode())
    return base64.urlsafe_b64encode(state.digest()).decode("ascii")


@dataclass(slots=True)
class Flight:
    """One request and what has become of it so far; complete enough to be accounted for at any moment.

    ``queue_s`` and ``engine_s``: seconds waited for the engine, and seconds in it, up to the last delta. ``cut``: the
    stream is over without a finish, since an earlier attempt of the run ended there. ``recorded``: what a trace says in
    place of a report made here, where the request is answered from one.
    """

    request: Request
    engine: str
    ids: list[int] = field(default_factory=list[int])
    finish: Finish | None = None
    logprobs: Mapping[int, float] | None = None
    cached_tokens: int = 0
    sampled_logprobs: list[float] = field(default_factory=list[float])
    first_entropy: float | None = None
    prompt_logprobs: Sequence[float] | None = None
    queue_s: float = 0.0
    engine_s: float = 0.0
    cut: bool = False
    recorded: Callable[[Operation], Operation] | None = None
    _reported_tokens: int = 0
    _reported_s: float = 0.0

    def take(self, delta: Delta) -> None:
        self.ids.extend(delta.ids)
        self.finish = delta.finish
        if delta.logprobs is not None:
            self.logprobs = delta.logprobs
        if delta.cached_tokens is not None:
            self.cached_tokens = delta.cached_tokens
        self.sampled_logprobs.extend(delta.sampled_logprobs)
        if delta.first_entropy is not None:
            self.first_entropy = delta.first_entropy
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs

    @property
    def over(self) -> bool:
        """Whether everything that will come has come and was reported."""
        return self.finish is not None and not self.unreported_tokens

    @property
    def unreported_tokens(self) -> int:
        return len(self.ids) - self._reported_tokens

    def report(
        self, tokens: int | None = None, *, kept: Sequence[int] | None = None, digits: bool = False
    ) -> Operation:
        """The cost since the last report, of the next ``tokens`` output tokens (all that came, unless told).

        The sum over all reports of a flight is the flight's whole cost. ``kept``: the ids of the step that the share goes
        to, from where it begins; what came beside them is put into the operation, so that a replay can answer the request
        with all that the loop saw. None where the request was given up: no replay will answer it. ``digits``: whether the
        event tells the log-probabilities of the request's ``logprob_ids``.
        """
        start = self._reported_tokens
        first = self._reported_s == 0.0 and start == 0
        tokens = self.unreported_tokens if tokens is None else tokens
        seconds = self.engine_s - self._reported_s
        self._reported_tokens += tokens
        self._reported_s = self.engine_s
        operation = Operation(
            id=self.request.id,
            engine=self.engine,
            seed=self.request.seed,
            prompt_tokens=len(self.request.prompt_ids) if first else 0,
            cached_tokens=self.cached_tokens if first else 0,
            output_tokens=tokens,
            queue_s=round(self.queue_s, 6) if first else 0.0,  # microseconds: more digits are only bytes in the trace
            engine_s=round(seconds, 6),
            digest=digest(self.request) if first else "",
            **({} if kept is None else self._beside(kept, start, tokens, digits)),
        )
        return operation if self.recorded is None else self.recorded(operation)

    def _beside(self, kept: Sequence[int], start: int, tokens: int, digits: bool) -> dict[str, Any]:
        """The fields of an operation that a replay needs beside the step that it went to."""
        share = self.ids[start : start + tokens]
        common = next((place for place, pair in enumerate(zip(share, kept, strict=False)) if pair[0] != pair[1]), None)
        logprobs = () if digits else tuple((self.logprobs or {}).values())
        return {
            "finish": self.finish,
            "tail": tuple(share[min(len(share), len(kept)) if common is None else common :]),
            "ahead": tuple(self.ids[start + tokens :]),
            "logprobs": logprobs if start == 0 else (),
            "sampled_logprobs": tuple(self.sampled_logprobs[start:]),
            "first_entropy": self.first_entropy if start == 0 else None,
            "prompt_logprobs": None if self.prompt_logprobs is None or start else tuple(self.prompt_logprobs),
        }


class Flights(Protocol):
    """Where a track's requests go: a lane, or a trace with a lane behind it."""

    @property
    def engine(self) -> Engine: ...

    def fly(self, flight: Flight) -> AbstractAsyncContextManager[AsyncGenerator[Delta, None]]: ...

    async def run(self, flight: Flight) -> None: ...


@dataclass(frozen=True, slots=True)
class LaneStats:
    """A snapshot. ``busy_s``: seconds in which at least one operation was in flight."""

    waiting: int
    in_flight: int
    in_flight_max: int
    busy_s: float


class Lane:
    """The queue before one engine. Its callers bound its length: each waits in it with one operation at most."""

    def __init__(
        self, role: Role, engine: Engine, *, in_flight_max: int | None = None, stall_limit_s: float = STALL_LIMIT_S
    ) -> None:
        self.role = role
        self.engine: Engine = engine
        self.in_flight_max = in_flight_max or max(1, int(engine.max_num_seqs * SURPLUS))
        self._stall_limit_s = stall_limit_s
        self._in_flight = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()
        self._scopes: set[asyncio.Timeout] = set()
        self._busy_s = 0.0
        self._busy_since = 0.0

    @asynccontextmanager
    async def fly(self, flight: Flight) -> AsyncGenerator[AsyncGenerator[Delta, None], None]:
        """Waits for room, then opens the engine's stream. ``flight`` is kept up to date with each delta.

        Leaving the block, also by cancellation, aborts the request in the engine and frees the place.

        Raises:
            EngineStalledError: the engine as a whole showed no progress for ``stall_limit_s``.
        """
        asked = now_s()
        await self._enter(flight.request.priority)
        started = now_s()
        flight.queue_s = started - asked
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    async with aclosing(self._deltas(flight, started)) as deltas:
                        yield deltas
                finally:
                    self._scopes.discard(scope)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise EngineStalledError(
                f"Engine {self.engine.name} showed no progress for {self._stall_limit_s:.0f} s while request "
                f"{flight.request.id} was in it. The machine may be out of memory or far too slow for this model."
            ) from error
        finally:
            self._leave()

    async def _deltas(self, flight: Flight, started: float) -> AsyncGenerator[Delta, None]:
        async with aclosing(self.engine.stream(flight.request)) as stream:
            async for delta in stream:
                flight.take(delta)
                flight.engine_s = now_s() - started
                yield delta

    async def run(self, flight: Flight) -> None:
        """Takes a flight to its end."""
        async with self.fly(flight) as deltas:
            async for _ in deltas:
                pass

    async def watch(self) -> None:
        """Ends all operations in flight when the engine stands still. Runs until cancelled; one per lane."""
        seen = (-1, 0.0)
        while True:
            await asyncio.sleep(self._stall_limit_s / 10)
            progress = self.engine.stats().progress
            if not self._in_flight or progress != seen[0]:
                seen = (progress, now_s())
            elif now_s() - seen[1] >= self._stall_limit_s:
                for scope in self._scopes:
                    scope.reschedule(now_s())

    def stats(self) -> LaneStats:
        busy_s = self._busy_s + (now_s() - self._busy_since if self._in_flight else 0.0)
        return LaneStats(len(self._waiting), self._in_flight, self.in_flight_max, busy_s)

    async def _enter(self, priority: int) -> None:
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
                self._leave()  # the place was given in the same moment: hand it on
            elif entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def _take_place(self) -> None:
        if not self._in_flight:
            self._busy_since = now_s()
        self._in_flight += 1

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._busy_s += now_s() - self._busy_since
        while self._waiting and self._in_flight < self.in_flight_max:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._take_place()
                turn.set_result(None)
