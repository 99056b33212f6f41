"""Decides whether a drafted step is kept: by its score, or by the draft's own confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speclrm.runtime.events import Scorer, Verdict
    from speclrm.runtime.protocols import Confidence

REWRITTEN_SCORES: dict[Scorer, float] = {"judge": 9.0, "likelihood": 0.0}
"""What a step by the target counts in the vote: the best of the scorer's scale. A rewrite is never scored; 9 is SSR's
code, and 0 is the largest log-likelihood. One run has one scorer, so means of one scale are compared. A step that was
left to the target without a draft counts the same: it is no worse (docs/scoring.md)."""

THRESHOLDS: dict[Scorer, float] = {"judge": 7.0, "likelihood": -1.0}
"""7.0 is the default of SSR's and SpecReason's code; -1.0 (nats a token): docs/scoring.md."""
RANGES: dict[Scorer, tuple[float, float]] = {"judge": (0.0, 9.0), "likelihood": (-100.0, 0.0)}
"""Allowed thresholds. No step has less than -100 nats a token, so a threshold there keeps everything."""


def accepts(score: float, threshold: float) -> bool:
    """Returns whether a step is kept; one at the threshold is, as in SpecReason's code."""
    return score >= threshold


@dataclass(frozen=True, slots=True)
class Gate:
    """Decides by a draft's own confidence, so that no score is needed; None turns a rule off.

    ``sure``: a mean log-probability (nats a token) from which on a step is kept (as in ConfSpec). ``doubt``: one below
    which the step is left to the target. ``entropy``: of the first token, in nats, above which it is, too (as in
    GlimpRouter, arXiv 2601.05110). ``tokens``: how many tokens of an unfinished draft show that it is doubtful.
    """

    sure: float | None = None
    doubt: float | None = None
    entropy: float | None = None
    tokens: int | None = None

    def verdict(self, confidence: Confidence, *, whole: bool) -> Verdict | None:
        """Returns the gate's decision, None if it has none. ``whole``: whether the step is complete. Doubt takes precedence."""
        entropy, mean = confidence.first_entropy, confidence.mean_logprob
        if self.entropy is not None and entropy is not None and entropy > self.entropy:
            return "doubtful"
        enough = whole or (self.tokens is not None and confidence.tokens >= self.tokens)
        if self.doubt is not None and enough and mean < self.doubt:
            return "doubtful"
        return "sure" if whole and self.sure is not None and mean >= self.sure else None
