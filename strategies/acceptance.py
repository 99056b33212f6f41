"""Whether a drafted step is kept: by its score, or by the draft's own confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speclrm.runtime.protocols import Confidence, Verdict
    from speclrm.strategies.scoring import Scorer

REWRITTEN_SCORES: dict[Scorer, float] = {"judge": 9.0, "likelihood": 0.0}
"""What a step by the target counts in the vote: the best there is on the scorer's scale. A rewrite is never scored; 9 is
SSR's code, and 0 is the largest log-likelihood. One run has one scorer, so means of one scale are compared. It is the same
for a step that was left to the target without a draft: it is no worse for that (docs/scoring.md)."""

THRESHOLDS: dict[Scorer, float] = {"judge": 7.0, "likelihood": -1.0}
"""7.0 is the default of SSR's and SpecReason's code; -1.0 (nats a token): docs/scoring.md."""
RANGES: dict[Scorer, tuple[float, float]] = {"judge": (0.0, 9.0), "likelihood": (-100.0, 0.0)}
"""Where a threshold makes sense. Nothing lies under -100 nats a token; a threshold there keeps everything."""


def accepts(score: float, threshold: float) -> bool:
    """A step at the threshold is kept, as in SpecReason's code."""
    return score >= threshold


@dataclass(frozen=True, slots=True)
class Gate:
    """When a draft's own confidence decides, so that no score is needed; None switches a rule off.

    ``sure``: a mean log-probability (nats a token) from which on a step is kept (as in ConfSpec). ``doubt``: one under
    which it is left to the target. ``entropy``: of the first token, in nats, above which it is, too (as in GlimpRouter,
    arXiv 2601.05110). ``tokens``: how many tokens tell that a draft which is still being written is doubtful.
    """

    sure: float | None = None
    doubt: float | None = None
    entropy: float | None = None
    tokens: int | None = None

    def verdict(self, confidence: Confidence, *, whole: bool) -> Verdict | None:
        """``whole``: whether the step is complete. A doubt counts more than a certainty."""
        entropy, mean = confidence.first_entropy, confidence.mean_logprob
        if self.entropy is not None and entropy is not None and entropy > self.entropy:
            return "doubtful"
        enough = whole or (self.tokens is not None and confidence.tokens >= self.tokens)
        if self.doubt is not None and enough and mean < self.doubt:
            return "doubtful"
        return "sure" if whole and self.sure is not None and mean >= self.sure else None
