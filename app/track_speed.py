"""Tells how fast tracks are: with how many others beside them, and from sample to sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

COMMITS = 400.0
"""The speed is that of about the last so many steps."""
LOAD, LOAD_SPREAD = 0.2, 0.25
"""Share of a step's time that is due to the other tracks, before it is known, and its standard deviation. Assumed."""
SLOW_WEIGHT = 4.0
"""For how many samples it counts that all are equally fast."""


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
    """How differently fast samples are: logarithms of their seconds a token, each sample counted once."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, seconds_per_token: float) -> None:
        value = math.log(seconds_per_token)
        self.count += 1
        self.total += value
        self.squares += value * value

    def copy(self) -> Slowness:
        return replace(self)

    @property
    def spread(self) -> float:
        """The standard deviation around their own mean."""
        around = max(0.0, self.squares - self.total * self.total / max(1, self.count))
        return min(1.0, math.sqrt(around / max(1.0, self.count - 1 + SLOW_WEIGHT)))

    def draw_mean(self, seconds_per_token: float, draw: random.Random) -> float:
        """Draws the logarithm of how much slower than this the samples to come are, on average."""
        mean = self.total / self.count - math.log(seconds_per_token) if self.count else 0.0
        return draw.gauss(mean, self.spread / math.sqrt(self.count + 1))
