"""Tells how fast tracks are: with how many others beside them, and from sample to sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

COMMITS = 400.0
"""The speed is that of about the last so many steps."""
LOAD, LOAD_SPREAD = 0.2, 0.25
"""Share of a step's time that is due to the other tracks, before it is known, and its standard deviation. Assumed."""
SLOW_WEIGHT = 4.0
"""For how many samples it counts that all are equally fast."""
PROBLEMS_SPREAD = 0.25
"""With repeats: the standard deviation of problems, before it is known. Many samples are known then of few problems. Assumed."""


@dataclass(slots=True)
class Speed:
    """Seconds a token of one track, as a line over the number of running tracks: decaying sums, weighted by tokens."""

    w: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0
    steps: float = 0.0

    def add(self, tokens: float, seconds: float, tracks: float) -> None:
        keep = 1 - 1 / COMMITS
        each = seconds / tokens
        self.w = self.w * keep + tokens
        self.x = self.x * keep + tokens * tracks
        self.y = self.y * keep + tokens * each
        self.xx = self.xx * keep + tokens * tracks * tracks
        self.xy = self.xy * keep + tokens * tracks * each
        self.yy = self.yy * keep + tokens * each * each
        self.steps = self.steps * keep + 1

    def slope(self) -> tuple[float, float]:
        """Returns what one more track adds, and its standard error. What the steps do not tell, since the number of tracks was
        always about the same, is assumed.
        """
        x, y = self.x / self.w, self.y / self.w
        spread = max(0.0, self.xx / self.w - x * x)
        both = self.xy / self.w - x * y
        noise = max(0.0, self.yy / self.w - y * y - (both * both / spread if spread else 0.0))
        assumed, doubt = LOAD * y / x, LOAD_SPREAD * y / x
        told, prior = self.steps * spread / max(noise, (0.02 * y) ** 2), 1 / doubt**2
        found = both / spread if spread else 0.0
        return (told * found + prior * assumed) / (told + prior), 1 / math.sqrt(told + prior)

    def line(self, draw: random.Random) -> tuple[float, float]:
        """Draws a and b of ``a + b * tracks``, both at least 0, from those that may be true."""
        x, y = self.x / self.w, self.y / self.w
        slope = min(max(0.0, draw.gauss(*self.slope())), y / x)
        return y - slope * x, slope


@dataclass(slots=True)
class Slowness:
    """How differently fast several of a kind are: logarithms of their seconds a token, each counted once."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def around(self) -> float:
        """The sum of squares around their own mean."""
        return max(0.0, self.squares - self.total * self.total / max(1, self.count))


@dataclass(slots=True)
class Pace:
    """How much slower than one another samples to come may be: logarithms. ``mean`` is drawn already."""

    mean: float
    between: float
    """Standard deviation of problems around it."""
    within: float
    """Standard deviation of a problem's repeats around the problem's own mean."""


@dataclass(slots=True)
class SampleSpeeds:
    """How differently fast samples are. Repeats of a problem are alike, so each problem counts once."""

    repeats: int = 1
    whole: Slowness = field(default_factory=Slowness)
    """The means of problems of which all repeats have ended."""
    around: float = 0.0
    degrees: int = 0
    """Of all repeats around their problems' means: the sum of squares, and its degrees of freedom."""
    open: dict[str, Slowness] = field(default_factory=dict[str, Slowness])
    """Samples of the other problems."""

    def add(self, problem: str, seconds_per_token: float) -> None:
        group = self.open.setdefault(problem, Slowness())
        group.add(math.log(seconds_per_token))
        if group.count >= self.repeats:
            self._close(self.open.pop(problem))

    def _close(self, group: Slowness) -> None:
        self.whole.add(group.mean)
        self.around += group.around
        self.degrees += group.count - 1

    def copy(self) -> SampleSpeeds:
        return replace(self, whole=replace(self.whole), open={name: replace(one) for name, one in self.open.items()})

    def all_closed(self) -> SampleSpeeds:
        """Returns what all samples tell, also those of problems that have repeats left."""
        found = replace(self, whole=replace(self.whole), open={})
        for group in self.open.values():
            found._close(group)
        return found

    def pace(self, seconds_per_token: float, draw: random.Random) -> Pace:
        """Draws how much slower than this the samples to come are, on average. For what ``all_closed`` returns."""
        problems = self.whole
        assumed = PROBLEMS_SPREAD if self.repeats > 1 else 0.0
        around = problems.around + SLOW_WEIGHT * assumed * assumed
        between = min(1.0, math.sqrt(around / max(1.0, problems.count - 1 + SLOW_WEIGHT)))
        within = min(1.0, math.sqrt(self.around / (self.degrees + SLOW_WEIGHT)))
        mean = problems.mean - math.log(seconds_per_token) if problems.count else 0.0
        return Pace(draw.gauss(mean, between / math.sqrt(problems.count + 1)), between, within)
