"""Turns the judge's ten log-probabilities into a score from 0 to 9."""

from __future__ import annotations

from math import exp
from operator import mul
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.engine import LOGPROB_MIN
from speclrm.runtime.events import six_digits
from speclrm.runtime.protocols import Score

if TYPE_CHECKING:
    from collections.abc import Sequence

ScoreMethod = Literal["greedy", "average"]


def read_score(digits: Sequence[float], method: ScoreMethod) -> Score:
    """Returns the score. ``greedy``: the most probable digit (the lowest of equals). ``average``: the expected digit,
    over digits only.

    ``digits``: (10,), natural log-probabilities of 0 to 9 under the whole vocabulary. They are renormalised, which
    leaves out what the model would have written instead of a digit; ``mass`` says how much that was. If no digit is
    possible at all, the score is 0, as for a judge that writes something else.
    """
    top = max(digits)
    if top <= LOGPROB_MIN:
        return Score(0.0, 0.0)
    weights = [exp(value - top) for value in digits]
    total = sum(weights)
    mass = six_digits(min(1.0, exp(top) * total))
    if method == "greedy":
        return Score(float(digits.index(top)), mass)
    return Score(sum(map(mul, range(len(weights)), weights)) / total, mass)
