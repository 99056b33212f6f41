"""Tells how long tracks are, from those that ended and those that still run.

Lengths to some power are taken as normal. Tracks that still run, or were cut off, count as longer than they are so far
(censored): else the first figures would rest on the short tracks alone, which end first.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

BUCKET = 0.1
"""Width of the classes, in logarithms, in which lengths of running tracks are counted."""
SPREAD, SPREAD_WEIGHT = 0.35, 2.0
"""Standard deviation of log lengths before any is known, and for how many tracks it counts. Assumed."""
BUDGET_SHARE, BUDGET_WEIGHT = 0.4, 0.1
"""The same for the mean, as a share of the budget."""
ALIKE, ALIKE_WEIGHT = 0.3, 6.0
"""Share of the variance of log lengths that tracks of one sample have in common, before it is known. Assumed."""
ITERATIONS = 40
SWEEPS = 3
_NORMAL = NormalDist()

POWERS = (0.0, 0.5, 1.0)
"""Lengths to one of these powers (0: their logarithms) are taken as normal (Box and Cox 1964), by the likelihood."""


@dataclass(frozen=True, slots=True)
class Law:
    """What lengths of tracks are like: a normal distribution of a power of them. ``shared`` and ``own``: its standard
    deviations between samples and inside of them. ``samples``, ``tracks``: from how many it is known.
    """

    power: float
    mean: float
    shared: float
    own: float
    samples: float = math.inf
    tracks: float = math.inf

    def possible(self, draw: random.Random) -> Law:
        """Draws one of the laws that may be the true one: few lengths tell little of their mean, and less of their spread."""
        if math.isinf(self.tracks):
            return self
        wider = math.sqrt(self.tracks / (2 * draw.gammavariate(self.tracks / 2, 1.0)))
        shared, own = self.shared * wider, self.own * wider
        mean = draw.gauss(self.mean, math.sqrt(shared**2 / self.samples + own**2 / self.tracks))
        return Law(self.power, mean, shared, own)

    def put(self, length: float) -> float:
        return _put(self.power, length)

    def back(self, value: float) -> float:
        return _back(self.power, value)

    def rest(self, ended: list[float], so_far: list[float], draw: random.Random) -> list[float]:
        """Draws the lengths of a sample's running tracks, each above what it has so far. ``ended``: what ``put`` says of the
        others.

        Both kinds tell of the mean of the sample: it and the lengths are drawn in turn, each by what the other then is
        (Gibbs sampling).
        """
        lengths: list[float] = []
        known = ended
        for _ in range(SWEEPS):
            common = draw.gauss(self.mean, self.shared)
            if known and self.shared > 0:
                trust = self.shared**2 / (self.shared**2 + self.own**2 / len(known))
                centre = self.mean + trust * (sum(known) / len(known) - self.mean)
                common = draw.gauss(centre, self.shared * math.sqrt(1 - trust))
            lengths = [self.longer(common, least, draw) for least in so_far]
            known = ended + [self.put(length) for length in lengths]
        return lengths

    def longer(self, common: float, so_far: float, draw: random.Random) -> float:
        """Draws a length from those above ``so_far``, of a sample with the mean ``common``."""
        if so_far <= 1:
            return self.back(draw.gauss(common, self.own))
        below = _NORMAL.cdf((self.put(so_far) - common) / self.own)
        share = below + (1 - below) * draw.random()
        if share >= 1 - 1e-9:
            return so_far * 1.02
        return max(so_far, self.back(common + self.own * _NORMAL.inv_cdf(max(share, 1e-12))))


@dataclass(slots=True)
class _Sums:
    """Of lengths to a power: of ended tracks, and of their distances from the means of their samples."""

    total: float = 0.0
    squares: float = 0.0
    inner: float = 0.0


class Lengths:
    """Lengths of tracks, as far as they are known."""

    def __init__(self) -> None:
        self.count = 0
        self.samples = 0
        """Those of which lengths are known."""
        self.logs = 0.0
        self.sums = {power: _Sums() for power in POWERS}
        self.cut: Counter[int] = Counter()
        """Tracks that were longer than this, by the class of the length."""
        self.inner_free = 0

    def copy(self) -> Lengths:
        other = Lengths()
        other.count, other.samples, other.logs = self.count, self.samples, self.logs
        other.inner_free = self.inner_free
        other.sums = {power: replace(one) for power, one in self.sums.items()}
        other.cut = self.cut.copy()
        return other

    def add(self, length: int) -> None:
        self.count += 1
        self.logs += math.log(length)
        for power, one in self.sums.items():
            value = _put(power, length)
            one.total += value
            one.squares += value * value

    def add_cut(self, length: float) -> None:
        if length >= 1:
            self.cut[round(math.log(length) / BUCKET)] += 1

    def group(self, lengths: list[int]) -> None:
        """Notes which lengths one sample had."""
        self.samples += bool(lengths)
        if len(lengths) < 2:
            return
        self.inner_free += len(lengths) - 1
        for power, one in self.sums.items():
            values = [_put(power, length) for length in lengths]
            mean = sum(values) / len(values)
            one.inner += sum((value - mean) ** 2 for value in values)

    def laws(self, budget: int | None) -> list[tuple[float, Law]]:
        """Returns the most likely law of each power, with its likelihood as a share of the best one's."""
        guess = BUDGET_SHARE * budget if budget else 100.0
        fits = [(*self._fit(power, guess), power) for power in POWERS]
        best = max(likelihood for likelihood, *_ in fits)
        return [
            (math.exp(likelihood - best), self._made(power, mean, spread)) for likelihood, mean, spread, power in fits
        ]

    def law(self, budget: int | None) -> Law:
        """Returns the most likely law."""
        return max(self.laws(budget), key=lambda one: one[0])[1]

    def _made(self, power: float, mean: float, spread: float) -> Law:
        if self.inner_free:
            found = min(0.95, max(0.0, 1 - self.sums[power].inner / self.inner_free / spread**2))
            alike = (found * self.inner_free + ALIKE * ALIKE_WEIGHT) / (self.inner_free + ALIKE_WEIGHT)
        else:
            alike = ALIKE
        shared, own = spread * math.sqrt(alike), spread * math.sqrt(1 - alike)
        return Law(power, mean, shared, own, max(1, self.samples), self.count + SPREAD_WEIGHT)

    def _fit(self, power: float, guess: float) -> tuple[float, float, float]:
        """Returns log-likelihood, mean and standard deviation, by expectation and maximisation over censored lengths.

        Dempster, Laird and Rubin 1977, section 4.3: a normal law of which some values are only known to be larger.
        """
        sums = self.sums[power]
        bounds = [(_put(power, math.exp(bucket * BUCKET)), count) for bucket, count in self.cut.items()]
        known = self.count + sum(count for _, count in bounds)
        prior = _put(power, guess)
        mean = sums.total / self.count if self.count else prior
        typical = _back(power, mean)
        least = SPREAD * typical**power * (power or 1.0)  # a share of the length, in units of its power
        spread = least
        for _ in range(ITERATIONS):
            total, squares = sums.total + BUDGET_WEIGHT * prior, sums.squares + BUDGET_WEIGHT * prior * prior
            for bound, count in bounds:
                first, second = _above(mean, spread, bound)
                total += count * first
                squares += count * second
            weight = known + BUDGET_WEIGHT
            mean = total / weight
            inner = max(0.0, squares - weight * mean * mean)
            spread = math.sqrt((inner + SPREAD_WEIGHT * least**2) / (weight + SPREAD_WEIGHT))
        likelihood = (power - 1) * self.logs + self.count * math.log(power or 1.0)
        distance = sums.squares - 2 * mean * sums.total + self.count * mean * mean
        likelihood -= distance / (2 * spread**2) + self.count * math.log(spread * math.sqrt(2 * math.pi))
        for bound, count in bounds:
            likelihood += count * math.log(max(1e-12, 0.5 * math.erfc((bound - mean) / spread / math.sqrt(2))))
        return likelihood, mean, spread


def _put(power: float, length: float) -> float:
    return math.log(length) if not power else length**power


def _back(power: float, value: float) -> float:
    return math.exp(min(value, 50.0)) if not power else max(1.0, value) ** (1 / power)


def _above(mean: float, spread: float, bound: float) -> tuple[float, float]:
    """Returns mean and mean square of a normal variable above a bound."""
    z = (bound - mean) / spread
    tail = 0.5 * math.erfc(z / math.sqrt(2))
    hazard = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / tail if tail > 1e-12 else z + 1 / max(z, 1.0)
    first = mean + spread * hazard
    variance = spread**2 * max(0.0, 1 + z * hazard - hazard * hazard)
    return first, variance + first * first
