"""Who wins: tracks whose answers are equal stand together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.state import SampleState


def vote(sample: SampleState, classes: Sequence[Sequence[str]]) -> str | None:
    """The winning track: of the only largest class if it has more than one member, else of the best mean score.

    Within the largest class the best mean score represents it; between equals the track that finished first. What the target
    wrote in a speculative track, rewritten or not, counts as the best there is; tracks without scores (of ``baseline`` and
    ``parallel``; drafts that were all sure of themselves) stand behind those with scores. The rule is SSR's; equality of
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
