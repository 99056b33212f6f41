"""The verbs of a track: build the operation, await its lane, emit the event; nothing else.

What a step is stands in ``steps.py``. A piece with nothing visible in it, one shorter than a step may be, or a limit that
cuts a character in two, makes no step of its own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from speclrm.runtime.cleanup import to_its_end
from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import Request
from speclrm.runtime.errors import CapacityError, RequestError, ends_attempt, told
from speclrm.runtime.events import (
    Event,
    ModeChanged,
    OperationDropped,
    StepCommitted,
    StepDrafted,
    StepGated,
    StepKind,
    StepScored,
    StepWritten,
    TrackContinued,
    TrackPaused,
)
from speclrm.runtime.protocols import Role, Score, Step
from speclrm.runtime.scheduling.requests import Flight
from speclrm.runtime.scheduling.scheduler import Purpose, priority
from speclrm.runtime.seeds import derive_seed, operation_id
from speclrm.runtime.tokens.context import Context, translate
from speclrm.runtime.tokens.steps import (
    confidence,
    line_ids,
    split_ending,
    step_length,
    stop_ids,
    whole_characters,
    without_think_close,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from speclrm.runtime.engine import Delta
    from speclrm.runtime.events import Operation
    from speclrm.runtime.protocols import Problem, Strategy, Verdict
    from speclrm.runtime.replay.playback import SamplePlayback
    from speclrm.runtime.scheduling.admission import Seat
    from speclrm.runtime.scheduling.requests import Flights
    from speclrm.runtime.scheduling.scheduler import Scheduler
    from speclrm.runtime.state import TrackState
    from speclrm.runtime.tokens.context import Ids
    from speclrm.runtime.tokens.prompts import JudgeSuffix

BLANK_PIECES_MAX = 4
"""Pieces without anything visible in a row, after which a step is taken as empty: a model that writes only newlines
must not keep its track for ever."""


READER_PATIENCE_S = 1.0
"""How long a track waits for those who take its events before it lets its engines go: others want the room and the place."""

Ahead = Literal["draft", "rewrite"]
"""What can be made before it is known to be wanted."""
UNANSWERED: dict[str, Any] = {
    "finish": None,
    "tail": (),
    "logprobs": (),
    "sampled_logprobs": (),
    "first_entropy": None,
    "prompt_logprobs": None,
}
"""What an operation is without, whose request was given up."""
Reason = Literal["stopped", "cancelled", "error", "useless"]
_Made = tuple[Step, "tuple[Operation, ...]"]


@dataclass(eq=False, slots=True)
class _Making:
    """A step in the making: all that it depends on was read when it was asked for, its first request included.

    ``before``: ids behind the context that are not committed yet; ``begun``: the context's length; ``flights``: one a piece,
    the last one still under way until ``whole``. ``given_up``: it has been accounted for. ``task``: where it is made ahead.
    """

    role: Role
    purpose: Ahead
    ahead: bool
    index: int
    before: tuple[int, ...]
    begun: int
    limit: int
    flights: list[Flight] = field(default_factory=list[Flight])
    whole: _Made | None = None
    given_up: bool = False
    task: asyncio.Task[_Made] | None = None


@dataclass(slots=True)
class _Writing:
    """A write that is open: its request, the block around it, and what comes of it."""

    flight: Flight
    block: AbstractAsyncContextManager[AsyncIterator[Delta]]
    deltas: AsyncIterator[Delta]


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
        scheduler: Scheduler,
        lanes: Mapping[Role, Flights],
        record: SamplePlayback | None,
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
        self._gate = strategy.gate
        self._lanes = lanes
        self._record = record
        self._admission = scheduler.admission
        self._controller = scheduler.controller
        self._speculate = strategy.speculate
        self._seat: Seat | None = None
        self._ahead: dict[Ahead, _Making] = {}
        self._leaving: set[asyncio.Task[Any]] = set()
        self._told = self._told_all = False
        self._ready_s: float | None = None
        self._openings = openings
        self._judge = judge
        self._emit = emit
        self._room = room
        self._state = state
        self._contexts = {role: Context(self._lanes[role].engine.tokenizer, ids) for role, ids in prompts.items()}
        self._stop_ids = {role: stop_ids(context.tokenizer.vocabulary) for role, context in self._contexts.items()}
        self._line_ids = {role: line_ids(context.tokenizer.vocabulary) for role, context in self._contexts.items()}
        self._translated: dict[Role, tuple[Step, Sequence[int]]] = {}
        self._writing: _Writing | None = None
        self.stop_reason: Literal["stopped", "cancelled"] = "cancelled"

    @property
    def state(self) -> TrackState:
        return self._state()

    def stopping(self, reason: Literal["stopped", "cancelled"]) -> None:
        """Says why the task that runs this track is about to be cancelled.

        Where the trace has the stop, what was given up is told as it was then, wherever the loop stands now.
        """
        self.stop_reason = reason
        if reason == "stopped" and self._record is not None and self._record.coming(self._track) is not None:
            for event in self._record.stopped(self._track):
                self._emit(event)
            self._told = True
            self._told_all = self._record.coming(self._track) is not None

    def end(self, error: BaseException | None = None) -> None:
        """Ends what is open and accounts for it, at once. ``error``: what ended the track, if anything did.

        Nothing is awaited, so that no stop comes between a track's last step and its end; ``gone`` waits for the rest.
        """
        if isinstance(error, asyncio.CancelledError):
            reason: Reason = self.stop_reason
        else:
            # An attempt's end is no decision of the loop: the next attempt finds the track as it was.
            reason = "cancelled" if error is not None and ends_attempt(told(error)) else "useless"
        # First what costs the engines, then what may fail: a sink that takes no more.
        for making in self._ahead.values():
            self._leave(making.task)
        if self._writing is not None:
            self._leave(asyncio.ensure_future(_left(self._writing)), cancel=False)
        for purpose in tuple(self._ahead):
            self._give_up(purpose, reason)
        self._close_writing("stopped" if reason == "useless" else reason)

    async def gone(self) -> None:
        """Waits, whoever cancels, until the engines are done with the track, and gives its room back."""
        try:
            if self._leaving:
                await to_its_end(asyncio.wait(tuple(self._leaving)))
        finally:
            if self._seat is not None:
                self._admission.leave(self._seat)

    # ------------------------------------------------------------------------------------------------------ verbs

    async def speculates(self) -> bool:
        if self._speculate != "auto" or self._controller is None:
            return self._speculate != "never"
        decided = None if self._record is None else self._record.decided(self._track, self._index)
        if decided is None:
            if self._record is not None and self._record.playing:
                await self._record.live()
            if self._controller.due:
                self._emit(self._controller.observe())
            decided = self._controller.decide(self.problem.id, self._repeat, self._track)
        mode, reason = decided
        if mode != self.state.mode:
            self._emit(ModeChanged(**self._where(), step=self._index, mode=mode, reason=reason))
        return mode != "write"

    async def draft(self) -> Step:
        await self._end_writing()
        await self._hold()
        step, operations = await self._made("draft")
        sure = step.confidence
        self._emit(
            StepDrafted(
                **self._where(),
                step=step.index,
                text=step.text,
                ids=step.ids,
                ended=step.ended,
                operations=operations,
                mean_logprob=sure and sure.mean_logprob,
                first_entropy=sure and sure.first_entropy,
                left=step.left,
            )
        )
        return step

    async def gate(self, step: Step, verdict: Verdict) -> None:
        if step.confidence is None:
            raise AssertionError("a step of unknown confidence cannot be gated")
        self._emit(
            StepGated(
                **self._where(),
                step=step.index,
                verdict=verdict,
                mean_logprob=step.confidence.mean_logprob,
                first_entropy=step.confidence.first_entropy,
                tokens=step.confidence.tokens,
            )
        )

    async def rewrite(self, step: Step) -> Step:
        await self._hold()
        new, operations = await self._made("rewrite")
        self._emit_written("rewrite", new, operations)
        return new

    def ahead(self, step: Step, *, draft: bool, rewrite: bool) -> None:
        if draft and self._limits.token_budget > self.state.tokens + len(step.ids):
            self._begin("draft", after=step)
        if rewrite:
            self._begin("rewrite")

    async def score(self, step: Step) -> Score:
        await self._hold()
        if self._prompts.scorer == "likelihood":
            return await self._score_by_likelihood(step)
        if self._judge is None:
            raise AssertionError("a track without a judge was asked for a score")
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
        self._emit_scored(step, score, flight, digits, said)
        return score

    async def _score_by_likelihood(self, step: Step) -> Score:
        """The mean log-probability of the step's ids. A draft that ended its text without a word is as likely as it is
        that the target would end there, too.
        """
        context = self._contexts[Role.TARGET]
        opening, ids = self._opening(Role.TARGET), self._ids_for(step, Role.TARGET)
        ends = () if ids else tuple(sorted(context.tokenizer.vocabulary.end_ids))
        flight = self._flight(
            Role.TARGET,
            "score",
            context.ids(opening, ids),
            1,
            temperature=0.0,
            logprob_ids=ends,
            likelihood_from=len(context) + len(opening) if ids else None,
        )
        await self._run(Role.TARGET, "score", flight)
        values = flight.prompt_logprobs or (max((flight.logprobs or {}).values()),)
        score = Score(sum(values) / len(values), 1.0)
        self._emit_scored(step, score, flight)
        return score

    async def write(self) -> Step:
        """The next step of one long write, read from the stream as it comes."""
        await self._hold()
        writing = self._writing or await self._open_writing()
        flight = writing.flight
        taken = len(flight.ids) - flight.unreported_tokens
        try:
            while (step := self._next_written(flight, taken)) is None:
                if await anext(writing.deltas, None) is None:
                    if flight.cut:
                        break
                    raise RequestError(f"Engine {flight.engine} ended request {flight.request.id} without a reason.")
        except BaseException as error:
            self._writing = None
            self._leave(asyncio.ensure_future(_left(writing)), cancel=False)
            self._drop(flight, Role.TARGET, "write", error)
            raise
        if step is None:  # the request ended with an earlier attempt: another one goes on from here
            self._writing = None
            await _left(writing)
            return await self.write()
        self._ready_s = now_s()
        spent = flight.unreported_tokens if step.ended else len(step.ids)
        self._emit_written("write", step, (flight.report(spent, kept=step.ids),))
        if flight.over and (step.ended or flight.finish != "end"):  # an end behind a whole step is a step of its own
            self._writing = None
            await _left(writing)
        return step

    async def _open_writing(self) -> _Writing:
        context = self._contexts[Role.TARGET]
        flight = self._flight(Role.TARGET, "write", context.ids(), self._limits.token_budget - self.state.tokens)
        block = self._lanes[Role.TARGET].fly(flight)
        try:
            self._writing = _Writing(flight, block, await block.__aenter__())
        except BaseException as error:
            self._drop(flight, Role.TARGET, "write", error)
            raise
        return self._writing

    async def close(self) -> Step:
        await self._end_writing()
        await self._hold()
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
        # Nothing is awaited from here to the event: a track is never stopped between two facts of one decision.
        if self._record is not None and self._record.ends(self._track):
            await self._record.stop()  # older versions did await something, and could be stopped here
        # What was made ahead of the other decision is of no use. A draft behind a step that is committed is.
        self._give_up("rewrite", "useless")
        if step.kind != "draft":
            self._give_up("draft", "useless")
        for role, context in self._contexts.items():
            context.append([*self._opening(role), *self._ids_for(step, role)])
            if self._seat is not None:
                # A track that the target writes alone leaves the draft's cache to others.
                idle = role is Role.DRAFT and step.kind in ("write", "closing")
                self._admission.resize(self._seat, role, 0 if idle else len(context))
        self._translated.clear()
        self._emit(
            StepCommitted(
                **self._where(), step=step.index, origin=step.kind, tokens=len(step.ids) + step.removed, score=score
            )
        )

    # ---------------------------------------------------------------------------------------------------- work ahead

    def _begin(self, purpose: Ahead, after: Step | None = None) -> None:
        """Sets work going that ``_made`` takes up or ``_give_up`` ends; ``aclose`` waits for all of it."""
        role = Role.DRAFT if purpose == "draft" else Role.TARGET
        try:
            making = self._making(role, purpose, after=after, ahead=True)
        except CapacityError:
            return  # should it be wanted after all, it will be asked for, and fail, at its own time
        name = f"{self.problem.id}/{self._track} {purpose} ahead"
        making.task = asyncio.create_task(self._make(making), name=name)
        self._ahead[purpose] = making

    async def _made(self, purpose: Ahead) -> _Made:
        """The step that was set going ahead, or one that is made now."""
        making = self._ahead.pop(purpose, None)
        if making is None or making.task is None:
            return await self._make(self._making(Role.DRAFT if purpose == "draft" else Role.TARGET, purpose))
        try:
            return await making.task
        except asyncio.CancelledError:
            self._leave(making.task)
            self._drop_making(making, self.stop_reason)
            raise

    def _give_up(self, purpose: Ahead, reason: Reason) -> None:
        """Ends what was set going and accounts for it at once; what its engine still says of it is heard by nobody."""
        making = self._ahead.pop(purpose, None)
        if making is None:
            return
        self._leave(making.task)
        if self._record is not None:
            # How far it had come is a matter of moments, so the trace is asked, if it has the answer.
            started = operation_id(self.problem.id, self._repeat, self._track, making.index, f"{purpose}-ahead")
            for event in self._record.given_up(self._track, started):
                self._emit(event)
                making.given_up = True
            if self._record.coming(self._track) is not None:
                # The trace goes on without a word of it: it had failed with its attempt, which is accounted for.
                making.given_up = True
        self._drop_making(making, reason)

    def _leave(self, task: asyncio.Task[Any] | None, *, cancel: bool = True) -> None:
        """Ends what nobody asks about any more; ``gone`` waits for it. May be called again."""
        if task is None or task in self._leaving:
            return
        if cancel:
            task.cancel()
        self._leaving.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._leaving.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for it, and what failed was told by the operation that it failed with

    def _drop_making(self, making: _Making, reason: Reason) -> None:
        """Accounts, once, for a step that is not wanted, whole or not.

        A whole one is told as if its last request had been given up before its end, so that a replay, which answers none
        that was given up, sees the same.
        """
        if making.given_up:
            return
        making.given_up = True
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
        self._emit_dropped(dropped.pop().model_copy(update=UNANSWERED), making.role, making.purpose, reason, step.index)
        for operation in dropped:
            self._emit_dropped(operation, making.role, making.purpose, reason, step.index)

    def _drop_flights(self, making: _Making, reason: Reason, error: BaseException | None = None) -> None:
        """Accounts for the request under way, then for the pieces before it, which were for nothing, too."""
        *pieces, last = making.flights
        self._emit_dropped(last.report(), making.role, making.purpose, reason, making.index, error)
        for piece in pieces:
            self._emit_dropped(piece.report(kept=()), making.role, making.purpose, reason, making.index, error)

    # --------------------------------------------------------------------------------------------------------- room

    async def _hold(self) -> None:
        """Called before each request: waits until the engines have room for this track and its events are taken.

        A track that has to wait lets its engines go, and says so: a loop driven again cannot know of it otherwise.
        """
        paused = False
        if self._record is not None and self._record.playing:
            match await self._held_then(self._record):
                case "asks":
                    return
                case "waited":
                    paused = True
                case "new":
                    pass
        try:
            async with asyncio.timeout(READER_PATIENCE_S):
                await self._room()
        except TimeoutError:
            paused = await self._pause("reader", paused)
            if self._seat is not None:
                self._admission.leave(self._seat)
            await self._room()
        if self._seat is None:
            tokens = {role: len(context) for role, context in self._contexts.items()}
            self._seat = self._admission.claim(self._order, tokens)
        if self._seat.asked:
            paused = await self._pause("room", paused)
            await self._admission.hold(self._seat)
        elif not self._seat.seated and not self._admission.sit_at_once(self._seat):
            paused = await self._pause("room", paused)
            await self._admission.sit(self._seat)
        if paused:
            self._emit(TrackContinued(**self._where(), step=self._index))
            self._ready_s = None
        elif self._writing is not None and self._lanes[Role.TARGET].wants_place(self._writing.flight):
            await self._pause("turn", paused=False)

    async def _held_then(self, record: SamplePlayback) -> Literal["asks", "waited", "new"]:
        """What a trace says of this moment: the track asked on, or waited when it ended; or there is nothing of it."""
        while record.playing:
            if record.ends(self._track):
                await record.stop()
            match record.coming(self._track):
                case TrackPaused(step=step, reason=reason) if step == self._index:
                    await self._pause(reason, paused=False)
                    if reason == "turn":
                        continue
                    if isinstance(record.coming(self._track), TrackContinued):
                        await record.turn_of(self._track)
                        self._emit(TrackContinued(**self._where(), step=self._index))
                        continue
                    if record.mode == "replay":
                        await record.stop()
                    await record.live()
                    return "waited"
                case None if record.mode == "resume":
                    await record.live()
                    return "new"
                case _:
                    if self._writing is not None:
                        # The next step may have come with the one before, and was read when the track got to it.
                        await record.turn_of(self._track)
                    return "asks"
        return "new"

    async def _pause(self, reason: Literal["room", "reader", "turn"], paused: bool) -> bool:
        """Lets the engines go. Returns that the track is paused now."""
        if not paused:
            self._emit(TrackPaused(**self._where(), step=self._index, reason=reason))
        await self._end_writing()
        return True

    def _ids_for(self, step: Step, role: Role) -> Sequence[int]:
        """The step in the ids of a model; text is tokenised anew only for a model that did not write it, and once."""
        if step.role is role:
            return step.ids
        held = self._translated.get(role)
        if held is None or held[0] is not step:
            source = self._contexts[step.role].tokenizer
            held = step, translate(step.ids, step.text, source, self._contexts[role].tokenizer)
            self._translated[role] = held
        return held[1]

    def _making(self, role: Role, purpose: Ahead, *, after: Step | None = None, ahead: bool = False) -> _Making:
        """What ``_make`` makes a step of, read now.

        ``ahead``: before it is known that it is wanted; ``after``: behind a step that is not committed yet.
        """
        context = self._contexts[role]
        spent = self.state.tokens + (0 if after is None else len(after.ids))
        limit = self._limits.max_step_tokens
        if not self._limits.original_marks:
            limit = min(limit, self._limits.token_budget - spent)
        making = _Making(
            role,
            purpose,
            ahead,
            index=self._index + (after is not None),
            before=() if after is None else (*self._opening(role), *self._ids_for(after, role)),
            begun=len(context),  # it may have grown by the time of a second piece
            limit=limit,
        )
        self._next_piece(making, [])
        return making

    def _next_piece(self, making: _Making, ids: Sequence[int]) -> Flight:
        """The request for the piece behind ``ids``."""
        role, part = making.role, len(making.flights)
        flight = self._flight(
            role,
            making.purpose,
            self._contexts[role].ids(making.before, ids, length=making.begun),
            making.limit - len(ids),
            stop_ids=self._stop_ids[role],
            sampled_logprobs=role is Role.DRAFT and self._limits.confidence,
            first_entropy=role is Role.DRAFT and self._limits.first_entropy and part == 0,
            part=part,
            index=making.index,
            ahead=making.ahead,
        )
        making.flights.append(flight)
        return flight

    async def _make(self, making: _Making) -> _Made:
        """One step by one model: a request, and more where the first brought nothing visible."""
        role, before, begun, limit = making.role, making.before, making.begun, making.limit
        context = self._contexts[role]
        tokenizer = context.tokenizer
        original = bool(self._limits.original_marks)
        least = self._limits.min_step_tokens
        ids: list[int] = []
        sampled: list[float] = []
        entropy: float | None = None
        text = ""
        ended = left = False
        flights = making.flights
        # A piece has at least one token, or it ends the text: so many pieces at most make a step long enough.
        for part in range(max(least, BLANK_PIECES_MAX)):
            try:
                flight = self._next_piece(making, ids) if part else flights[0]
                length, left = await self._run_step(role, flight, ids, sampled, entropy)
            except BaseException as error:
                if not making.given_up:
                    making.given_up = True
                    self._drop_flights(making, self._reason(error), error)
                raise
            entropy = entropy if flight.first_entropy is None else flight.first_entropy
            new, ended = split_ending(flight.ids, tokenizer.vocabulary)
            ended = ended or flight.finish == "end"
            ids.extend(new)
            sampled.extend(flight.sampled_logprobs[: len(new)])
            if flight.finish == "length":
                del ids[whole_characters(tokenizer, ids) :]
            if length is not None:
                del ids[length:]
                ended = False  # an end may have come with the step's last token, or later
            text = context.text_of(ids, before, begun)
            if original or ended or left or len(ids) >= limit or flight.finish == "length":
                break
            if len(ids) >= least if text.strip() else part + 1 >= BLANK_PIECES_MAX:
                break
        removed = 0
        if original:
            # The original counts what was generated: a mark that it takes out, and the one that ends a text, too.
            generated = len(ids) + ended
            ids = without_think_close(tokenizer, ids, self._limits.original_marks)
            removed = max(0, generated - len(ids))
            text = context.text_of(ids, before, begun)
        kind: StepKind = making.purpose
        sure = confidence(sampled[: len(ids)], entropy)
        step = Step(role, making.index, text, tuple(ids), ended, kind, removed, sure, left)
        operations: list[Operation] = []
        start = 0
        for flight in flights:
            operation = flight.report(kept=ids[start:])
            start += operation.output_tokens - len(operation.tail)
            operations.append(operation)
        making.whole = step, tuple(operations)
        return making.whole

    async def _run_step(
        self,
        role: Role,
        flight: Flight,
        before: list[int],
        sampled: list[float],
        entropy: float | None,
    ) -> tuple[int | None, bool]:
        """Takes a flight to the end of its step and returns the step's length in ids, counted with those ``before``; and
        whether it was left as doubtful, which ``sampled`` and ``entropy`` of the pieces before tell, too.

        The engine stops at a token that holds a blank line by itself. A blank line of two tokens, which is how some
        tokenizers write every one, is seen here, and the request is left. How many tokens came at a time decides nothing.
        """
        tokenizer = self._contexts[role].tokenizer
        blank, least = bool(self._limits.original_marks), self._limits.min_step_tokens
        lines = self._line_ids[role]
        length, judged = None, 0
        async with self._lanes[role].fly(flight) as deltas:
            async for _ in deltas:
                # A blank line needs an id that holds one, or one that ends in a newline: most pieces have neither.
                if not (lines.isdisjoint(flight.ids) and lines.isdisjoint(before)):
                    ids = [*before, *flight.ids]
                    length = step_length(tokenizer, ids, tokenizer.decode(ids), blank=blank, least=least)
                entropy = entropy if flight.first_entropy is None else flight.first_entropy
                complete = length is not None or flight.finish is not None
                whole = len(flight.ids) if length is None else length - len(before)
                judging = range(judged + 1, whole + (not complete))
                judged = max(judged, whole)
                for tokens in judging:
                    so_far = confidence([*sampled, *flight.sampled_logprobs[:tokens]], entropy)
                    if so_far and self._gate(so_far, whole=False) == "doubtful":
                        self._ready_s = now_s()
                        return len(before) + tokens, True
                if length is not None:
                    break
        self._ready_s = now_s()
        return length, False

    def _next_written(self, flight: Flight, taken: int) -> Step | None:
        """The next whole step of the open write, or None while more tokens are needed.

        It is the same however many tokens came at a time: nothing behind its end is looked at.
        """
        context = self._contexts[Role.TARGET]
        tokenizer = context.tokenizer
        most = self._limits.max_step_tokens
        ids, ended = split_ending(flight.ids[taken:], tokenizer.vocabulary)
        if not ids and not ended and flight.finish is None:
            return None
        length = step_length(tokenizer, ids, tokenizer.decode(ids), least=self._limits.min_step_tokens)
        if length is not None and length <= most:
            ids, ended = ids[:length], False
        elif len(ids) >= most:
            ids, ended = ids[: whole_characters(tokenizer, ids[:most])], False
        elif flight.finish is None and not ended:
            return None
        elif flight.finish == "length" and not ended:
            ids = ids[: whole_characters(tokenizer, ids)]
        else:
            ended = True
        return Step(Role.TARGET, self._index, context.text_of(ids), tuple(ids), ended, "write")

    async def _end_writing(self) -> None:
        """Closes the open write; what came after the last step was for nothing."""
        if self._writing is None:
            return
        leaving = asyncio.ensure_future(_left(self._writing))
        self._leave(leaving, cancel=False)
        self._close_writing("stopped")
        await to_its_end(asyncio.wait({leaving}))

    def _close_writing(self, reason: Reason) -> None:
        """Accounts for the open write, which the caller leaves."""
        writing, self._writing = self._writing, None
        if writing is not None and writing.flight.owes_report:
            self._emit_dropped(writing.flight.report(), Role.TARGET, "write", reason)

    async def _run(self, role: Role, purpose: Purpose, flight: Flight) -> None:
        try:
            await self._lanes[role].run(flight)
        except BaseException as error:
            self._drop(flight, role, purpose, error)
            raise
        self._ready_s = now_s()

    def _drop(self, flight: Flight, role: Role, purpose: Purpose, error: BaseException) -> None:
        self._emit_dropped(flight.report(), role, purpose, self._reason(error), error=error)

    def _reason(self, error: BaseException) -> Reason:
        return "error" if isinstance(error, Exception) else self.stop_reason

    def _emit_dropped(
        self,
        operation: Operation,
        role: Role,
        purpose: Purpose,
        reason: Reason,
        index: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        if self._told and self._record is not None and (self._told_all or self._record.has(operation.id)):
            return  # the trace has told it
        self._emit(
            OperationDropped(
                **self._where(),
                step=self._index if index is None else index,
                role=role.value,
                purpose=purpose,
                reason=reason,
                operation=operation,
                error=told(error) if isinstance(error, Exception) else None,
            )
        )

    def _flight(
        self,
        role: Role,
        purpose: Purpose,
        ids: Ids,
        max_tokens: int,
        *,
        temperature: float | None = None,
        stop_ids: tuple[int, ...] = (),
        allowed_ids: tuple[int, ...] = (),
        logprob_ids: tuple[int, ...] = (),
        sampled_logprobs: bool = False,
        first_entropy: bool = False,
        likelihood_from: int | None = None,
        part: int = 0,
        index: int | None = None,
        ahead: bool = False,
    ) -> Flight:
        kind = f"{purpose}-ahead" if ahead else purpose
        index = self._index if index is None else index
        name = operation_id(self.problem.id, self._repeat, self._track, index, kind, part)
        # What is made ahead may be asked for while the track waits for its first seat.
        place = 0 if self._seat is None else self._seat.places.get(role, 0)
        engine = self._lanes[role].engines[place]
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
            sampled_logprobs=sampled_logprobs,
            first_entropy=first_entropy,
            likelihood_from=likelihood_from,
            priority=priority(purpose, self._order, ahead=ahead),
        )
        flight = Flight(request, engine.name, place, self._ready_s)
        self._lanes[role].recall(flight)
        return flight

    # ------------------------------------------------------------------------------------------------------ events

    @property
    def _index(self) -> int:
        return len(self.state.steps)

    def _opening(self, role: Role) -> Sequence[int]:
        """What goes before the first step once that step is there."""
        return () if self.state.steps else self._openings[role]

    def _where(self) -> _Where:
        return {"problem": self.problem.id, "repeat": self._repeat, "track": self._track}

    def _emit_scored(
        self, step: Step, score: Score, flight: Flight, digits: tuple[float, ...] = (), said: str = ""
    ) -> None:
        self._emit(
            StepScored(
                **self._where(),
                step=step.index,
                value=score.value,
                mass=score.mass,
                digits=digits,
                said=said,
                scorer=self._prompts.scorer,
                operations=(flight.report(kept=(), digits=bool(digits)),),
            )
        )

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


async def _left(writing: _Writing) -> None:
    """Leaves the block around a write, which aborts what is still under way."""
    await writing.block.__aexit__(None, None, None)
