"""Holds the decisions of SSR's code (Chu et al. 2025; spec_scale_reason.py), for ``fidelity="original"``.

The rules are those of that code, also where ours are better: answers are compared as texts, a step that only talks of a
box ends its track, and a track that ran into its budget has no vote. Its faults are not among them; they are turned on
by name (``app/original_faults.py``).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Score

if TYPE_CHECKING:
    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.state import SampleState, TrackState

FINISHED_MARKS = ("boxed", "Answer:", "ANSWER:")
"""A step that contains one of these ends its track."""

_BOX = "\\boxed{"
_LETTER = re.compile(r"(?P<letter>[A-D])")
_ANSWER_LETTER = re.compile(r"[Aa]nswer:\s*(?P<letter>[A-D])")


def end_of_track(state: TrackState, *, token_budget: int) -> FinishReason | None:
    """Returns why the track ends: ``answer`` by the marks; ``repeated`` from the third step on; ``budget`` once it is
    reached. Nothing else ends it: a model that ended its text is asked for another step.
    """
    if not state.steps:
        return None
    last = state.steps[-1]
    if any(mark in last.text for mark in FINISHED_MARKS):
        return "answer"
    if len(state.steps) > 2 and _step(last.text) == _step(state.steps[-2].text):
        return "repeated"
    return "budget" if state.tokens >= token_budget else None


def find_box(text: str) -> str | None:
    r"""Returns the content of the last ``\boxed{`` of the text, None if its braces do not balance."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip()
    return None


def answer(text: str, problem: Problem, reason: FinishReason) -> str | None:
    """Returns the answer of a finished track as it is compared: a whole number without leading zeros, a letter, or the text."""
    if reason != "answer":
        return None
    box = find_box(text)
    if problem.grader == "choice":
        letter = _LETTER.match(box) if box is not None else _ANSWER_LETTER.search(text)
        return letter["letter"] if letter else None
    try:
        return None if box is None else str(int(box))
    except ValueError:
        return box


def score(said: str) -> Score:
    """Returns the judge's token as a number; anything else counts as 0, so that the step is rewritten."""
    value = int(said) if said.isascii() and said.isdigit() else 0
    return Score(float(min(value, 9)), 1.0)


def vote(sample: SampleState) -> str | None:
    """Returns the winner: of an only largest group with more than one member the track with most tokens; else the best
    mean score.

    Rewritten steps count as 9. Among equals the track that comes first in the plan.
    """
    voters = [track for track in sample.tracks.values() if track.finished and track.answer is not None]
    if not voters:
        return None
    counts = Counter(track.answer for track in voters)
    largest = max(counts.values())
    leaders = [text for text, count in counts.items() if count == largest]
    if largest > 1 and len(leaders) == 1:
        return max((track for track in voters if track.answer == leaders[0]), key=lambda track: track.tokens).track
    return max(voters, key=lambda track: track.mean_score or 0.0).track


def _step(text: str) -> str:
    """Returns a step without the blank line that ended it."""
    return text.partition("\n\n")[0]
