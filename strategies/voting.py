"""Chooses the winning track: tracks with equal answers form a class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.state import SampleState


Ties = Literal["shortest", "first"]
"""Which of several tracks with the same mean score wins: the one with the fewest tokens, or the first that ended."""


def vote(sample: SampleState, classes: Sequence[Sequence[str]], ties: Ties = "shortest") -> str | None:
    """Returns the winning track: of the only largest class if it has more than one member, else of the best mean score.

    The best mean score represents the largest class. Among equals ``ties`` decides, and then the
    order of the plan. A step by the target in a speculative track, rewritten or not, counts as the best there is; tracks
    without scores (of ``baseline`` and ``parallel``; drafts that were all sure of themselves) come after those with
    scores. The rule is SSR's but for equals; equality of answers is mathematical here.
    """
    if not classes:
        return None
    largest = max(map(len, classes))
    leaders = [members for members in classes if len(members) == largest]
    electorate = leaders[0] if len(leaders) == 1 and largest > 1 else [name for members in classes for name in members]
    in_order = sample.tracks if ties == "shortest" else sample.finished_tracks
    places = {name: place for place, name in enumerate(in_order)}

    def rank(name: str) -> tuple[float, int, int]:
        track = sample.tracks[name]
        mean = track.mean_score
        return math.inf if mean is None else -mean, track.tokens if ties == "shortest" else 0, places[name]

    return min(electorate, key=rank)
