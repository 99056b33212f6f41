"""Whether a drafted step is kept."""

from __future__ import annotations

REWRITTEN_SCORE = 9.0
"""What a step by the target counts in the vote: the best, as in SSR's code (a rewrite is never scored)."""


def accepts(score: float, threshold: float) -> bool:
    """A step at the threshold is kept, as in SpecReason's code."""
    return score >= threshold
