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
    from speclrm.runtime.replay.recorded_replies import RecordedReply
    from speclrm.runtime.scheduling.requests import RequestLane, RequestState


class RecordedLane:
    """A lane behind the trace of one sample."""

    def __init__(self, lane: RequestLane, sample: SamplePlayback) -> None:
        self._lane = lane
        self._sample = sample

    @property
    def engine(self) -> Engine:
        return self._lane.engine

    @property
    def engines(self) -> Sequence[Engine]:
        return self._lane.engines

    def recall(self, request_state: RequestState) -> None:
        replies = self._sample.find(request_state.request)
        request_state.recorded = None if replies is None else _Reports(replies)

    def wants_place(self, request_state: RequestState) -> bool:
        return self._lane.wants_place(request_state)

    async def run(self, request_state: RequestState) -> None:
        async with self.fly(request_state) as deltas:
            async for _ in deltas:
                pass

    @asynccontextmanager
    async def fly(self, request_state: RequestState) -> AsyncGenerator[AsyncIterator[Delta], None]:
        sample, request = self._sample, request_state.request
        if isinstance(request_state.recorded, _Reports):
            replies = request_state.recorded.replies
            answered = [share for share in replies if not share.dropped or share.piece or share.error]
            async with aclosing(self._answer(request_state, replies[-1], answered)) as deltas:
                yield deltas
            return
        if sample.mode == "replay":
            await sample.wait(request, "the trace does not have it")
        await sample.live()
        async with self._lane.fly(request_state) as deltas:
            yield deltas

    async def _answer(
        self, request_state: RequestState, last: RecordedReply, answered: Sequence[RecordedReply]
    ) -> AsyncGenerator[Delta, None]:
        sample, request = self._sample, request_state.request
        before = 0
        for share in answered:
            operation = share.operation
            if not share.piece:
                await sample.due(share.index)
            request_state.engine = operation.engine
            request_state.queue_s += operation.queue_s
            request_state.engine_s += operation.engine_s
            if share.error is not None and not share.piece:  # a whole piece was dropped because a later one failed
                raise retold(share.error)
            seen, finish = [*share.ids, *operation.ahead], operation.finish
            if before + len(seen) > request.max_tokens:
                # Under a lower limit the engine says the same, and stops there.
                seen, finish = seen[: max(0, request.max_tokens - before)], "length"
            elif finish == "length" and 0 < before + len(seen) < request.max_tokens and not operation.early:
                finish = None  # it had a lower limit then; nobody has one of no tokens
            told = len(request_state.ids) - before
            if told < len(seen) or finish != request_state.finish:
                delta = Delta(
                    tuple(seen[told:]),
                    finish,
                    share.logprobs(request),
                    None if before else operation.cached_tokens,
                    operation.sampled_logprobs[told : len(seen)],
                    operation.first_entropy,
                    operation.prompt_logprobs,
                )
                request_state.take(delta)
                yield delta
            if request_state.finish is not None:
                return
            before += len(share.ids)
        if last.dropped and not last.piece:
            await sample.wait(request, "it was given up, so what it would have brought is not in the trace")
        longer = sample.mode == "replay" and last.operation.finish is not None  # asked again, it would find the same
        if longer or request.id.rpartition("/")[2].partition(".")[0] != "write":
            await sample.wait(request, "the trace has only a part of it")
        request_state.cut = True


@dataclass(slots=True)
class _Reports:
    """Lets a request report as the trace has it. The shares are reported one by one, in their order."""

    replies: Sequence[RecordedReply]
    _next: int = 0

    @property
    def left(self) -> int:
        return len(self.replies) - self._next

    @property
    def dropped_next(self) -> bool:
        return self.replies[self._next].dropped

    def report(self, now: Operation) -> Operation:
        if not self.left:
            return now
        share = self.replies[self._next]
        self._next += 1
        then = share.operation
        if share.dropped:
            return then
        keep = ("engine", "cached_tokens", "queue_s", "engine_s", "early")
        return now.model_copy(update={name: getattr(then, name) for name in keep})
