"""Chooses the winning track: tracks with equal answers form a class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.state import SampleState


def vote(sample: SampleState, classes: Sequence[Sequence[str]]) -> str | None:
    """Returns the winning track: of the only largest class if it has more than one member, else of the best mean score.

    The best mean score represents the largest class; among equals the track that finished first. A step by the target
    in a speculative track, rewritten or not, counts as the best there is; tracks without scores (of ``baseline`` and
    ``parallel``; drafts that were all sure of themselves) come after those with scores. The rule is SSR's; equality of
    answers is mathematical here.
    """
    if not classes:
        return None
    largest = max(map(len, classes))
    leaders = [members for members in classes if len(members) == largest]
    electorate = leaders[0] if len(leaders) == 1 and largest > 1 else [name for members in classes for name in members]
    best: list[str] = []
    highest = -math.inf
    for name in electorate:
        mean = sample.tracks[name].mean_score
        score = -math.inf if mean is None else mean
        if score > highest:
            highest, best = score, []
        if score == highest:
            best.append(name)
    equal = set(best)
    return next(name for name in sample.finished_tracks if name in equal)
