"""Folds events into the state of a sample and its tracks. States are frozen; only ``apply`` makes new ones.

The live run and a reader of its trace use the same fold, so both see the same state. States are named tuples, because
each event makes a new one: a frozen dataclass takes two to four times as long. The tracks of a sample and the steps of
a track are not copied: the new state takes them over, and the old one still shows what it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, overload

if TYPE_CHECKING:
    from speclrm.runtime.events import (
        Event,
        FinishReason,
        Mode,
        Outcome,
        StepCommitted,
        StepDrafted,
        StepKind,
        StepWritten,
    )


class CommittedStep(NamedTuple):
    """``tokens``: in the ids of its writer. ``score``: 0 to 9, or None if it was not scored."""

    text: str
    origin: StepKind
    tokens: int
    score: float | None
    ended: bool


class Steps(Sequence[CommittedStep]):
    """The steps of a track so far. ``with_step`` returns a longer one, which shares the list; each of the two sees its
    own part.
    """

    __slots__ = ("_all", "_length", "_mean")

    def __init__(self, steps: Sequence[CommittedStep] = ()) -> None:
        self._all = list(steps)
        self._length = len(self._all)
        self._mean: float | Literal["unknown"] | None = "unknown"

    def with_step(self, step: CommittedStep) -> Steps:
        if self._length < len(self._all):
            return Steps((*self, step))  # another one continued from here
        self._all.append(step)
        longer = Steps.__new__(Steps)
        longer._all, longer._length, longer._mean = self._all, self._length + 1, "unknown"
        return longer

    @property
    def mean_score(self) -> float | None:
        """The mean score, kept once it is computed: votes read it of every finished track, again and again."""
        if self._mean == "unknown":
            self._mean = _mean_score(self)
        return self._mean

    @overload
    def __getitem__(self, index: int) -> CommittedStep: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CommittedStep, ...]: ...
    def __getitem__(self, index: int | slice) -> CommittedStep | tuple[CommittedStep, ...]:
        if isinstance(index, slice):
            return tuple(self._all[place] for place in range(*index.indices(self._length)))
        if not -self._length <= index < self._length:
            raise IndexError("step index out of range")
        return self._all[index if index >= 0 else self._length + index]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[CommittedStep]:
        return iter(self._all[: self._length])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Steps | tuple):
            return NotImplemented
        return tuple(self) == tuple(cast("Iterable[object]", other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class TrackState(NamedTuple):
    """``tokens``: of all committed steps. ``pending``: the last written step of this index, not yet committed.

    ``mode``: whether the next step is speculated on, if the strategy speculates at all.
    """

    track: str
    hint: str = ""
    steps: Sequence[CommittedStep] = ()
    tokens: int = 0
    pending: StepDrafted | StepWritten | None = None
    mode: Mode = "speculate"
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
        """Mean over the scored steps, None if there are none."""
        return self.steps.mean_score if isinstance(self.steps, Steps) else _mean_score(self.steps)


class Tracks(Mapping[str, TrackState]):
    """The tracks of a sample by name, in the order of their starts. ``with_track`` returns a mapping with one of them replaced.

    The newer mapping takes over the dictionary and leaves the older one a record of the change. So a change costs the
    same for any number of tracks, and an older mapping still shows what it did: reading it makes a copy then.
    """

    __slots__ = ("_change", "_tracks")

    def __init__(self, tracks: Mapping[str, TrackState]) -> None:
        self._tracks = dict(tracks)
        self._change: tuple[Tracks, str, TrackState | None] | None = None

    def with_track(self, track: TrackState) -> Tracks:
        tracks = self._tracks if self._change is None else self._now()
        newer = Tracks.__new__(Tracks)
        newer._tracks, newer._change = tracks, None
        self._change = newer, track.track, tracks.get(track.track)
        tracks[track.track] = track
        return newer

    def _now(self) -> dict[str, TrackState]:
        """Returns the dictionary; if a newer mapping has it, a copy with all later changes undone."""
        if self._change is None:
            return self._tracks
        later: list[tuple[str, TrackState | None]] = []
        newest = self
        while (change := newest._change) is not None:
            newest = change[0]
            later.append(change[1:])
        tracks = dict(newest._tracks)
        for name, before in reversed(later):
            if before is None:
                del tracks[name]
            else:
                tracks[name] = before
        self._tracks, self._change = tracks, None
        return tracks

    def __getitem__(self, name: str) -> TrackState:
        return self._tracks[name] if self._change is None else self._now()[name]

    def __len__(self) -> int:
        return len(self._now())

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._now()))  # the dictionary may change meanwhile

    def __repr__(self) -> str:
        return repr(self._now())


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
    """Returns the sample after the event. Events of other samples and of no sample leave it unchanged."""
    # A comparison of strings takes a quarter of one of classes, and a call of the class half of ``_replace``.
    match event.kind:
        case "step_drafted" | "step_written":
            track = state.tracks[event.track]
            return _with_track(state, TrackState(*track[:4], event, *track[5:]))
        case "step_committed":
            return _with_track(state, _commit(state.tracks[event.track], event))
        case "problem_started":
            return state._replace(gold=event.gold)
        case "methods_chosen":
            return state._replace(codes=event.codes)
        case "vote_updated":
            return state._replace(classes=event.classes, leader=event.leader)
        case "mode_changed":
            return _with_track(state, state.tracks[event.track]._replace(mode=event.mode))
        case "sample_finished":
            return state._replace(
                outcome=event.outcome,
                answer=event.answer,
                winner=event.winner,
                seconds=event.seconds,
            )
        case "track_started":
            return _with_track(state, TrackState(event.track, event.hint))
        case "track_finished":
            # A track that an attempt's end cut off may continue in the next one, from the step that it was on.
            track = state.tracks[event.track]
            pending = track.pending if event.reason in ("cancelled", "error") else None
            track = track._replace(reason=event.reason, answer=event.answer, pending=pending)
            return _with_track(state, track)._replace(finished_tracks=(*state.finished_tracks, event.track))
        case "track_resumed":
            track = state.tracks[event.track]._replace(reason=None, answer=None)
            others = tuple(other for other in state.finished_tracks if other != event.track)
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
    steps = track.steps if isinstance(track.steps, Steps) else Steps(track.steps)
    return TrackState(
        track.track, track.hint, steps.with_step(step), track.tokens + event.tokens, None, track.mode, *track[6:]
    )


def _with_track(state: SampleState, track: TrackState) -> SampleState:
    tracks = state.tracks if isinstance(state.tracks, Tracks) else Tracks(state.tracks)
    return SampleState(*state[:4], tracks.with_track(track), *state[5:])


def _mean_score(steps: Sequence[CommittedStep]) -> float | None:
    scores = [step.score for step in steps if step.score is not None]
    return sum(scores) / len(scores) if scores else None
