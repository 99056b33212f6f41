"""Intervals and tests for figures of runs, by scipy. A problem is what is drawn; its samples tell of it together.

docs/statistics.md says which figure has which interval, and where each is from. scipy is imported where it is used: that
takes half a second, which a list of runs or a help text need not wait for.
"""

from __future__ import annotations

from importlib import import_module
from math import ceil, exp, log, sqrt
from statistics import stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVEL = 0.95
"""Of all intervals."""
POWER = 0.8
"""The chance that so many problems as are asked for show an effect of the size that was found (Cohen 1988, 2.4)."""
RESAMPLES = 9_999
"""Of a bootstrap, and of a permutation test whose permutations are more than that."""
LARGEST = 700.0
"""Of logarithms: two problems that differ much have an interval without an end."""
FEWEST = 6
"""Problems of a ratio's interval. What is drawn lies between the least and the most that was seen; of five problems all may
lie on one side of the truth more often than once in 20 times (2 / 2^5)."""
_AT_ONCE = 2_000_000
"""Numbers that resampling holds in memory at a time."""
_SEED = 20_261_126
"""Resampling draws the same for the same figures."""


class Interval(BaseModel):
    """A figure with its interval, 95 %."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float


class Intervals(BaseModel):
    """Those of a run, over ``problems``. ``accuracy``, ``acceptance``: shares, 0 to 1. ``tokens``: generated for a sample by all
    models; ``seconds``: a sample. None where nothing is known of a figure, or nothing of how problems differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problems: int
    accuracy: Interval | None = None
    acceptance: Interval | None = None
    tokens: Interval | None = None
    seconds: Interval | None = None


class Part(NamedTuple):
    """What one problem adds to a ratio of sums: its right samples and its samples, its seconds and its samples."""

    top: float
    bottom: float


def _scipy() -> Any:
    """Returns its statistics, whose types say nothing; imported by the first who asks."""
    return import_module("scipy.stats")


def _special() -> Any:
    """Returns its special functions: quantiles for reports, without the second that importing all statistics takes."""
    return import_module("scipy.special")


def share_interval(parts: Sequence[Part]) -> Interval | None:
    """The interval of a share, 0 to 1; None where there is nothing to count.

    Jeffreys' interval (Brown, Cai, DasGupta 2001) for the effective number of samples of Korn and Graubard 1998: of
    independent samples, so many would vary as the share does from problem to problem, less for what few problems tell of that;
    no more than there are, and no fewer than problems. Where all agree, the variance says nothing, and each problem counts once.
    """
    parts = [part for part in parts if part.bottom]
    if not parts:
        return None
    problems, total = len(parts), sum(part.bottom for part in parts)
    share = sum(part.top for part in parts) / total
    effective = float(problems)
    if problems > 1 and 0 < share < 1:
        # The mean of squares and not their sum over one less: samples that stand alone then count as they are many.
        spread = sum((part.top - share * part.bottom) ** 2 for part in parts) / total**2
        quantile = _special().stdtrit  # Student's
        fewer = (quantile(max(total - 1, 1), (1 + LEVEL) / 2) / quantile(problems - 1, (1 + LEVEL) / 2)) ** 2
        effective = max(problems, fewer * min(total, share * (1 - share) / spread if spread else total))
    right = share * effective
    quantile, beta = _special().betaincinv, (right + 0.5, effective - right + 0.5)
    low = 0.0 if share == 0 else float(quantile(*beta, (1 - LEVEL) / 2))
    high = 1.0 if share == 1 else float(quantile(*beta, (1 + LEVEL) / 2))
    return Interval(value=share, low=min(low, share), high=max(high, share))


def mean_interval(parts: Sequence[Part]) -> Interval | None:
    """The interval of a mean that is not below zero, such as of seconds; None for fewer than two problems.

    Student's for its logarithm, with the standard error of a ratio of sums over problems (Cochran 1977, chapter 6; Miller 2024,
    arXiv 2411.00640, for questions in clusters). Lengths and times have long tails, and the logarithm's interval holds the truth
    more often (docs/statistics.md).
    """
    parts = [part for part in parts if part.bottom]
    if len(parts) < 2:
        return None
    total = sum(part.bottom for part in parts)
    mean = sum(part.top for part in parts) / total
    residuals = [part.top - mean * part.bottom for part in parts]
    error = stdev(residuals) / sqrt(len(parts)) / (total / len(parts))
    if mean <= 0 or error == 0:
        return Interval(value=mean, low=mean, high=mean)
    half = float(_special().stdtrit(len(parts) - 1, (1 + LEVEL) / 2)) * error / mean
    low, high = log(mean) - half, log(mean) + half
    return Interval(value=mean, low=exp(min(low, LARGEST)), high=exp(min(high, LARGEST)))


def mcnemar(only_one: int, only_other: int) -> float:
    """The two-sided p-value of the exact test: of the pairs in which one alone is right, each is as likely the one as the
    other (McNemar 1947; the exact form is a binomial test). 1 where there is no such pair.
    """
    if not only_one + only_other:
        return 1.0
    return float(_scipy().binomtest(only_one, only_one + only_other, 0.5).pvalue)


def sign_flips(differences: Sequence[float]) -> float:
    """The two-sided p-value of differences, one a problem: each is as likely to have the other sign (Fisher 1935).

    What McNemar's exact test is for pairs of single samples; a problem's repeats are no pairs of their own. All signs, or
    9,999 draws of them where there are more.
    """
    import numpy as np

    # Those of zero have no sign, and would only make the others' signs too many to try all.
    moved = [difference for difference in differences if difference]
    if len(moved) < 2:
        return 1.0  # one alone is as far from zero with either sign

    def mean(one: Any, other: Any, axis: int) -> Any:
        return np.mean(one - other, axis=axis)

    found = _scipy().permutation_test(
        (np.array(moved), np.zeros(len(moved))),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // len(moved)),
        rng=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def difference_interval(parts: Sequence[Part]) -> Interval | None:
    """The interval of a mean difference of shares, -1 to 1, drawn again over problems by the bootstrap; None without a problem.

    ``parts``: the sum of a problem's differences, and its number of pairs. Two problems of half a win each way are added before
    drawing (less with repeats, as a mean of more samples varies less): where few problems differ, what is drawn from them alone
    is too narrow, and where none does, it is no interval at all. Bonett and Price 2012 add to the interval that is computed in
    this way; the half is by our simulations (docs/statistics.md).
    """
    parts = [part for part in parts if part.bottom]
    if not parts:
        return None
    total = sum(part.bottom for part in parts)
    value, size = sum(part.top for part in parts) / total, total / len(parts)
    half = 0.5 * size**0.5
    low, high = _bootstrap([*parts, Part(half, size), Part(-half, size)])
    return Interval(value=value, low=max(-1.0, min(low, value)), high=min(1.0, max(high, value)))


def ratio_interval(parts: Sequence[Part]) -> Interval | None:
    """The interval of a ratio of two sums over problems, drawn again by the bootstrap; None for fewer than six problems, or
    where the sum below is zero.
    """
    top, bottom = sum(part.top for part in parts), sum(part.bottom for part in parts)
    if len(parts) < FEWEST or not bottom:
        return None
    low, high = _bootstrap(parts)
    return Interval(value=top / bottom, low=low, high=high)


def _bootstrap(parts: Sequence[Part]) -> tuple[float, float]:
    """The percentile interval of a ratio of sums, made wider for few problems as Student's is: the expanded percentile
    interval of Hesterberg 2015 (The American Statistician 69, 371). Both sums of a problem are drawn together.
    """
    import numpy as np

    tops, bottoms = (np.array(values, dtype=float) for values in zip(*parts, strict=True))
    many = len(parts)
    stats = _scipy()
    tail = float(stats.norm.cdf(-((many / (many - 1)) ** 0.5) * stats.t.ppf((1 + LEVEL) / 2, many - 1)))

    def ratio(top: Any, bottom: Any, axis: int) -> Any:
        return np.sum(top, axis=axis) / np.sum(bottom, axis=axis)

    found = stats.bootstrap(
        (tops, bottoms),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // many),
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def problems_to_settle(parts: Sequence[Part], effect: float) -> int | None:
    """How many problems would show an effect of this size, with a chance of 80 %, if they differ as these do; None without an
    effect or a difference.

    The paired test of a mean: (z of the level + z of the power)^2 x variance / effect^2 (Cohen 1988, 2.4; Miller 2024).
    ``parts``: a problem's difference, and its number of pairs.
    """
    parts = [part for part in parts if part.bottom]
    if not effect or len(parts) < 2:
        return None
    mean_size = sum(part.bottom for part in parts) / len(parts)
    mean = sum(part.top for part in parts) / (mean_size * len(parts))
    variance = sum(((part.top - mean * part.bottom) / mean_size) ** 2 for part in parts) / (len(parts) - 1)
    quantile = _scipy().norm.ppf
    wanted = (float(quantile((1 + LEVEL) / 2)) + float(quantile(POWER))) ** 2 * variance / effect**2
    return max(2, ceil(wanted)) if variance else None
