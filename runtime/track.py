"""The verbs of a track: build the operation, await its lane, emit the event; nothing else.

What a step is: text up to and including the first blank line that follows something visible. The engine ends it at a
token that holds a blank line; one that is put together from two tokens is cut here, by ids. A piece with nothing
visible in it, or a limit that cuts a character in two, makes no step of its own.
"""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Literal, TypedDict

from speclrm.runtime.context import Context, JudgeSuffix, translate
from speclrm.runtime.errors import CapacityError, RequestError, told
from speclrm.runtime.events import (
    Event,
    OperationDropped,
    StepCommitted,
    StepDrafted,
    StepKind,
    StepScored,
    StepWritten,
)
from speclrm.runtime.lanes import Flight
from speclrm.runtime.protocols import Request, Role, Score, Step
from speclrm.runtime.scheduler import Purpose, priority
from speclrm.runtime.seeds import derive_seed, operation_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from speclrm.runtime.events import Operation
    from speclrm.runtime.lanes import Flights
    from speclrm.runtime.protocols import Delta, Problem, Strategy, Tokenizer, Vocabulary
    from speclrm.runtime.state import TrackState

_NEWLINES = re.compile(r"\n+")
_THINK_CLOSE = "</think>"
_CUT_CHARACTER = "\ufffd"
_UTF8_TAIL = 3
"""A character has at most four bytes, so at most three ids of one byte each can be left over."""

BLANK_PIECES_MAX = 4
"""Pieces without anything visible in a row, after which a step is taken as empty: a model that writes only newlines
must not keep its track for ever."""


def step_end(text: str, *, blank: bool = False) -> int | None:
    """Where the first step of a text ends: behind the first blank line that follows something visible.

    With ``blank``, nothing visible is asked for.
    """
    start = 0 if blank else len(text) - len(text.lstrip())
    at = text.find("\n\n", start)
    newlines = _NEWLINES.match(text, at) if at >= 0 else None
    return newlines.end() if newlines else None


def step_length(tokenizer: Tokenizer, ids: Sequence[int], text: str, *, blank: bool = False) -> int | None:
    """How many of the ids make the first step, or None while no blank line ends it.

    The step owns the token that completes the blank line, with whatever else that token holds.
    """
    if step_end(text, blank=blank) is None:
        return None
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if step_end(tokenizer.decode(ids[:middle]), blank=blank) is not None:
            high = middle
        else:
            low = middle + 1
    return low


def whole_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many of the ids make a text that does not end inside a character."""
    for length in range(len(ids), max(len(ids) - _UTF8_TAIL, 0) - 1, -1):
        if not tokenizer.decode(ids[:length]).endswith(_CUT_CHARACTER):
            return length
    return len(ids)  # the model did write U+FFFD


def split_ending(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[Sequence[int], bool]:
    """The ids up to the first mark that is neither text nor a think mark, and whether there was one.

    A model that writes such a mark (the start of another turn, say) has ended its own text.
    """
    marks = vocabulary.special_ids - {vocabulary.think_open, vocabulary.think_close}
    for index, token in enumerate(ids):
        if token in marks:
            return ids[:index], True
    return ids, False


def stop_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids that end a step inside the engine: a blank line, or a mark that is not text."""
    marks = vocabulary.special_ids - vocabulary.end_ids - {vocabulary.think_open, vocabulary.think_close}
    return tuple(sorted(vocabulary.blank_line_ids | marks))


class _Where(TypedDict):
    problem: str
    repeat: int
    track: str


class RuntimeTrack:
    """The ``Track`` that strategies' loops see, on real lanes."""

    def __init__(
        self,
        *,
        problem: Problem,
        repeat: int,
        track: str,
        order: int,
        seed: int | None,
        strategy: Strategy,
        lanes: Mapping[Role, Flights],
        prompts: Mapping[Role, Sequence[int]],
        openings: Mapping[Role, Sequence[int]],
        judge: JudgeSuffix | None,
        emit: Callable[[Event], None],
        room: Callable[[], Awaitable[None]],
        state: Callable[[], TrackState],
    ) -> None:
        self.problem = problem
        self._repeat, self._track = repeat, track
        self._order = order
        self._seed = seed
        self._limits = strategy.limits
        self._prompts = strategy.prompts
        self._read_score = strategy.score
        self._lanes = lanes
        self._openings = openings
        self._judge = judge
        self._emit = emit
        self._room = room
        self._state = state
        self._contexts = {role: Context(self._lanes[role].engine.tokenizer, ids) for role, ids in prompts.items()}
        self._stop_ids = {role: stop_ids(context.tokenizer.vocabulary) for role, context in self._contexts.items()}
        self._translated: dict[tuple[Step, Role], Sequence[int]] = {}
        self._open = AsyncExitStack()
        self._writing: tuple[Flight, AsyncIterator[Delta]] | None = None
        self.stop_reason: Literal["stopped", "cancelled"] = "cancelled"

    @property
    def state(self) -> TrackState:
        return self._state()

    def stopping(self, reason: Literal["stopped", "cancelled"]) -> None:
        """Says why the task that runs this track is about to be cancelled."""
        self.stop_reason = reason

    async def aclose(self) -> None:
        """Ends the open request, if there is one."""
        await self._end_writing()

    # ------------------------------------------------------------------------------------------------------ verbs

    async def draft(self) -> Step:
        step, operations = await self._step(Role.DRAFT, "draft")
        self._emit(
            StepDrafted(
                **self._where(), step=step.index, text=step.text, ids=step.ids, ended=step.ended, operations=operations
            )
        )
        return step

    async def rewrite(self, step: Step) -> Step:
        new, operations = await self._step(Role.TARGET, "rewrite")
        self._emit_written("rewrite", new, operations)
        return new

    async def score(self, step: Step) -> Score:
        if self._judge is None:
            raise AssertionError("a track without a judge was asked for a score")
        await self._room()
        context = self._contexts[Role.TARGET]
        ids = self._ids_for(step, Role.TARGET)
        flight = self._flight(
            Role.TARGET,
            "score",
            context.ids(self._opening(Role.TARGET), ids, self._judge.ids),
            1,
            temperature=0.0,
            allowed_ids=() if self._prompts.any_token else self._judge.digit_ids,
            logprob_ids=self._judge.digit_ids,
        )
        await self._run(Role.TARGET, "score", flight)
        logprobs = flight.logprobs or {}
        # Rounded before the score is made from them, so that a reader of the trace makes the same one.
        digits = tuple(round(logprobs[token], 6) for token in self._judge.digit_ids)
        said = context.tokenizer.decode(flight.ids)
        score = self._read_score(digits, said)
        self._emit(
            StepScored(
                **self._where(),
                step=step.index,
                value=score.value,
                mass=score.mass,
                digits=digits,
                said=said,
                operations=(flight.report(kept=(), digits=True),),
            )
        )
        return score

    async def write(self) -> Step:
        """The next step of one long write, read from the stream as it comes."""
        await self._room()
        context = self._contexts[Role.TARGET]
        if self._writing is None:
            left = self._limits.token_budget - self.state.tokens
            flight = self._flight(Role.TARGET, "write", context.ids(), left)
            deltas = await self._open.enter_async_context(self._lanes[Role.TARGET].fly(flight))
            self._writing = flight, deltas
        flight, deltas = self._writing
        taken = len(flight.ids) - flight.unreported_tokens
        try:
            while (step := self._next_written(flight, taken)) is None:
                if await anext(deltas, None) is None:
                    if flight.cut:
                        break
                    raise RequestError(f"Engine {flight.engine} ended request {flight.request.id} without a reason.")
        except BaseException as error:
            self._drop(flight, Role.TARGET, "write", error)
            self._writing = None
            await self._open.aclose()
            raise
        if step is None:  # the request ended with an earlier attempt: another one goes on from here
            self._writing = None
            await self._open.aclose()
            return await self.write()
        spent = flight.unreported_tokens if step.ended else len(step.ids)
        self._emit_written("write", step, (flight.report(spent, kept=step.ids),))
        if flight.over:
            self._writing = None
            await self._open.aclose()
        return step

    async def close(self) -> Step:
        await self._end_writing()
        await self._room()
        context = self._contexts[Role.TARGET]
        vocabulary = context.tokenizer.vocabulary
        forced = context.tokenizer.encode(self._prompts.closing)
        if context.thinking and vocabulary.think_close is not None:
            forced = [
                *context.tokenizer.encode("\n"),
                vocabulary.think_close,
                *context.tokenizer.encode("\n\n"),
                *forced,
            ]
        flight = self._flight(
            Role.TARGET,
            "closing",
            context.ids(forced),
            self._limits.closing_tokens,
            temperature=0.0,
            stop_ids=self._stop_ids[Role.TARGET],
        )
        await self._run(Role.TARGET, "closing", flight)
        written, ended = split_ending(flight.ids, vocabulary)
        written = written[: whole_characters(context.tokenizer, written)]
        ids = (*forced, *written)
        step = Step(Role.TARGET, self._index, context.text_of(ids), ids, ended or flight.finish == "end", "closing")
        self._emit_written("closing", step, (flight.report(kept=written),))
        return step

    async def commit(self, step: Step, score: float | None = None) -> None:
        for role, context in self._contexts.items():
            context.append([*self._opening(role), *self._ids_for(step, role)])
        self._translated.clear()
        self._emit(
            StepCommitted(
                **self._where(), step=step.index, origin=step.kind, tokens=len(step.ids) + step.removed, score=score
            )
        )

    # ---------------------------------------------------------------------------------------------------- requests

    def _ids_for(self, step: Step, role: Role) -> Sequence[int]:
        """The step in the ids of a model; text is tokenised anew only for a model that did not write it, and once."""
        key = step, role
        if key not in self._translated:
            source = self._contexts[step.role].tokenizer
            self._translated[key] = translate(step.ids, step.text, source, self._contexts[role].tokenizer)
        return self._translated[key]

    async def _step(self, role: Role, purpose: Literal["draft", "rewrite"]) -> tuple[Step, tuple[Operation, ...]]:
        """One step by one model: a request, and more where the first brought nothing visible."""
        context = self._contexts[role]
        tokenizer = context.tokenizer
        original = bool(self._limits.original_marks)
        limit = self._limits.max_step_tokens
        if not original:
            limit = min(limit, self._limits.token_budget - self.state.tokens)
        ids: list[int] = []
        flights: list[Flight] = []
        ended = False
        for part in range(BLANK_PIECES_MAX):
            await self._room()
            flight = self._flight(
                role, purpose, context.ids(ids), limit - len(ids), stop_ids=self._stop_ids[role], part=part
            )
            try:
                length = await self._run_step(role, purpose, flight, ids)
            except BaseException as error:
                for piece in flights:  # the pieces before this one were for nothing too
                    self._emit_dropped(piece.report(kept=()), role, purpose, error)
                raise
            flights.append(flight)
            new, ended = split_ending(flight.ids, tokenizer.vocabulary)
            ended = ended or flight.finish == "end"
            ids.extend(new)
            if flight.finish == "length":
                del ids[whole_characters(tokenizer, ids) :]
            if length is not None and length < len(ids):
                del ids[length:]
                ended = False
            if original or ended or len(ids) >= limit or flight.finish == "length" or tokenizer.decode(ids).strip():
                break
        removed = 0
        if original:
            # The original counts what was generated: a mark that it takes out, and the one that ends a text, too.
            generated = len(ids) + ended
            ids = self._without_think_close(tokenizer, ids)
            removed = max(0, generated - len(ids))
        kind: StepKind = purpose
        operations: list[Operation] = []
        start = 0
        for flight in flights:
            operation = flight.report(kept=ids[start:])
            start += operation.output_tokens - len(operation.tail)
            operations.append(operation)
        return Step(role, self._index, context.text_of(ids), tuple(ids), ended, kind, removed), tuple(operations)

    def _without_think_close(self, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
        text = tokenizer.decode(ids)
        if _THINK_CLOSE not in text or any(mark in text for mark in self._limits.original_marks):
            return ids
        kept = [token for token in ids if token != tokenizer.vocabulary.think_close]
        left = tokenizer.decode(kept)
        # A model without that mark writes it in pieces, and its ids around them mean nothing by themselves.
        return tokenizer.encode(left.replace(_THINK_CLOSE, "")) if _THINK_CLOSE in left else kept

    async def _run_step(self, role: Role, purpose: Purpose, flight: Flight, before: list[int]) -> int | None:
        """Takes a flight to the end of its step and returns the step's length in ids, counted with those ``before``.

        The engine stops at a token that holds a blank line by itself. A blank line of two tokens, which is how some
        tokenizers write every one, is seen here, and the request is left.
        """
        tokenizer = self._contexts[role].tokenizer
        length = None
        try:
            async with self._lanes[role].fly(flight) as deltas:
                async for _ in deltas:
                    ids = [*before, *flight.ids]
                    text = tokenizer.decode(ids)
                    length = step_length(tokenizer, ids, text, blank=bool(self._limits.original_marks))
                    if length is not None:
                        break
        except BaseException as error:
            self._drop(flight, role, purpose, error)
            raise
        return length

    def _next_written(self, flight: Flight, taken: int) -> Step | None:
        """The next whole step of the open write, or None while more tokens are needed."""
        context = self._contexts[Role.TARGET]
        tokenizer = context.tokenizer
        ids, ended = split_ending(flight.ids[taken:], tokenizer.vocabulary)
        if not ids and not ended and flight.finish is None:
            return None
        length = step_length(tokenizer, ids, tokenizer.decode(ids))
        if length is not None:
            # What follows may be nothing but an end; then this step is the last.
            rest, marked = split_ending(flight.ids[taken + length :], tokenizer.vocabulary)
            ended = not rest and (marked or flight.finish == "end")
            ids = ids[:length]
        elif flight.finish is None and not ended and len(ids) < self._limits.max_step_tokens:
            return None
        elif flight.finish is None and not ended:
            ids = ids[: whole_characters(tokenizer, ids[: self._limits.max_step_tokens])]
        elif flight.finish == "length" and not ended:
            ids = ids[: whole_characters(tokenizer, ids)]
        else:
            ended = True
        return Step(Role.TARGET, self._index, context.text_of(ids), tuple(ids), ended, "write")

    async def _end_writing(self) -> None:
        """Closes the open write; what came after the last step was for nothing."""
        if self._writing is None:
            return
        flight, _ = self._writing
        self._writing = None
        await self._open.aclose()
        if flight.unreported_tokens:
            self._emit_dropped(flight.report(), Role.TARGET, "write")

    async def _run(self, role: Role, purpose: Purpose, flight: Flight) -> None:
        try:
            await self._lanes[role].run(flight)
        except BaseException as error:
            self._drop(flight, role, purpose, error)
            raise

    def _drop(self, flight: Flight, role: Role, purpose: Purpose, error: BaseException) -> None:
        self._emit_dropped(flight.report(), role, purpose, error)

    def _emit_dropped(
        self, operation: Operation, role: Role, purpose: Purpose, error: BaseException | None = None
    ) -> None:
        """``error``: what ended the request; None where its track had all that it wanted."""
        failed = isinstance(error, Exception)
        self._emit(
            OperationDropped(
                **self._where(),
                step=self._index,
                role=role.value,
                purpose=purpose,
                reason="error" if failed else "stopped" if error is None else self.stop_reason,
                operation=operation,
                error=told(error) if failed else None,
            )
        )

    def _flight(
        self,
        role: Role,
        purpose: Purpose,
        ids: list[int],
        max_tokens: int,
        *,
        temperature: float | None = None,
        stop_ids: tuple[int, ...] = (),
        allowed_ids: tuple[int, ...] = (),
        logprob_ids: tuple[int, ...] = (),
        part: int = 0,
    ) -> Flight:
        name = operation_id(self.problem.id, self._repeat, self._track, self._index, purpose, part)
        engine = self._lanes[role].engine
        room = engine.max_model_len - len(ids)
        if room <= 0:
            raise CapacityError(
                f"{name}: the context has {len(ids)} tokens and {engine.name} takes {engine.max_model_len}. "
                "Use a smaller --token-budget, or a model with a longer context."
            )
        request = Request(
            id=name,
            prompt_ids=ids,
            max_tokens=min(max_tokens, room),
            temperature=self._limits.temperature if temperature is None else temperature,
            top_p=self._limits.top_p if temperature is None else 1.0,
            seed=derive_seed(self._seed, name),
            stop_ids=stop_ids,
            allowed_ids=allowed_ids,
            logprob_ids=logprob_ids,
            priority=priority(purpose, self._order),
        )
        return Flight(request, engine.name)

    # ------------------------------------------------------------------------------------------------------ events

    @property
    def _index(self) -> int:
        return len(self.state.steps)

    def _opening(self, role: Role) -> Sequence[int]:
        """What goes before the first step once that step is there."""
        return () if self.state.steps else self._openings[role]

    def _where(self) -> _Where:
        return {"problem": self.problem.id, "repeat": self._repeat, "track": self._track}

    def _emit_written(
        self, kind: Literal["rewrite", "write", "closing"], step: Step, operations: tuple[Operation, ...]
    ) -> None:
        self._emit(
            StepWritten(
                **self._where(),
                step=step.index,
                write_kind=kind,
                text=step.text,
                ids=step.ids,
                ended=step.ended,
                operations=operations,
            )
        )
