"""Implements the verbs of a track: each waits until the engines have room, sends its requests, and publishes the result.

The modules beside this one build requests, make steps and publish what became of requests.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.cleanup import Leaving
from speclrm.runtime.errors import RequestError, ends_attempt, retold, told
from speclrm.runtime.events import (
    DropReason,
    Event,
    ModeChanged,
    OperationDropped,
    PauseReason,
    StepGated,
    StopReason,
    TrackContinued,
    TrackFinished,
    TrackPaused,
    six_digits,
)
from speclrm.runtime.protocols import Role, Score, Step
from speclrm.runtime.scheduling.controller import PROBE_REASON
from speclrm.runtime.seeds import made_ahead
from speclrm.runtime.tokens.steps import (
    split_ending,
    whole_characters,
)
from speclrm.runtime.track.ahead import WorkAhead
from speclrm.runtime.track.events import TrackEvents
from speclrm.runtime.track.generate import StepMaker
from speclrm.runtime.track.open_write import OpenWrite
from speclrm.runtime.track.requests import TrackRequests
from speclrm.runtime.unchecked_events import make_committed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from speclrm.runtime.events import Purpose, Verdict
    from speclrm.runtime.protocols import Problem, Strategy
    from speclrm.runtime.replay.playback import SamplePlayback
    from speclrm.runtime.scheduling.requests import RequestLane, RequestState
    from speclrm.runtime.scheduling.scheduler import Scheduler
    from speclrm.runtime.state import TrackState
    from speclrm.runtime.tokens.context import Context
    from speclrm.runtime.tokens.prompts import JudgeSuffix


READER_PATIENCE_S = 1.0
"""Seconds that a track waits for slow readers of its events before it releases its engines to others."""


class RuntimeTrack:
    """The ``Track`` that strategies' loops see, on real lanes."""

    __slots__ = (
        "_admission",
        "_ahead",
        "_controller",
        "_events",
        "_has_room",
        "_judge",
        "_leaving",
        "_order",
        "_prompts",
        "_read_score",
        "_record",
        "_requests",
        "_room",
        "_speculate",
        "_state",
        "_writing",
        "problem",
        "repeat",
    )

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
        lanes: Mapping[Role, RequestLane],
        record: SamplePlayback | None,
        prompts: Mapping[Role, Sequence[int]],
        openings: Mapping[Role, Sequence[int]],
        judge: JudgeSuffix | None,
        emit: Callable[[Event], object],
        has_room: Callable[[], bool],
        room: Callable[[], Awaitable[None]],
        state: Callable[[], TrackState],
    ) -> None:
        self.problem = problem
        self.repeat = repeat
        self._prompts = strategy.prompts
        self._read_score = strategy.score
        self._speculate = strategy.limits.speculate
        self._record = record
        self._admission = scheduler.admission
        self._controller = scheduler.controller
        self._judge = judge
        self._has_room = has_room
        self._room = room
        self._requests = TrackRequests(
            problem=problem.id,
            repeat=repeat,
            track=track,
            order=order,
            seed=seed,
            limits=strategy.limits,
            lanes=lanes,
            prompts=prompts,
            openings=openings,
            state=state,
        )
        self._order = order
        self._state = state
        self._events = TrackEvents(self._requests, emit, record)
        self._leaving = Leaving()
        maker = StepMaker(self._requests, self._events, strategy)
        self._ahead = WorkAhead(self._requests, self._events, maker, self._leaving, record)
        self._writing = OpenWrite(self._requests, self._events, self._leaving)

    @property
    def state(self) -> TrackState:
        return self._state()

    @property
    def contexts(self) -> Mapping[Role, Context]:
        """The track's ids, as each model sees them."""
        return self._requests.contexts

    @property
    def stop_reason(self) -> StopReason:
        return self._events.stop_reason

    def stopping(self, reason: StopReason) -> None:
        """Notes why the task that runs this track is about to be cancelled, and stops its work ahead."""
        self._events.stopping(reason)
        self.stop_ahead()

    def stop_ahead(self) -> None:
        """Stops the work ahead of a track that is about to be cancelled; ``end`` accounts for it.

        A task that is cancelled ends once its request is aborted, and the work ahead would go on until then.
        """
        self._ahead.stop()

    def end(self, error: BaseException | None = None) -> None:
        """Ends what is open and accounts for it, at once. ``error``: what ended the track, if an error did.

        Nothing is awaited, so that no stop comes between a track's last step and its end; ``gone`` waits for the
        engines.
        """
        if isinstance(error, asyncio.CancelledError):
            reason: DropReason = self.stop_reason
        else:
            # An attempt's end is no decision of the loop: the next attempt continues the track as it was.
            reason = "cancelled" if error is not None and ends_attempt(told(error)) else "useless"
        # First release the engines, then publish, which may fail.
        self._ahead.stop()
        self._writing.stop()
        self._ahead.end(reason)
        self._writing.close("stopped" if reason == "useless" else reason)

    async def gone(self) -> None:
        """Waits until the engines are done with the track, in spite of any cancellation, and releases its KV cache
        reservation.
        """
        try:
            await self._leaving.gone()
        finally:
            if self._requests.reservation is not None:
                self._admission.leave(self._requests.reservation)

    # ------------------------------------------------------------------------------------------------------ verbs

    async def speculates(self) -> bool:
        if self._speculate != "auto" or self._controller is None:
            if self._speculate == "always" and self._controller is not None and self._controller.paces:
                await self._look(everybody=True)
            return self._speculate != "never"
        decided = None if self._record is None else self._record.decided(self._requests.track, self._requests.index)
        if decided is None:
            await self._look()
            decided = self._controller.decide(self.problem.id, self.repeat, self._requests.track)
        mode, reason = decided
        if mode != self.state.mode or reason == PROBE_REASON:  # a run that goes on must know what was tried
            self._events.emit(ModeChanged(**self._events.where, step=self._requests.index, mode=mode, reason=reason))
        return mode != "write"

    async def _look(self, *, everybody: bool = False) -> None:
        """Tells the controller of the engines, and the trace what it makes of that. ``everybody``: all tracks speculate."""
        assert self._controller is not None
        if self._record is not None and self._record.playing:
            if everybody:
                return  # nothing of what follows depends on it
            await self._record.live()
        if self._controller.due:
            self._events.emit(self._controller.observe())
            if (paced := self._controller.paced(everybody)) is not None:
                self._events.emit(paced)

    async def draft(self) -> Step:
        if self._writing.request_state is not None:
            await self._writing.end()
        if not self._may_go_on:
            await self._hold()
        step, operations = await self._ahead.made("draft")
        self._events.drafted(step, operations)
        return step

    async def gate(self, step: Step, verdict: Verdict) -> None:
        if step.confidence is None:
            raise AssertionError("a step of unknown confidence cannot be gated")
        self._events.emit(
            StepGated(
                **self._events.where,
                step=step.index,
                verdict=verdict,
                mean_logprob=step.confidence.mean_logprob,
                first_entropy=step.confidence.first_entropy,
                tokens=step.confidence.tokens,
            )
        )

    async def rewrite(self, step: Step) -> Step:
        if not self._may_go_on:
            await self._hold()
        new, operations = await self._ahead.made("rewrite")
        self._events.written("rewrite", new, operations)
        return new

    def ahead(self, step: Step, *, draft: bool, rewrite: bool) -> None:
        if draft and self._requests.limits.token_budget > self.state.tokens + len(step.ids):
            self._ahead.begin("draft", after=step)
        if rewrite:
            self._ahead.begin("rewrite")

    async def score(self, step: Step) -> Score:
        if not self._may_go_on:
            await self._hold()
        if self._prompts.scorer == "likelihood":
            return await self._score_by_likelihood(step)
        if self._judge is None:
            raise AssertionError("a track without a judge was asked for a score")
        requests, digit_ids = self._requests, self._judge.digit_ids
        context = requests.contexts[Role.TARGET]
        ids = requests.ids_for(step, Role.TARGET)
        request_state = requests.request_state(
            Role.TARGET,
            "score",
            context.ids(requests.opening(Role.TARGET), ids, self._judge.ids),
            1,
            temperature=0.0,
            allowed_ids=() if self._prompts.any_token else digit_ids,
            logprob_ids=digit_ids,
            index=step.index,
        )
        await self._run(Role.TARGET, "score", request_state)
        logprobs = request_state.logprobs or {}
        # Rounded before the score is computed, so that a reader of the trace gets the same one.
        digits = tuple([six_digits(logprobs[token]) for token in digit_ids])
        said = context.tokenizer.decode(request_state.ids)
        score = self._read_score(digits, said)
        self._events.scored(step, score, request_state, self._prompts.scorer, digits, said)
        return score

    async def _score_by_likelihood(self, step: Step) -> Score:
        """Returns the mean log-probability of the step's ids. For a draft that ended its text without a word, returns
        the log-probability that the target would end there, too.
        """
        context = self._requests.contexts[Role.TARGET]
        opening, ids = self._requests.opening(Role.TARGET), self._requests.ids_for(step, Role.TARGET)
        ends = () if ids else tuple(sorted(context.tokenizer.vocabulary.end_ids))
        request_state = self._requests.request_state(
            Role.TARGET,
            "score",
            context.ids(opening, ids),
            1,
            temperature=0.0,
            logprob_ids=ends,
            likelihood_from=len(context) + len(opening) if ids else None,
        )
        await self._run(Role.TARGET, "score", request_state)
        values = request_state.prompt_logprobs or (max((request_state.logprobs or {}).values()),)
        score = Score(sum(values) / len(values), 1.0)
        self._events.scored(step, score, request_state, self._prompts.scorer)
        return score

    async def write(self) -> Step:
        while True:
            await self._hold()
            if (step := await self._writing.step()) is not None:
                return step
            # The request ended with an earlier attempt: another one continues from here.

    async def close(self) -> Step:
        await self._writing.end()
        await self._hold()
        context = self._requests.contexts[Role.TARGET]
        vocabulary = context.tokenizer.vocabulary
        forced = context.tokenizer.encode(self._prompts.closing)
        if context.thinking and vocabulary.think_close is not None:
            forced = [
                *context.tokenizer.encode("\n"),
                vocabulary.think_close,
                *context.tokenizer.encode("\n\n"),
                *forced,
            ]
        request_state = self._requests.request_state(
            Role.TARGET,
            "closing",
            context.ids(forced),
            self._requests.limits.closing_tokens,
            temperature=0.0,
            stop_ids=context.stop_ids,
        )
        await self._run(Role.TARGET, "closing", request_state)
        written, ended = split_ending(request_state.ids, vocabulary)
        written = written[: whole_characters(context.tokenizer, written)]
        ids = (*forced, *written)
        step = Step(
            Role.TARGET,
            self._requests.index,
            context.text_of(ids),
            ids,
            ended or request_state.finish == "end",
            "closing",
        )
        self._events.written("closing", step, (request_state.report(kept=written),))
        return step

    async def commit(self, step: Step, score: float | None = None) -> None:
        # Nothing is awaited from here to the event: a track is never stopped between two facts of one decision.
        if self._record is not None and self._record.ends(self._requests.track):
            await self._record.stop()  # older versions awaited something, and could be stopped here
        # Work ahead for the other decision is useless. A draft after a committed step is not.
        self._ahead.give_up("rewrite", "useless")
        if step.kind != "draft":
            self._ahead.give_up("draft", "useless")
        requests = self._requests
        requests.append(step)
        if (reservation := requests.reservation) is not None:
            for role, context in requests.contexts.items():
                # A track that the target writes alone releases the draft's KV cache to others.
                idle = role is Role.DRAFT and step.kind in ("write", "closing")
                self._admission.resize(reservation, role, 0 if idle else len(context))
        self._events.emit(
            make_committed(
                problem=requests.problem,
                repeat=requests.repeat,
                track=requests.track,
                step=step.index,
                origin=step.kind,
                tokens=len(step.ids) + step.removed,
                score=score,
            )
        )

    # --------------------------------------------------------------------------------------------------------- room

    @property
    def _may_go_on(self) -> bool:
        """Whether ``_hold`` would return at once, as before most requests: to ask costs less than to await."""
        reservation = self._requests.reservation
        return (
            reservation is not None
            and reservation.admitted
            and not reservation.asked
            and self._writing.request_state is None
            and (self._record is None or not self._record.playing)
            and self._has_room()
        )

    async def _hold(self) -> None:
        """Waits before each request until the engines have room for this track and its events are taken.

        A track that has to wait releases its engines and publishes that, since a replay could not know of it otherwise.
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
        if not self._has_room():
            paused = await self._read(paused)
        reservation = self._requests.reservation
        if reservation is None:
            tokens = {role: len(context) for role, context in self._requests.contexts.items()}
            reservation = self._requests.reservation = self._admission.claim(self._order, tokens)
        if reservation.asked:
            paused = await self._pause("room", paused)
            await self._admission.hold(reservation)
        elif not reservation.admitted and not self._admission.admit_at_once(reservation):
            paused = await self._pause("room", paused)
            await self._admission.admit(reservation)
        if paused:
            self._events.emit(TrackContinued(**self._events.where, step=self._requests.index))
            self._requests.ready_s = None
        elif (request_state := self._writing.request_state) and self._requests.lanes[Role.TARGET].wants_place(
            request_state
        ):
            await self._pause("turn", paused=False)

    async def _read(self, paused: bool) -> bool:
        """Waits until the track's events are taken. Returns whether the track is paused now."""
        try:
            async with asyncio.timeout(READER_PATIENCE_S):
                await self._room()
        except TimeoutError:
            paused = await self._pause("reader", paused)
            if self._requests.reservation is not None:
                self._admission.leave(self._requests.reservation)
            await self._room()
        return paused

    async def _held_then(self, record: SamplePlayback) -> Literal["asks", "waited", "new"]:
        """Returns what a trace says of this moment: the track ``asks`` its next request, or it ``waited`` when the
        trace ended, or all that comes is ``new``.
        """
        while record.playing:
            if record.ends(self._requests.track):
                await record.stop()
            match record.coming(self._requests.track):
                case TrackPaused(step=step, reason=reason) if step == self._requests.index:
                    await self._pause(reason, paused=False)
                    if reason == "turn":
                        continue
                    while _failed_ahead(record.coming(self._requests.track)):
                        await record.passed(self._requests.track)
                    if isinstance(record.coming(self._requests.track), TrackContinued):
                        await record.turn_of(self._requests.track)
                        self._events.emit(TrackContinued(**self._events.where, step=self._requests.index))
                        continue
                    if record.mode == "replay":
                        await record.stop()
                    await record.live()
                    return "waited"
                case event if _failed_ahead(event):
                    await record.passed(self._requests.track)
                case None if record.mode == "resume":
                    await record.live()
                    return "new"
                case TrackFinished(error=str(line)) if isinstance(error := retold(line), RequestError):
                    raise error  # older versions ended the track where an engine refused a draft or a score
                case _:
                    if self._writing.request_state is not None:
                        # The next step may have come with the one before, and was read when the track got to it.
                        await record.turn_of(self._requests.track)
                    return "asks"
        return "new"

    async def _pause(self, reason: PauseReason, paused: bool) -> bool:
        """Releases the engines. Returns that the track is paused now."""
        if not paused:
            self._events.emit(TrackPaused(**self._events.where, step=self._requests.index, reason=reason))
        await self._writing.end()
        return True

    async def _run(self, role: Role, purpose: Purpose, request_state: RequestState) -> None:
        try:
            # Not the lane's ``run``: each coroutine between the engine and the task is entered at each delta.
            async with self._requests.lanes[role].fly(request_state) as deltas:
                async for _ in deltas:
                    pass
        except BaseException as error:
            self._events.drop(request_state, role, purpose, error)
            raise
        self._requests.ready()


def _failed_ahead(event: Event | None) -> bool:
    """Whether work ahead failed, which it does by itself, whatever the track does: it may have waited then."""
    return isinstance(event, OperationDropped) and event.reason == "error" and made_ahead(event.operation.id)
