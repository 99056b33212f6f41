"""What is known of a track and of a sample: frozen, and changed by nothing but ``apply``.

The live run and a reader of its trace use the same fold, so both see the same state. Named tuples, because a state is made
anew at each event: a frozen dataclass takes twice to four times as long for that.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from speclrm.runtime.events import (
    Event,
    FinishReason,
    MethodsChosen,
    ModeChanged,
    Outcome,
    ProblemStarted,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepKind,
    StepWritten,
    TrackFinished,
    TrackResumed,
    TrackStarted,
    VoteUpdated,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class CommittedStep(NamedTuple):
    """``tokens``: in the ids of its writer. ``score``: 0 to 9, or None where it was not scored."""

    text: str
    origin: StepKind
    tokens: int
    score: float | None
    ended: bool


class TrackState(NamedTuple):
    """``tokens``: of all committed steps. ``pending``: the last written step of this index, not yet committed.

    ``mode``: whether the next step is speculated on, where the strategy speculates at all.
    """

    track: str
    hint: str = ""
    steps: tuple[CommittedStep, ...] = ()
    tokens: int = 0
    pending: StepDrafted | StepWritten | None = None
    mode: Literal["speculate", "eager", "write"] = "speculate"
    reason: FinishReason | None = None
    answer: str | None = None

    @property
    def finished(self) -> bool:
        return self.reason is not None

    @property
    def text(self) -> str:
        """All committed text, in order."""
        return "".join(step.text for step in self.steps)

    @property
    def mean_score(self) -> float | None:
        """Mean over the scored steps, or None where there is none."""
        scores = [step.score for step in self.steps if step.score is not None]
        return sum(scores) / len(scores) if scores else None


class SampleState(NamedTuple):
    """One attempt at a problem. ``finished_tracks``: names, in the order of their ends."""

    problem: str
    repeat: int
    gold: str | None = None
    codes: tuple[str, ...] = ()
    tracks: Mapping[str, TrackState] = MappingProxyType({})
    finished_tracks: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    leader: str | None = None
    outcome: Outcome | None = None
    answer: str | None = None
    winner: str | None = None
    seconds: float = 0.0


def apply(state: SampleState, event: Event) -> SampleState:
    """The sample after the event. Events of other samples and of no sample leave it as it is."""
    match event:
        case ProblemStarted(gold=gold):
            return state._replace(gold=gold)
        case MethodsChosen(codes=codes):
            return state._replace(codes=codes)
        case VoteUpdated(classes=classes, leader=leader):
            return state._replace(classes=classes, leader=leader)
        case ModeChanged(track=name, mode=mode):
            return _with_track(state, state.tracks[name]._replace(mode=mode))
        case SampleFinished():
            return state._replace(
                outcome=event.outcome,
                answer=event.answer,
                winner=event.winner,
                seconds=event.seconds,
            )
        case TrackStarted(track=name, hint=hint):
            return _with_track(state, TrackState(name, hint))
        case StepDrafted(track=name) | StepWritten(track=name):
            return _with_track(state, state.tracks[name]._replace(pending=event))
        case StepCommitted(track=name):
            return _with_track(state, _commit(state.tracks[name], event))
        case TrackFinished(track=name):
            # What an attempt's end cut off may go on in the next one, from the step that it was on.
            pending = state.tracks[name].pending if event.reason in ("cancelled", "error") else None
            track = state.tracks[name]._replace(reason=event.reason, answer=event.answer, pending=pending)
            return _with_track(state, track)._replace(finished_tracks=(*state.finished_tracks, name))
        case TrackResumed(track=name):
            track = state.tracks[name]._replace(reason=None, answer=None)
            others = tuple(other for other in state.finished_tracks if other != name)
            return _with_track(state, track)._replace(finished_tracks=others)
        case _:
            return state


def _commit(track: TrackState, event: StepCommitted) -> TrackState:
    pending = track.pending
    if pending is None or pending.step != event.step or event.step != len(track.steps):
        raise ValueError(
            f"track {track.track}: step {event.step} committed after {len(track.steps)} steps, "
            f"with {'no' if pending is None else f'step {pending.step}'} pending"
        )
    step = CommittedStep(pending.text, event.origin, event.tokens, event.score, pending.ended)
    return track._replace(steps=(*track.steps, step), tokens=track.tokens + event.tokens, pending=None)


def _with_track(state: SampleState, track: TrackState) -> SampleState:
    return state._replace(tracks=MappingProxyType({**state.tracks, track.track: track}))
