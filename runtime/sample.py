"""Runs one attempt at a problem: its tracks side by side, the vote as they end, and the result."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypedDict

import structlog

from speclrm.runtime.cleanup import OrderedTaskGroup
from speclrm.runtime.errors import EngineDeadError, SpecLRMError, TooManyErrors, TraceError, told
from speclrm.runtime.events import (
    Event,
    FinishReason,
    MethodsChosen,
    Outcome,
    ProblemStarted,
    SampleFinished,
    TrackFinished,
    TrackStarted,
    VoteUpdated,
)
from speclrm.runtime.protocols import Role
from speclrm.runtime.state import SampleState, apply
from speclrm.runtime.tokens.prompts import judge_of, prompt_ids
from speclrm.runtime.track.method_choice import ask
from speclrm.runtime.track.track import RuntimeTrack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from speclrm.runtime.protocols import Equivalence, Plan, Problem, Strategy, TrackPlan
    from speclrm.runtime.replay.playback import SamplePlayback
    from speclrm.runtime.scheduling.requests import RequestLane
    from speclrm.runtime.scheduling.scheduler import Scheduler
    from speclrm.runtime.tokens.prompts import JudgeSuffix
    from speclrm.runtime.trace.bus import EventBus

log = structlog.get_logger(__name__)

MADE_AT_ONCE = 16
"""Tracks of a sample that are made before other tasks have their turn: each has a prompt to encode. They start together."""


class Sample:
    """Owns the tracks of one attempt. ``state`` is always the fold of its events. ``track_ended`` is called with the number of
    tracks when one of them is over, and its vote counted.
    """

    def __init__(
        self,
        problem: Problem,
        repeat: int,
        *,
        order: int,
        seed: int | None,
        strategy: Strategy,
        scheduler: Scheduler,
        lanes: Mapping[Role, RequestLane],
        record: SamplePlayback | None = None,
        equivalence: Equivalence,
        bus: EventBus,
        track_ended: Callable[[int], None],
    ) -> None:
        self.problem = problem
        self.repeat = repeat
        self.state = SampleState(problem.id, repeat)
        self._order = order
        self._seed = seed
        self._strategy = strategy
        self._scheduler = scheduler
        self._lanes = lanes
        self._record = record
        self._equivalence = equivalence
        self._bus = bus
        self._track_ended = track_ended
        self._voting = asyncio.Lock()
        self._controller = scheduler.controller
        self._running: dict[str, tuple[asyncio.Task[None], RuntimeTrack]] = {}

    async def run(self) -> SampleState:
        """Runs all tracks to their ends and returns the final state.

        An error of one track ends that track. Raises EngineDeadError, TraceError and TooManyErrors, after which no
        track could continue.
        """
        strategy = self._strategy
        started = self._publish(ProblemStarted(**self._where, text=self.problem.text, gold=self.problem.answer))
        # An iterator releases each plan, which holds the whole prompt as text.
        plans = iter((await self._plan()).tracks)
        tokenizers = {role: self._lanes[role].engine.tokenizer for role in strategy.roles}
        judge = judge_of(tokenizers[Role.TARGET], strategy.prompts) if Role.DRAFT in strategy.roles else None
        try:
            made: list[tuple[str, RuntimeTrack]] = []
            for plan in plans:
                made.append((plan.track, self._track(plan, judge)))
                if len(made) % MADE_AT_ONCE == 0:
                    await asyncio.sleep(0)  # lets other samples work
            async with OrderedTaskGroup(self._stop_ahead) as group:
                for name, track in made:
                    task = group.create_task(self._run_track(name, track), name=f"{self._name}/{name}")
                    self._running[name] = task, track
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            # Tracks that ended before their task had begun: all of them, even if a sink fails at the first.
            unfinished = [name for name, state in self.state.tracks.items() if not state.finished]
            with ExitStack() as stack:
                for name in reversed(unfinished):
                    reason = self._running[name][1].stop_reason if name in self._running else "cancelled"
                    stack.callback(self._finish, name, reason)
            self._running.clear()  # tracks refer to their sample: a cycle that only the garbage collector would free
        winner = strategy.vote(self.state, self.state.classes)
        answer = self.state.tracks[winner].answer if winner else None
        outcome = await self._grade(answer)
        await self._bus.turn("sample_finished", self.problem.id, self.repeat)
        # By the times in the trace, so that a resumed run counts only the time that it ran.
        now = self._bus.elapsed_s
        seconds = round(now - started.t, 6)
        self._publish(
            SampleFinished(**self._where, answer=answer, winner=winner, outcome=outcome, seconds=seconds), at_s=now
        )
        return self.state

    async def _plan(self) -> Plan:
        """Returns how the tracks start, after asking the target if the strategy wants that.

        A missing reply counts as one without a code: the choice is advice, and no sample fails for it.
        """
        strategy = self._strategy
        question = strategy.question(self.problem)
        if question is None:
            plan = strategy.plan(self.problem, self.repeat, self._seed)
            self._publish(MethodsChosen(**self._where, codes=_codes(plan), chosen_by=plan.chosen_by))
            return plan
        reply = await ask(
            question,
            self.problem.id,
            self.repeat,
            order=self._order,
            seed=self._seed,
            lane=self._lanes[Role.TARGET],
            emit=self._publish,
            room=self._bus.room,
        )
        plan = strategy.plan(self.problem, self.repeat, self._seed, reply.text or "")
        self._publish(
            MethodsChosen(
                **self._where,
                codes=_codes(plan),
                chosen_by=plan.chosen_by,
                text=reply.text,
                padded=plan.padded,
                operations=reply.operations,
                error=reply.error,
            )
        )
        return plan

    def _track(self, plan: TrackPlan, judge: JudgeSuffix | None) -> RuntimeTrack:
        tokenizers = {role: self._lanes[role].engine.tokenizer for role in self._strategy.roles}
        name = plan.track  # a closure over the plan would keep it, and its prompt, as long as the track
        prompts = prompt_ids(tokenizers, plan)
        openings = {role: tokenizer.encode_marked(plan.opening) for role, tokenizer in tokenizers.items()}
        self._publish(
            TrackStarted(
                **self._where,
                track=plan.track,
                hint=plan.hint,
                prompt_ids={role.value: tuple(ids) for role, ids in prompts.items()},
                opening_ids={role.value: tuple(ids) for role, ids in openings.items() if ids},
            )
        )
        return RuntimeTrack(
            problem=self.problem,
            repeat=self.repeat,
            track=plan.track,
            order=self._order,
            seed=self._seed,
            strategy=self._strategy,
            scheduler=self._scheduler,
            lanes=self._lanes,
            record=self._record,
            prompts=prompts,
            openings=openings,
            judge=judge,
            emit=self._publish,
            has_room=self._bus.has_room,
            room=self._bus.room,
            state=lambda: self.state.tracks[name],
        )

    async def _run_track(self, name: str, track: RuntimeTrack) -> None:
        try:
            try:
                reason = await self._strategy.run_track(track)
            except asyncio.CancelledError as error:
                track.end(error)
                self._finish(name, track.stop_reason)
                raise
            except Exception as error:
                track.end(error)
                self._finish(name, "error", error)
                if isinstance(error, EngineDeadError | TraceError | TooManyErrors):
                    raise  # nothing can continue
                return
            track.end()
            self._finish(name, reason)
            await self._count_vote(name)
        finally:
            await track.gone()
            self._track_ended(len(self.state.tracks))

    def _finish(self, name: str, reason: FinishReason, error: Exception | None = None) -> None:
        state = self.state.tracks[name]
        ended = reason in ("stopped", "cancelled", "error")
        if error is not None and not isinstance(error, SpecLRMError):
            log.error("track_failed", track=f"{self._name}/{name}", exc_info=error)
        self._publish(
            TrackFinished(
                **self._where,
                track=name,
                reason=reason,
                answer=None if ended else self._strategy.answer(state, self.problem, reason),
                tokens=state.tokens,
                error=None if error is None else told(error),
            )
        )

    async def _count_vote(self, name: str) -> None:
        """Adds a finished track's answer to those equal to it; ends the other tracks if the strategy says so."""
        answer = self.state.tracks[name].answer
        if answer is None:
            return
        async with self._voting:
            classes = list(self.state.classes)
            for place, members in enumerate(classes):
                if await self._same(self.state.tracks[members[0]].answer or "", answer):
                    classes[place] = (*members, name)
                    break
            else:
                classes.append((name,))
            frozen = tuple(classes)
            self._publish(VoteUpdated(**self._where, classes=frozen, leader=self._strategy.vote(self.state, frozen)))
            if self._strategy.ends_sample(self.state):
                self._stop_others(name)

    async def _same(self, one: str, other: str) -> bool:
        verdict = self._strategy.same(one, other, self.problem)
        return await self._equivalence.same(one, other) if verdict is None else verdict

    def _stop_ahead(self) -> None:
        for _, track in self._running.values():
            track.stop_ahead()

    def _stop_others(self, name: str) -> None:
        for other, (task, track) in self._running.items():
            if other != name and not self.state.tracks[other].finished:
                track.stopping("stopped")
                task.cancel()

    async def _grade(self, answer: str | None) -> Outcome:
        reasons = [track.reason for track in self.state.tracks.values()]
        if answer is None:
            if reasons and all(reason == "error" for reason in reasons):
                return "error"
            return "truncated" if "budget" in reasons or "step_limit" in reasons else "no_answer"
        if self.problem.answer is None:
            return "ungraded"
        return await self._equivalence.grade(answer, self.problem)

    def _publish(self, event: Event, at_s: float | None = None) -> Event:
        # If a sink fails the run ends, but state and controller still see every track's end.
        self.state = apply(self.state, event)
        told: Event | None = None
        try:
            told = self._bus.publish(event, at_s)
            return told
        finally:
            # The controller has read the events of the trace already.
            if self._controller is not None and (told is None or told is event):
                self._controller.see(event)

    @property
    def _where(self) -> _Where:
        return {"problem": self.problem.id, "repeat": self.repeat}

    @property
    def _name(self) -> str:
        return f"{self.problem.id}/{self.repeat}"


def _codes(plan: Plan) -> tuple[str, ...]:
    return tuple(track.code for track in plan.tracks)


class _Where(TypedDict):
    problem: str
    repeat: int
