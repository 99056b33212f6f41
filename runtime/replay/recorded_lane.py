"""Answers the requests of loops that are driven again from the trace."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Delta
from speclrm.runtime.errors import retold

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import Operation
    from speclrm.runtime.replay.playback import SamplePlayback
    from speclrm.runtime.replay.recorded_replies import Share
    from speclrm.runtime.scheduling.requests import Flight, Flights


class RecordedLane:
    """A lane behind the trace of one sample."""

    def __init__(self, lane: Flights, sample: SamplePlayback) -> None:
        self._lane = lane
        self._sample = sample

    @property
    def engine(self) -> Engine:
        return self._lane.engine

    @property
    def engines(self) -> Sequence[Engine]:
        return self._lane.engines

    def recall(self, flight: Flight) -> None:
        shares = self._sample.find(flight.request)
        flight.recorded = None if shares is None else _Reports(shares)

    def wants_place(self, flight: Flight) -> bool:
        return self._lane.wants_place(flight)

    async def run(self, flight: Flight) -> None:
        async with self.fly(flight) as deltas:
            async for _ in deltas:
                pass

    @asynccontextmanager
    async def fly(self, flight: Flight) -> AsyncGenerator[AsyncIterator[Delta], None]:
        sample, request = self._sample, flight.request
        if isinstance(flight.recorded, _Reports):
            shares = flight.recorded.shares
            answered = [share for share in shares if not share.dropped or share.piece or share.error]
            async with aclosing(self._answer(flight, shares[-1], answered)) as deltas:
                yield deltas
            return
        if sample.mode == "replay":
            await sample.wait(request, "the trace does not have it")
        await sample.live()
        async with self._lane.fly(flight) as deltas:
            yield deltas

    async def _answer(self, flight: Flight, last: Share, answered: Sequence[Share]) -> AsyncGenerator[Delta, None]:
        sample, request = self._sample, flight.request
        before = 0
        for share in answered:
            operation = share.operation
            if not share.piece:
                await sample.due(share.index)
            flight.engine = operation.engine
            flight.queue_s += operation.queue_s
            flight.engine_s += operation.engine_s
            if share.error is not None and not share.piece:  # a whole piece was dropped because a later one failed
                raise retold(share.error)
            seen, finish = [*share.ids, *operation.ahead], operation.finish
            if before + len(seen) > request.max_tokens:
                # Under a lower limit the engine says the same, and stops there.
                seen, finish = seen[: max(0, request.max_tokens - before)], "length"
            elif finish == "length" and before + len(seen) < request.max_tokens:
                finish = None
            told = len(flight.ids) - before
            if told < len(seen) or finish != flight.finish:
                delta = Delta(
                    tuple(seen[told:]),
                    finish,
                    share.logprobs(request),
                    None if before else operation.cached_tokens,
                    operation.sampled_logprobs[told : len(seen)],
                    operation.first_entropy,
                    operation.prompt_logprobs,
                )
                flight.take(delta)
                yield delta
            if flight.finish is not None:
                return
            before += len(share.ids)
        if last.dropped and not last.piece:
            await sample.wait(request, "it was given up, so what it would have brought is not in the trace")
        if request.id.rpartition("/")[2].partition(".")[0] != "write":
            await sample.wait(request, "the trace has only a part of it")
        flight.cut = True


@dataclass(slots=True)
class _Reports:
    """Lets a request report as the trace has it. The shares are reported one by one, in their order."""

    shares: Sequence[Share]
    _next: int = 0

    @property
    def left(self) -> int:
        return len(self.shares) - self._next

    @property
    def dropped_next(self) -> bool:
        return self.shares[self._next].dropped

    def report(self, now: Operation) -> Operation:
        if not self.left:
            return now
        share = self.shares[self._next]
        self._next += 1
        then = share.operation
        if share.dropped:
            return then
        keep = ("engine", "cached_tokens", "queue_s", "engine_s")
        return now.model_copy(update={name: getattr(then, name) for name in keep})
