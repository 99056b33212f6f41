"""Fits the constants of the simulated world to the published figures that they come from.

    python benchmarks/studies/fit_world.py

Each figure below has its source; the results are in runtime/engines/simulated/text_world.py.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable

COVERAGE = {1: 0.3852, 2: 0.4694, 3: 0.5258, 5: 0.6058, 9: 0.7000}
"""Chance that one of k attempts is right: QwQ-32B alone, 8192 tokens, AIME 2024, nine samples a problem. From the plots in the
history of SSR's repository (YuanlinChu/SSR-Spec_Scale_Reasoning, before 587a3ae)."""

VOTES = {
    "QwQ-32B-Preview": (0.440, 0.600),
    "DeepSeek-R1-Distill-Qwen-1.5B": (0.289, 0.527),
    "DeepSeek-R1-Distill-Qwen-7B": (0.555, 0.833),
    "DeepSeek-R1-Distill-Qwen-14B": (0.697, 0.800),
    "DeepSeek-R1-Distill-Qwen-32B": (0.726, 0.833),
    "DeepSeek-R1-Distill-Llama-8B": (0.504, 0.800),
    "DeepSeek-R1-Distill-Llama-70B": (0.700, 0.867),
    "o1-mini": (0.636, 0.800),
}
"""pass@1 and the accuracy of the majority of 64 on AIME 2024: deepseek-ai/DeepSeek-R1, README.md, "Distilled Model Evaluation".
Models that reason at length; 32,768 tokens."""
LIKE_TARGETS = (
    "QwQ-32B-Preview",
    "DeepSeek-R1-Distill-Qwen-14B",
    "DeepSeek-R1-Distill-Qwen-32B",
    "DeepSeek-R1-Distill-Llama-70B",
)
"""Those of a target's size. They gain less by voting than small ones, so a fit to them alone is the careful choice."""
VOTERS = 64

SWEEP = {3: 0.223, 7: 0.393}
"""Accuracy on AIME by the threshold of the score: QwQ-32B with drafts by R1-Distill-Qwen-1.5B, arXiv 2504.07891, the sweep of the
threshold."""
ACCEPTANCE, STEPS = 0.463, 155.8
MEANS = {"accepted": (7, 9, 7.5), "rejected": (0, 6, 4.0)}
"""Of 167 runs at threshold 7 on AIME 2024: the share accepted, steps a run, and the mean score of accepted and of rejected steps
with the digits that they can be (RuthvikAtte/specreason, results/experiment_summary.json)."""
JUDGE_ERROR = 0.2
"""Assumed; see runtime/engines/simulated/text_world.py."""


def beta_weights(alpha: float, beta: float, points: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Returns a grid over 0 to 1, narrow at the ends, with the probability of each cell."""
    edges = np.sin(np.linspace(0, np.pi / 2, points + 1)) ** 2
    edges = np.sin(edges * np.pi / 2) ** 2
    middle = (edges[1:] + edges[:-1]) / 2
    weight = middle ** (alpha - 1) * (1 - middle) ** (beta - 1) * np.diff(edges)
    return middle, weight / weight.sum()


def coverage(alpha: float, beta: float, k: int) -> float:
    """Returns 1 - E[(1 - p)^k] of a Beta distribution, in closed form."""
    return 1 - math.prod((beta + i) / (alpha + beta + i) for i in range(k))


def fit_spread() -> tuple[float, float]:
    grid = [0.05 * step for step in range(2, 31)]
    return min(
        product(grid, grid),
        key=lambda pair: sum((coverage(*pair, k) - value) ** 2 for k, value in COVERAGE.items()),
    )


def majority(mean: float, concentration: float, same: float) -> float:
    """Returns the accuracy of 64 votes: right ones against those for the most tempting wrong answer, as a normal
    difference of a multinomial.
    """
    p, weight = beta_weights(mean * concentration, (1 - mean) * concentration)
    q = (1 - p) * same
    spread = np.sqrt(np.maximum(VOTERS * (p + q - (p - q) ** 2), 1e-12))
    z = VOTERS * (p - q) / spread
    return float((weight * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))).sum())


def fit_same_mistake(concentration: float, names: Iterable[str]) -> float:
    pairs = [VOTES[name] for name in names]

    def error(same: float) -> float:
        return sum((majority(mean, concentration, same) - vote) ** 2 for mean, vote in pairs)

    return min((step / 100 for step in range(5, 100)), key=error)


def digits(low: int, high: int, mean: float) -> list[float]:
    """Returns the maximum-entropy distribution over these digits with this mean: proportional to a power of one ratio."""
    values = np.arange(low, high + 1)
    ratios = np.exp(np.linspace(-3, 3, 6001))
    powers = ratios[:, None] ** (values - low)
    means = (powers * values).sum(1) / powers.sum(1)
    best = powers[np.argmin(abs(means - mean))]
    return [float(share) for share in best / best.sum()]


def fit_harm(rejected: list[float]) -> tuple[float, float]:
    """Returns the harm of a bad step, and the share that is accepted at threshold 3."""
    error = JUDGE_ERROR
    good = (ACCEPTANCE - error) / (1 - 2 * error)
    above = sum(rejected[3:])  # of the steps that do not get 7, those that get 3 and more
    bad_at_7 = STEPS * (1 - good) * error
    bad_at_3 = STEPS * (1 - good) * (error + (1 - error) * above)
    harm = 1 - (SWEEP[3] / SWEEP[7]) ** (1 / (bad_at_3 - bad_at_7))
    return harm, ACCEPTANCE + (1 - ACCEPTANCE) * above


def main() -> None:
    console = Console()
    alpha, beta = fit_spread()
    console.print(f"solved_alpha {alpha:.2f}, solved_beta {beta:.2f}: pass@k, published and fitted")
    for k, value in COVERAGE.items():
        console.print(f"  {k}: {value:.3f} {coverage(alpha, beta, k):.3f}")
    everyone = fit_same_mistake(alpha + beta, VOTES)
    same = fit_same_mistake(alpha + beta, LIKE_TARGETS)
    console.print(
        f"same_mistake {same:.2f} ({everyone:.2f} over all models): majority of {VOTERS}, published and fitted"
    )
    for name, (mean, vote) in VOTES.items():
        console.print(f"  {name}: pass@1 {mean:.3f}, {vote:.3f} {majority(mean, alpha + beta, same):.3f}")
    rejected = digits(*MEANS["rejected"])
    console.print(f"accepted digits 7-9: {[round(share, 3) for share in digits(*MEANS['accepted'])]}")
    console.print(f"rejected digits 0-6: {[round(share, 3) for share in rejected]}")
    harm, passing = fit_harm(rejected)
    console.print(f"harm {harm:.4f} (judge_error {JUDGE_ERROR}); {passing:.0%} of drafts would pass at threshold 3")


if __name__ == "__main__":
    main()
