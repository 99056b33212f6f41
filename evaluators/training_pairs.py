"""Drafts as a table: a row a draft with its score, its rewrite and how its sample ended, for training judges and routers."""

from __future__ import annotations

import hashlib
from math import exp
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from speclrm.runtime.events import (
    ProblemStarted,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepGated,
    StepScored,
    StepWritten,
    TrackFinished,
    TrackResumed,
    TrackStarted,
    VoteUpdated,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from speclrm.runtime.events import Event

    Key = tuple[str, int, str]

ID_DIGITS = 16


class PairRow(BaseModel):
    """A draft.

    ``context_id``: equal for drafts that continue the same prompt and the same steps. ``context``: the text of these steps, and
    ``problem_text`` what was asked. ``fate``: ``accepted``, ``rewritten``, or ``dropped`` if neither came about. ``score``:
    what the ``scorer`` said, None if a gate decided or nothing did; ``digits``: the judge's probabilities of 0 to 9 as the model
    gave them (their sum is ``mass``), None for other scorers. ``mean_logprob``, ``first_entropy``: the draft's own confidence,
    where a gate asked for it. ``track_answer``: what the track came to; ``agrees``: whether the vote counted it as equal to the
    sample's, whose ``outcome`` is then the track's own. Both None if the sample did not end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    context_id: str
    problem: str
    repeat: int
    track: str
    step: int
    problem_text: str
    context: str
    draft: str
    rewrite: str | None
    fate: str
    score: float | None
    scorer: str | None
    said: str | None
    mass: float | None
    digits: tuple[float, ...] | None
    gate: str | None
    mean_logprob: float | None
    first_entropy: float | None
    draft_tokens: int
    track_answer: str | None
    gold: str | None
    agrees: bool | None
    outcome: str | None


class _Track:
    """What a track has written, and its drafts; ``now``: the one that is not decided."""

    def __init__(self, started: TrackStarted, asked: ProblemStarted | None) -> None:
        self.state = hashlib.sha256(
            repr((sorted(started.prompt_ids.items()), sorted(started.opening_ids.items()))).encode()
        )
        self.texts: list[str] = []
        self.written: StepWritten | StepDrafted | None = None
        self.now: dict[str, object] | None = None
        self.rows: list[dict[str, object]] = []
        self.answer: str | None = None
        self.asked = asked

    def draft(self, event: StepDrafted) -> None:
        self.end("dropped")
        self.written = event
        self.now = {
            "context_id": self.state.hexdigest()[:ID_DIGITS],
            "problem": event.problem,
            "repeat": event.repeat,
            "track": event.track,
            "step": event.step,
            "problem_text": self.asked.text if self.asked else "",
            "context": "".join(self.texts),
            "draft": event.text,
            "mean_logprob": event.mean_logprob,
            "first_entropy": event.first_entropy,
            "draft_tokens": len(event.ids),
            "gold": self.asked.gold if self.asked else None,
            **dict.fromkeys(("rewrite", "score", "scorer", "said", "mass", "digits", "gate")),
        }

    def score(self, event: StepScored) -> None:
        if self.now is not None:
            judged = event.scorer == "judge"
            self.now |= {
                "score": event.value,
                "scorer": event.scorer,
                "said": event.said if judged else None,
                "mass": event.mass if judged else None,
                "digits": tuple(map(exp, event.digits)) if judged else None,
            }

    def gate(self, event: StepGated) -> None:
        if self.now is not None:
            self.now |= {
                "gate": event.verdict,
                "mean_logprob": event.mean_logprob,
                "first_entropy": event.first_entropy,
            }

    def write(self, event: StepWritten) -> None:
        self.written = event
        if self.now is not None and event.write_kind == "rewrite":
            self.now["rewrite"] = event.text

    def commit(self, event: StepCommitted) -> None:
        self.end({"draft": "accepted", "rewrite": "rewritten"}.get(event.origin, "dropped"))
        text = self.written.text if self.written else ""
        self.texts.append(text)
        self.state.update(f"{len(text)}:{text}".encode())

    def end(self, fate: str) -> None:
        """Decides about the open draft, if there is one."""
        if self.now is not None:
            self.rows.append({**self.now, "fate": fate})
            self.now = None


def pair_rows(events: Iterable[Event]) -> Iterator[PairRow]:
    """A row a draft: a sample's are yielded at its end, in the order of its tracks; those of samples without one come last."""
    tracks: dict[tuple[str, int], dict[str, _Track]] = {}
    asked: dict[tuple[str, int], ProblemStarted] = {}
    votes: dict[tuple[str, int], VoteUpdated] = {}
    for event in events:
        if isinstance(event, ProblemStarted):
            asked[event.problem, event.repeat] = event
        elif isinstance(event, TrackStarted):
            sample = event.problem, event.repeat
            tracks.setdefault(sample, {})[event.track] = _Track(event, asked.get(sample))
        elif isinstance(event, VoteUpdated):
            votes[event.problem, event.repeat] = event
        elif isinstance(event, SampleFinished):
            sample = event.problem, event.repeat
            vote = votes.pop(sample, None)
            winners = next((names for names in vote.classes if event.winner in names), ()) if vote else ()
            yield from _ended(tracks.pop(sample, {}), event.outcome, winners)
            asked.pop(sample, None)
        elif isinstance(
            event, StepDrafted | StepScored | StepGated | StepWritten | StepCommitted | TrackFinished | TrackResumed
        ):
            track = tracks.get((event.problem, event.repeat), {}).get(event.track)
            if track is not None:
                _take(track, event)
    for left in tracks.values():
        yield from _ended(left, None, ())


def _take(
    track: _Track,
    event: StepDrafted | StepScored | StepGated | StepWritten | StepCommitted | TrackFinished | TrackResumed,
) -> None:
    match event:
        case StepDrafted():
            track.draft(event)
        case StepScored():
            track.score(event)
        case StepGated():
            track.gate(event)
        case StepWritten():
            track.write(event)
        case StepCommitted():
            track.commit(event)
        case TrackFinished():
            track.answer = event.answer  # its open draft stays open: a resumed run may go on with it
        case TrackResumed():
            track.answer = None


def _ended(tracks: dict[str, _Track], outcome: str | None, winners: Collection[str]) -> Iterator[PairRow]:
    for name, track in tracks.items():
        track.end("dropped")
        agrees = None if outcome is None else name in winners
        for row in track.rows:
            yield PairRow.model_validate({**row, "track_answer": track.answer, "agrees": agrees, "outcome": outcome})
