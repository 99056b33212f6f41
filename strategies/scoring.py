"""What scores a step, and how the judge's ten log-probabilities become a score from 0 to 9."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.engine import LOGPROB_MIN
from speclrm.runtime.protocols import Score

if TYPE_CHECKING:
    from collections.abc import Sequence

ScoreMethod = Literal["greedy", "average"]

Scorer = Literal["judge", "likelihood"]
"""``judge``: a digit that the target writes behind the step. ``likelihood``: how likely the step's ids are under the
target, on average; nothing is written or read beside the step."""


def read_score(digits: Sequence[float], method: ScoreMethod) -> Score:
    """``greedy``: the most probable digit (the lowest of equals). ``average``: the expected digit, over digits only.

    ``digits``: (10,), natural log-probabilities of 0 to 9 under the whole vocabulary. What the model would rather have
    said instead of a digit is left out by renormalising; ``mass`` keeps how much that was. Where no digit is possible at
    all, nothing speaks for the step: 0, as for a judge that says something else.
    """
    top = max(digits)
    if top <= LOGPROB_MIN:
        return Score(0.0, 0.0)
    weights = [math.exp(value - top) for value in digits]
    mass = round(min(1.0, math.exp(top) * sum(weights)), 6)
    if method == "greedy":
        return Score(float(digits.index(top)), mass)
    return Score(sum(digit * weight for digit, weight in enumerate(weights)) / sum(weights), mass)
