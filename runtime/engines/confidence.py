"""Computes how sure a model was from the log-probabilities that an engine gives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


ENTROPY_TOP = 20
"""The most probable ids that an entropy is taken over: as many as vLLM gives unless its ``max_logprobs`` says
otherwise. GlimpRouter (arXiv 2601.05110) takes as many."""


def entropy_of(logprobs: Sequence[float]) -> float | None:
    """Returns the entropy, in nats, of the given log-probabilities made to sum to one; at most ln of their number.

    None if there are fewer than ``ENTROPY_TOP``: a batch in which another request asks for certain ids gives no others
    for any request (v1/sample/sampler.py).
    """
    weights = [math.exp(value) for value in logprobs if value > -math.inf]
    if len(weights) < ENTROPY_TOP:
        return None
    total = sum(weights)
    return -sum(weight / total * math.log(weight / total) for weight in weights if weight > 0)
