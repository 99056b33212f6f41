"""Reads step after step from one long request to the target."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.cleanup import Leaving, to_its_end
from speclrm.runtime.errors import RequestError
from speclrm.runtime.protocols import Role, Step
from speclrm.runtime.tokens.steps import split_ending, step_length, whole_characters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from speclrm.runtime.engine import Delta
    from speclrm.runtime.events import DropReason
    from speclrm.runtime.scheduling.requests import RequestState
    from speclrm.runtime.track.events import TrackEvents
    from speclrm.runtime.track.requests import TrackRequests


@dataclass(slots=True)
class _Writing:
    """An open write: its request, the block around it, and its result."""

    request_state: RequestState
    block: AbstractAsyncContextManager[AsyncIterator[Delta]]
    deltas: AsyncIterator[Delta]


class OpenWrite:
    """Holds the open write of one track, if there is one."""

    __slots__ = ("_events", "_leaving", "_requests", "_writing")

    def __init__(self, requests: TrackRequests, events: TrackEvents, leaving: Leaving) -> None:
        self._requests = requests
        self._events = events
        self._leaving = leaving
        self._writing: _Writing | None = None

    @property
    def request_state(self) -> RequestState | None:
        return None if self._writing is None else self._writing.request_state

    def stop(self) -> None:
        """Ends the request; ``close`` accounts for it."""
        if self._writing is not None:
            self._leaving.add(asyncio.ensure_future(_left(self._writing)), cancel=False)

    async def step(self) -> Step | None:
        """Returns the next step of the stream; opens a write if none is open. None if the request ended with an earlier
        attempt.
        """
        writing = self._writing or await self._open()
        request_state = writing.request_state
        taken = len(request_state.ids) - request_state.unreported_tokens
        try:
            while (step := self._next(request_state, taken)) is None:
                if await anext(writing.deltas, None) is None:
                    if request_state.cut:
                        break
                    raise RequestError(
                        f"Engine {request_state.engine} ended request {request_state.request.id} without a reason."
                    )
        except BaseException as error:
            self._writing = None
            self._leaving.add(asyncio.ensure_future(_left(writing)), cancel=False)
            self._events.drop(request_state, Role.TARGET, "write", error)
            raise
        if step is None:  # the request ended with an earlier attempt: another one continues from here
            self._writing = None
            await _left(writing)
            return None
        self._requests.ready()
        spent = request_state.unreported_tokens if step.ended else len(step.ids)
        self._events.written("write", step, (request_state.report(spent, kept=step.ids),))
        if request_state.over and (
            step.ended or request_state.finish != "end"
        ):  # an end after a whole step is a step of its own
            self._writing = None
            await _left(writing)
        return step

    async def _open(self) -> _Writing:
        context = self._requests.contexts[Role.TARGET]
        request_state = self._requests.request_state(
            Role.TARGET, "write", context.ids(), self._requests.limits.token_budget - self._requests.state.tokens
        )
        block = self._requests.lanes[Role.TARGET].fly(request_state)
        try:
            self._writing = _Writing(request_state, block, await block.__aenter__())
        except BaseException as error:
            self._events.drop(request_state, Role.TARGET, "write", error)
            raise
        return self._writing

    async def end(self) -> None:
        """Closes the open write; what arrived after the last step is dropped."""
        if self._writing is None:
            return
        leaving = asyncio.ensure_future(_left(self._writing))
        self._leaving.add(leaving, cancel=False)
        self.close("stopped")
        await to_its_end(asyncio.wait({leaving}))

    def close(self, reason: DropReason) -> None:
        """Accounts for the open write, which the caller leaves."""
        writing, self._writing = self._writing, None
        if writing is not None and writing.request_state.owes_report:
            self._events.dropped(writing.request_state.report(), Role.TARGET, "write", reason)

    def _next(self, request_state: RequestState, taken: int) -> Step | None:
        """Returns the next complete step of the open write, None if more tokens are needed.

        It never looks behind the step's end, so the size of the deltas changes nothing.
        """
        context = self._requests.contexts[Role.TARGET]
        tokenizer = context.tokenizer
        most = self._requests.limits.max_step_tokens
        ids, ended = split_ending(request_state.ids[taken:], tokenizer.vocabulary)
        if not ids and not ended and request_state.finish is None:
            return None
        least = self._requests.limits.min_step_tokens
        length = step_length(tokenizer, ids, tokenizer.decode(ids), context.line_ids, least=least)
        if length is not None and length <= most:
            ids, ended = ids[:length], False
        elif len(ids) >= most:
            ids, ended = ids[: whole_characters(tokenizer, ids[:most])], False
        elif request_state.finish is None and not ended:
            return None
        elif request_state.finish == "length" and not ended:
            ids = ids[: whole_characters(tokenizer, ids)]
        else:
            ended = True
        return Step(Role.TARGET, self._requests.index, context.text_of(ids), tuple(ids), ended, "write")


async def _left(writing: _Writing) -> None:
    """Leaves the block around a write, which aborts a request that is still under way."""
    await writing.block.__aexit__(None, None, None)
