"""Drives loops again over a trace: resume, replay and what-if are this one mechanism.

A loop starts from the beginning. A request that the trace has (the same operation, the same digest) is answered from
it, in the order in which the trace's events closed the requests; so are the verdicts on answers. What the loop
publishes is compared with the trace. Two modes differ in what happens if the trace does not fit:

    resume    a request that is not in the trace goes to a live engine, once all samples have caught up; a difference is an error
    replay    a request that is not in the trace waits for ever; differences are listed

When a loop was interrupted (by a sibling's answer, or because work ahead was not needed) is a matter of moments that no
loop can repeat. So the trace decides: the requests that it says were abandoned are abandoned again
(``SamplePlayback.given_up``, ``stopped``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.clock import VirtualTimeLoop, now_s
from speclrm.runtime.errors import ResumeError
from speclrm.runtime.events import (
    SCHEMA_VERSION,
    Event,
    ModeChanged,
    OperationDropped,
    SampleFinished,
    StepDrafted,
    StepWritten,
    TrackEvent,
    TrackFinished,
)
from speclrm.runtime.replay.differences import Difference, describe
from speclrm.runtime.replay.recorded_replies import answers, verdicts_of
from speclrm.runtime.replay.recorded_run import Past, PastSample, by_the_end
from speclrm.runtime.scheduling.controller import Decision
from speclrm.runtime.scheduling.requests import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from speclrm.runtime.engine import Request
    from speclrm.runtime.events import Outcome
    from speclrm.runtime.replay.recorded_replies import RecordedReply
    from speclrm.runtime.replay.recorded_run import SampleKey

Mode = Literal["resume", "replay"]

STUCK_S = 60.0
"""Seconds that a sample which is driven again may make no progress. It waits only for the judge of answers, whose own
limit is far lower."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A place at which a track had to stop, because its next request is not in the trace. ``why``: one line."""

    problem: str
    repeat: int
    track: str
    step: int
    operation: str
    why: str


class Playback:
    """The samples of a trace, and what became of them this time.

    A resume first lets all samples that had begun catch up, and only then continues (``release``): so a trace that does
    not fit is found before anything new has happened. A run that begins ``anew`` from a trace has nothing to wait for.
    """

    def __init__(self, past: Past, mode: Mode, *, anew: bool = False) -> None:
        self.past = past
        self.mode: Mode = mode
        self.differences: list[Difference] = []
        self.stops: dict[str, Stop] = {}
        self.broken: ResumeError | None = None
        self.over = False
        """Whether everything has been played: what waits now waits for ever."""
        self.anew = anew
        self.released = anew or mode == "replay"
        self._behind: set[SamplePlayback] = set()
        self._moved = asyncio.Event()
        self.samples: dict[SampleKey, SamplePlayback] = {
            key: SamplePlayback(self, sample) for key, sample in past.samples.items() if sample.events
        }

    def sample(self, problem: str, repeat: int) -> SamplePlayback:
        """Returns the playback of a sample. One that the trace does not have gets an empty record."""
        key = problem, repeat
        if key not in self.samples:
            self.samples[key] = SamplePlayback(self, PastSample(problem, repeat, 0))
        return self.samples[key]

    # ------------------------------------------------------------------------------------------------------- catching up

    async def caught_up(self, samples: Iterable[SamplePlayback]) -> None:
        """Waits until these samples have done everything that the trace has of them."""
        self._behind = {sample for sample in samples if not sample.caught_up}
        while self._behind:
            self._moved.clear()
            await self._moved.wait()

    def tell_caught_up(self, sample: SamplePlayback) -> None:
        """Notes that a sample has caught up; only samples call this."""
        self._behind.discard(sample)
        self._moved.set()

    def release(self) -> None:
        """Allows new events from now on."""
        self.released = True
        for sample in self.samples.values():
            sample.wake()

    def kept(self) -> Past:
        """Returns a past of the events that came again as they were: what a new run with the settings of this one can begin with.

        It leaves out the samples' results, which contain the seconds of the recorded run.
        """
        samples: dict[SampleKey, PastSample] = {}
        for key, sample in self.samples.items():
            events = [sample.events[index] for index in sorted(sample.repeated)]
            samples[key] = PastSample(*key, 0, [event for event in events if not isinstance(event, SampleFinished)])
        return Past(self.past.attempts, samples)

    async def play(self) -> None:
        """Lets each event of the trace come at its recorded time. Returns when nothing more can come of it.

        For a loop with virtual time.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        started = now_s()
        await loop.idle()
        order = sorted(
            (event.seq, sample, index) for sample in self.samples.values() for index, event in enumerate(sample.events)
        )
        for _, sample, index in order:
            if sample.open(index):
                await asyncio.sleep(started + sample.events[index].t - now_s())
                sample.allow(index)
                await loop.idle()
            if sample.open(index):
                sample.miss(index)
                await loop.idle()


class SamplePlayback:
    """One sample of a trace, as its loops are driven again."""

    def __init__(self, playback: Playback, past: PastSample) -> None:
        self.problem, self.repeat = past.problem, past.repeat
        self.events = past.events
        self._playback = playback
        self._complete = bool(past.events) and isinstance(past.events[-1], SampleFinished)
        self._answers = answers(self.events)
        self._verdicts = verdicts_of(self.events)
        self._decisions = _decisions(self.events)
        self._streams: dict[str | None, deque[int]] = {}
        for index, event in enumerate(self.events):
            self._streams.setdefault(_stream(event), deque()).append(index)
        self._open = [True] * len(self.events)
        self.repeated: set[int] = set()
        """Indices of events that came again."""
        self.has_place = playback.released or not past.events
        """Whether the sample has its place among those at work."""
        self._first_open = 0
        self._allowed = -1 if playback.mode == "replay" else 0
        self._void: set[str | None] = set()
        self._moved = asyncio.Event()

    @property
    def began(self) -> bool:
        """Whether the trace has anything of the sample."""
        return bool(self.events)

    def __lt__(self, other: SamplePlayback) -> bool:
        return (self.problem, self.repeat) < (other.problem, other.repeat)

    # ------------------------------------------------------------------------------------------------------ the order

    def open(self, index: int) -> bool:
        """Returns whether the event is still to come."""
        return self._open[index]

    def allow(self, index: int) -> None:
        """Allows what leads to the event."""
        self._allowed = index
        self.wake()

    @property
    def caught_up(self) -> bool:
        """Whether the trace has nothing more of this sample."""
        while self._first_open < len(self._open) and not self._open[self._first_open]:
            self._first_open += 1
        return self._first_open == len(self._open)

    @property
    def mode(self) -> Mode:
        return self._playback.mode

    async def due(self, index: int) -> None:
        """Waits until the event's turn has come."""
        await self._until(lambda: self._allowed >= index or not self._open[index])

    async def due_next(self, kind: type[Event]) -> None:
        """Waits for the turn of the next event of a kind that belongs to no track; without one, for the trace's end."""
        index = next((one for one in self._streams.get(None, ()) if isinstance(self.events[one], kind)), None)
        if index is not None:
            await self.due(index)
        else:
            await self.live()

    async def live(self) -> None:
        """Waits until something new may happen: the trace has nothing more of this sample, nor of any other that had
        begun, and the sample has its place among those at work.
        """
        await self._until(lambda: self._free or bool(self._void))

    @property
    def _free(self) -> bool:
        return self.caught_up and self._playback.released and self.has_place

    def go_on(self) -> None:
        """Notes that the sample has its place."""
        self.has_place = True
        self.wake()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            before = self._first_open
            try:
                async with asyncio.timeout(STUCK_S if self.mode == "resume" and not self.caught_up else None):
                    await self._moved.wait()
            except TimeoutError:
                if self._first_open == before:
                    raise self._break(f"{self._what(self._first_open)} does not come again") from None

    def wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def _close(self, index: int) -> None:
        self._open[index] = False
        if self.caught_up:
            self._playback.tell_caught_up(self)
        elif self.mode == "resume":
            self._allowed = self._first_open
        self.wake()

    # ----------------------------------------------------------------------------------------------------- the events

    def take(self, event: Event) -> Event | None:
        """Returns the trace's event that this one repeats, None if it is new.

        An event that only the end of this attempt causes in a sample that is still catching up is not new: the trace
        has what became of the sample. It counts as a repetition, so that it is not written.
        """
        if self.mode == "resume" and by_the_end(event) and not (self._playback.released and self.caught_up):
            return event
        if self._playback.broken is not None:
            raise self._playback.broken
        stream = _stream(event)
        if stream in self._void:
            return None
        coming = self._streams.get(stream)
        if not coming:
            if self._complete:
                self._differ(event, None)
            return None
        recorded = self.events[coming[0]]
        again = event.model_copy(update={"seq": recorded.seq, "attempt": recorded.attempt, "t": recorded.t})
        if again != recorded:
            self._differ(event, recorded)
            return None
        index = coming.popleft()
        self.repeated.add(index)
        self._close(index)
        return recorded

    def miss(self, index: int) -> None:
        """Notes that the event did not come at its turn."""
        self._differ(None, self.events[index])

    def _differ(self, now: Event | None, recorded: Event | None) -> None:
        either = now or recorded
        assert either is not None
        difference = describe(either, recorded, now)
        if now is None and (asked := self._asked(_stream(either))) is not None:
            difference = replace(difference, now=f"asks for {asked}")
        if self.mode == "resume":
            raise self._break(str(difference))
        self._playback.differences.append(difference)
        self._leave(_stream(either))

    # ------------------------------------------------------------------------------------------------ what was given up

    def coming(self, track: str) -> Event | None:
        """Returns the next event of a track that the trace has."""
        coming = self._streams.get(track)
        return self.events[coming[0]] if coming else None

    def given_up(self, track: str, started: str) -> Iterable[OperationDropped]:
        """Yields the requests that the trace abandons next in a track, of those whose ids begin so. Each must be
        published before the next.
        """
        while isinstance(event := self.coming(track), OperationDropped) and event.operation.id.startswith(started):
            yield event.model_copy()

    def stopped(self, track: str) -> Iterable[OperationDropped]:
        """Yields the requests that the trace abandons as it stops a track. Each must be published before the next."""
        while isinstance(event := self.coming(track), OperationDropped) and _stops(event):
            yield event.model_copy()

    def ends(self, track: str) -> bool:
        """Returns whether all that the trace still has of a track is that others stopped it."""
        left = self._streams.get(track)
        return (
            bool(left)
            and isinstance(self.events[left[-1]], TrackFinished)
            and all(_stops(self.events[index]) for index in left)
        )

    async def stop(self) -> None:
        """Waits to be stopped, as the trace says that it was."""
        await asyncio.get_running_loop().create_future()

    async def turn_of(self, track: str) -> None:
        """Waits for the turn of the track's next event, if the trace has one."""
        if coming := self._streams.get(track):
            await self.due(coming[0])

    async def passed(self, track: str) -> None:
        """Waits until the track's next event has come, if the trace has one."""
        if coming := self._streams.get(track):
            index = coming[0]
            await self._until(lambda: not self._open[index])

    # ----------------------------------------------------------------------------------------------------------- errors

    def _asked(self, track: str | None) -> str | None:
        """Returns the kind of request that a track waits for without an answer."""
        for stop in self._playback.stops.values():
            if (stop.problem, stop.repeat, stop.track) == (self.problem, self.repeat, track):
                return stop.operation.rpartition("/")[2]
        return None

    def _leave(self, stream: str | None) -> None:
        """Notes that from here on the events differ from the trace, and with them the votes."""
        for one in {stream, None}:
            self._void.add(one)
            for index in self._streams.pop(one, ()):
                self._close(index)
        self.wake()

    def _break(self, what: str) -> ResumeError:
        old = ""
        if self._playback.past.form < SCHEMA_VERSION:
            old = (
                " The trace was begun by an older SpecLRM, which did not record when tracks waited for room or were "
                "stopped; a run in which that happened cannot be resumed."
            )
        error = ResumeError(
            f"Sample {self.problem}/{self.repeat} cannot go on from its trace: {what}. The trace was left as it is. "
            f"Resume with the version and the models that wrote it.{old}"
        )
        self._playback.broken = self._playback.broken or error
        return self._playback.broken

    def _what(self, index: int) -> str:
        return str(describe(self.events[index], self.events[index], None)) if index < len(self.events) else "the end"

    # --------------------------------------------------------------------------------------------------- the requests

    def has(self, operation: str) -> bool:
        """Returns whether the trace says anything about a request."""
        return operation in self._answers

    def find(self, request: Request) -> list[RecordedReply] | None:
        """Returns what the trace has of exactly this request."""
        replies = self._answers.get(request.id)
        if replies is None:
            return None
        if replies[0].operation.digest == digest(request):
            return replies
        _, _, track, step, kind = request.id.rsplit("/", 4)
        if self.mode == "resume":
            raise self._break(f"track {track}, step {step}: the {kind} request is another one than recorded")
        if track not in self._void and self._streams.get(track):
            self._playback.differences.append(
                Difference(self.problem, self.repeat, track, int(step), f"its {kind} request", "another request")
            )
            self._leave(track)
        return None

    async def wait(self, request: Request, why: str) -> None:
        """Waits until the loop abandons the request. If that never happens, ``why`` it has no answer is reported."""
        if self.mode == "resume":
            # Whatever abandons a request of the trace is in the trace, too, so the loop will abandon it soon.
            await self._until(lambda: self.caught_up)
            with suppress(TimeoutError):
                async with asyncio.timeout(STUCK_S):
                    await self.stop()
            raise self._break(f"{request.id} was given up then, and is waited for now")
        problem, repeat, track, step, _ = request.id.rsplit("/", 4)
        stops = self._playback.stops
        stops[request.id] = Stop(problem, int(repeat), track, int(step), request.id, why)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if not self._playback.over:
                del stops[request.id]

    # --------------------------------------------------------------------------------------------------- what was decided

    @property
    def playing(self) -> bool:
        """Whether the trace still determines everything that happens, or the sample has to wait until something new may
        happen.
        """
        return self.mode == "replay" or not self._free

    def decided(self, track: str, step: int) -> Decision | None:
        """Returns how the trace says that the step was made; None if it does not say: then the live controller decides."""
        changes, made = self._decisions.get(track, ((), -1))
        last = next((change for change in reversed(changes) if change.step <= step), None)
        mode = "speculate" if last is None else last.mode
        reason = last.reason if last is not None and last.step == step else ""  # what was said earlier is said
        if step <= made or (last is not None and last.step == step) or self._streams.get(track):
            return Decision(mode, reason)
        # In a replay nothing else can decide; the next request is not in the trace anyway.
        return Decision(mode, reason) if self.mode == "replay" else None

    def verdict(self, one: str, other: str) -> bool | None:
        return self._verdicts.get((one, other))

    def outcome(self, answer: str) -> Outcome | None:
        last = self.events[-1] if self._complete else None
        return last.outcome if isinstance(last, SampleFinished) and last.answer == answer else None


def _stops(event: Event) -> bool:
    """Returns whether an event records what the end of a track that others made useless did to it."""
    match event:
        case TrackFinished():
            return event.reason == "stopped"
        case OperationDropped():
            # "useless": older versions wrote this for work made ahead.
            return event.reason in ("stopped", "useless")
        case _:
            return False


def _stream(event: Event) -> str | None:
    """Returns the stream of an event: events of one track come in one order, and so do those of no track; the two may
    interleave freely.
    """
    return event.track if isinstance(event, TrackEvent) else None


def _decisions(events: Sequence[Event]) -> Mapping[str, tuple[list[ModeChanged], int]]:
    """Returns, for each track, how its mode changed, and the last step that was written or drafted."""
    found: dict[str, tuple[list[ModeChanged], int]] = {}
    for event in events:
        if isinstance(event, TrackEvent):
            changes, made = found.setdefault(event.track, ([], -1))
            if isinstance(event, ModeChanged):
                changes.append(event)
            elif isinstance(event, StepDrafted | StepWritten):
                found[event.track] = changes, max(made, event.step)
    return found
