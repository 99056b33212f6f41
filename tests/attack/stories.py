"""What a trace tells, in a form in which two runs of one workload can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attack.attempts import Fault

from speclrm.runtime.events import (
    SampleEvent,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepWritten,
    TrackFinished,
    TrackResumed,
    TrackStarted,
    VoteUpdated,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attack.drawn import Equality

    from speclrm.runtime.events import Event


@dataclass
class TrackStory:
    """``steps``: origin, ids, tokens and score of each committed step."""

    hint: str = ""
    steps: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    pending: tuple[int, ...] = ()
    reason: str | None = None
    answer: str | None = None

    @property
    def mean(self) -> float | None:
        scores = [step[3] for step in self.steps if step[3] is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def end(self) -> tuple[Any, ...]:
        return self.hint, self.reason, self.answer, len(self.steps)


@dataclass
class Story:
    """One sample. ``result``: winner, answer and outcome, once it is finished."""

    tracks: dict[str, TrackStory] = field(default_factory=dict[str, TrackStory])
    votes: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    result: tuple[str | None, str | None, str] | None = None

    @property
    def decided(self) -> tuple[Any, ...]:
        """The result, without what follows from who came first where tracks stand equal."""
        votes = sorted((self.tracks[members[0]].answer, sorted(members)) for members in self.votes)
        if self.result is None:
            return (votes,)
        first = self._first()
        winner, answer, outcome = self.result
        if len(first) > 1:
            winner = None
            if len({self.tracks[name].answer for name in first}) > 1:
                answer = outcome = ""
        return votes, winner, answer, outcome

    def _first(self) -> list[str]:
        """Those who stand equal before all others."""
        if not self.votes:
            return []
        largest = max(map(len, self.votes))
        leaders = [members for members in self.votes if len(members) == largest]
        names = leaders[0] if len(leaders) == 1 and largest > 1 else [name for one in self.votes for name in one]
        means = {name: self.tracks[name].mean for name in names}
        ranks = {name: float("-inf") if mean is None else mean for name, mean in means.items()}
        best = max(ranks.values())
        return [name for name, rank in ranks.items() if rank == best]


Stories = dict[tuple[str, int], Story]


def stories(events: Iterable[Event]) -> Stories:
    found: Stories = {}
    for event in events:
        if not isinstance(event, SampleEvent):
            continue
        story = found.setdefault((event.problem, event.repeat), Story())
        match event:
            case TrackStarted():
                story.tracks[event.track] = TrackStory(event.hint)
            case StepDrafted() | StepWritten():
                story.tracks[event.track].pending = event.ids
            case StepCommitted():
                track = story.tracks[event.track]
                track.steps.append((event.origin, track.pending, event.tokens, event.score))
            case TrackFinished():
                track = story.tracks[event.track]
                track.reason, track.answer = event.reason, event.answer
            case TrackResumed():
                track = story.tracks[event.track]
                track.reason = track.answer = None
            case VoteUpdated():
                story.votes = list(event.classes)
            case SampleFinished():
                story.result = event.winner, event.answer, event.outcome
            case _:
                pass
    return found


def differences(expected: Stories, found: Stories, equal: Equality) -> list[Fault]:
    """Where the second is not what the first is, as far as it must be."""
    faults: list[str] = []
    if expected.keys() != found.keys():
        faults.append(f"samples {sorted(expected)} became {sorted(found)}")
    for key in expected.keys() & found.keys():
        one, other = expected[key], found[key]
        name = f"{key[0]}/{key[1]}"
        if other.result is None:
            faults.append(f"{name} did not end")
        faults += [f"{name}/{track}: cancelled" for track, end in other.tracks.items() if end.reason == "cancelled"]
        if equal == "none":
            continue
        if one.tracks.keys() != other.tracks.keys():
            faults.append(f"{name}: tracks {sorted(one.tracks)} became {sorted(other.tracks)}")
        for track in one.tracks.keys() & other.tracks.keys():
            faults += _track(f"{name}/{track}", one.tracks[track], other.tracks[track], equal)
        if equal == "all" and one.decided != other.decided:
            faults.append(f"{name}: {one.decided} became {other.decided}")
    return [Fault("differs", text) for text in faults[:3]]


def _track(name: str, one: TrackStory, other: TrackStory, equal: Equality) -> list[str]:
    for number, (step, again) in enumerate(zip(one.steps, other.steps, strict=False)):
        if step != again:
            what = [
                part
                for part, was, now in zip(("origin", "ids", "tokens", "score"), step, again, strict=True)
                if was != now
            ]
            return [f"{name}: step {number} has another {' and '.join(what)}"]
    if equal == "all" and one.end != other.end:
        return [f"{name}: {one.end} became {other.end}"]
    if equal == "so far":
        # Whoever was not stopped went to its own end.
        whole = [track for track in (one, other) if track.reason not in ("stopped", "cancelled")]
        if len(whole) == 2 and one.end != other.end:
            return [f"{name}: {one.end} became {other.end}"]
        if len(whole) == 1 and any(len(track.steps) > len(whole[0].steps) for track in (one, other)):
            return [f"{name}: it went on behind its end"]
    return []
