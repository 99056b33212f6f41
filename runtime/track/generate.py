"""Makes one step with one model, from one or more requests.

``tokens/steps.py`` defines what a step is. A request is followed by another one if its output has nothing visible, is
shorter than a step may be, or ends inside a character.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from speclrm.runtime.protocols import Role, Step
from speclrm.runtime.tokens.steps import confidence, split_ending, step_length, whole_characters, without_think_close

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from speclrm.runtime.events import DropReason, Operation, StepKind
    from speclrm.runtime.protocols import Strategy
    from speclrm.runtime.scheduling.requests import RequestState
    from speclrm.runtime.track.events import TrackEvents
    from speclrm.runtime.track.requests import TrackRequests

BLANK_PIECES_MAX = 4
"""Outputs in a row without anything visible, after which the step counts as empty: a model that writes only newlines
must not keep its track for ever."""

Ahead = Literal["draft", "rewrite"]
"""What can be made before it is known to be needed."""
UNANSWERED: dict[str, Any] = {
    "finish": None,
    "early": False,
    "tail": (),
    "logprobs": (),
    "sampled_logprobs": (),
    "first_entropy": None,
    "prompt_logprobs": None,
}
"""Fields to clear on an operation whose request was abandoned."""
Made = tuple[Step, "tuple[Operation, ...]"]
"""A step, and what it cost."""


@dataclass(eq=False, slots=True)
class Making:
    """A step that is being made. All that it depends on, its first request included, was read when it was asked for.

    ``before``: uncommitted ids after the context; ``begun``: the context's length; ``request_states``: one a piece, of which
    the last one is under way until ``whole``. ``asked``: the first one was sent. ``given_up``: it has been accounted for.
    ``task``: the task that makes it ahead.
    """

    role: Role
    purpose: Ahead
    ahead: bool
    index: int
    before: tuple[int, ...]
    begun: int
    limit: int
    request_states: list[RequestState]
    whole: Made | None = None
    asked: bool = False
    given_up: bool = False
    task: asyncio.Task[Made] | None = None


class StepMaker:
    """Makes steps, and accounts for those that are not needed."""

    __slots__ = ("_events", "_gate", "_requests")

    def __init__(self, requests: TrackRequests, events: TrackEvents, strategy: Strategy) -> None:
        self._requests = requests
        self._events = events
        self._gate = strategy.gate

    def making(self, role: Role, purpose: Ahead, *, after: Step | None = None, ahead: bool = False) -> Making:
        """Reads now everything that ``make`` makes a step of.

        ``ahead``: before it is known to be needed; ``after``: the uncommitted step that it follows.
        """
        requests = self._requests
        limits, state = requests.limits, requests.state
        limit = limits.max_step_tokens
        if not limits.original_marks:
            spent = state.tokens + (0 if after is None else len(after.ids))
            limit = min(limit, limits.token_budget - spent)
        making = Making(
            role,
            purpose,
            ahead,
            index=len(state.steps) + (after is not None),
            before=() if after is None else (*requests.opening(role), *requests.ids_for(after, role)),
            begun=len(requests.contexts[role]),  # the context may have grown by the time of a second piece
            limit=limit,
            request_states=[],
        )
        self._next_piece(making, [])
        return making

    def _next_piece(self, making: Making, ids: Sequence[int]) -> RequestState:
        """Builds the request for the piece after ``ids``."""
        requests, role, part = self._requests, making.role, len(making.request_states)
        limits, context = requests.limits, requests.contexts[role]
        request_state = requests.request_state(
            role,
            making.purpose,
            context.ids(making.before, ids, length=making.begun),
            making.limit - len(ids),
            stop_ids=context.stop_ids,
            sampled_logprobs=limits.confidence and role is Role.DRAFT,
            first_entropy=limits.first_entropy and role is Role.DRAFT and part == 0,
            part=part,
            index=making.index,
            ahead=making.ahead,
        )
        making.request_states.append(request_state)
        return request_state

    async def make(self, making: Making) -> Made:
        """Makes one step with one model: one request, and more if the first brought nothing visible."""
        making.asked = True
        role, before, begun, limit = making.role, making.before, making.begun, making.limit
        limits, context = self._requests.limits, self._requests.contexts[role]
        tokenizer = context.tokenizer
        original = bool(limits.original_marks)
        least = limits.min_step_tokens
        ids: list[int] = []
        sampled: list[float] = []
        entropy: float | None = None
        text = ""
        ended = left = False
        request_states = making.request_states
        # Each piece has a token or ends the text, so at most this many pieces make a step long enough.
        for part in range(max(least, BLANK_PIECES_MAX)):
            try:
                request_state = self._next_piece(making, ids) if part else request_states[0]
                length, left = await self._run_step(role, request_state, ids, sampled, entropy)
            except BaseException as error:
                if not making.given_up:
                    making.given_up = True
                    self._drop_flights(making, self._events.reason(error), error)
                raise
            entropy = entropy if request_state.first_entropy is None else request_state.first_entropy
            new, ended = split_ending(request_state.ids, tokenizer.vocabulary)
            ended = ended or request_state.finish == "end"
            ids.extend(new)
            sampled.extend(request_state.sampled_logprobs[: len(new)])
            if request_state.finish == "length":
                del ids[whole_characters(tokenizer, ids) :]
            if length is not None:
                del ids[length:]
                ended = False  # an end may have come with the step's last token, or later
            text = context.text_of(ids, before, begun)
            if original or ended or left or len(ids) >= limit or request_state.finish == "length":
                break
            if len(ids) >= least if text.strip() else part + 1 >= BLANK_PIECES_MAX:
                break
        removed = 0
        if original:
            # The original counts all generated tokens: also marks that it removes, and the one that ends a text.
            generated = len(ids) + ended
            ids = without_think_close(tokenizer, ids, limits.original_marks)
            removed = max(0, generated - len(ids))
            text = context.text_of(ids, before, begun)
        kind: StepKind = making.purpose
        sure = confidence(sampled[: len(ids)], entropy)
        step = Step(role, making.index, text, tuple(ids), ended, kind, removed, sure, left)
        operations: list[Operation] = []
        start = 0
        for request_state in request_states:
            operation = request_state.report(kept=ids[start:] if start else ids)
            start += operation.output_tokens - len(operation.tail)
            operations.append(operation)
        making.whole = step, tuple(operations)
        return making.whole

    async def _run_step(
        self,
        role: Role,
        request_state: RequestState,
        before: list[int],
        sampled: list[float],
        entropy: float | None,
    ) -> tuple[int | None, bool]:
        """Reads a request until its step ends. Returns the step's length in ids, counted with those ``before``, and
        whether it was abandoned as doubtful; ``sampled`` and ``entropy`` are those of the pieces before.

        The engine stops at a token that contains a blank line. A blank line of two tokens, which is how some tokenizers
        write every one, is found here, and the request is aborted. The size of the deltas changes nothing.
        """
        requests = self._requests
        context = requests.contexts[role]
        tokenizer, lines = context.tokenizer, context.line_ids
        blank, least = bool(requests.limits.original_marks), requests.limits.min_step_tokens
        length, judged = None, 0
        # A blank line needs an id that contains one, or one that ends in a newline: most deltas have neither.
        may_end = not lines.isdisjoint(before)
        async with requests.lanes[role].fly(request_state) as deltas:
            async for delta in deltas:
                may_end = may_end or not lines.isdisjoint(delta.ids)
                if may_end:
                    ids = [*before, *request_state.ids]
                    length = step_length(tokenizer, ids, tokenizer.decode(ids), lines, blank=blank, least=least)
                if sampled or request_state.sampled_logprobs:  # a gate asked for them
                    entropy = entropy if request_state.first_entropy is None else request_state.first_entropy
                    complete = length is not None or request_state.finish is not None
                    whole = len(request_state.ids) if length is None else length - len(before)
                    for tokens in range(judged + 1, whole + (not complete)):
                        so_far = confidence([*sampled, *request_state.sampled_logprobs[:tokens]], entropy)
                        if so_far and self._gate(so_far, whole=False) == "doubtful":
                            requests.ready()
                            return len(before) + tokens, True
                    judged = max(judged, whole)
                if length is not None:
                    break
        requests.ready()
        return length, False

    def drop(self, making: Making, reason: DropReason) -> None:
        """Accounts, once, for a step that is not needed, complete or not.

        A complete step is recorded as if its last request had been abandoned before its end. A replay answers no
        abandoned request, so it sees the same.
        """
        if making.given_up:
            return
        making.given_up = True
        if not making.asked:
            return  # its task was stopped before it had begun
        if making.whole is None:
            self._drop_flights(making, reason)
            return
        step, operations = making.whole
        dropped: list[Operation] = []
        start = 0
        for operation in operations:
            kept = operation.output_tokens - len(operation.tail)
            tail = (*step.ids[start : start + kept], *operation.tail)
            dropped.append(operation.model_copy(update={"tail": tail, "ahead": ()}))
            start += kept
        self._events.dropped(
            dropped.pop().model_copy(update=UNANSWERED), making.role, making.purpose, reason, step.index
        )
        for operation in dropped:
            self._events.dropped(operation, making.role, making.purpose, reason, step.index)

    def _drop_flights(self, making: Making, reason: DropReason, error: BaseException | None = None) -> None:
        """Accounts for the request under way, then for the pieces before it."""
        *pieces, last = making.request_states
        self._events.dropped(last.report(), making.role, making.purpose, reason, making.index, error)
        for piece in pieces:
            self._events.dropped(piece.report(kept=()), making.role, making.purpose, reason, making.index, error)
