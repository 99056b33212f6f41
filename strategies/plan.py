"""Which tracks a sample starts with."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Problem, TrackPlan
from speclrm.strategies.methods import METHODS, NO_METHOD, hint
from speclrm.strategies.prompts import conversation

if TYPE_CHECKING:
    from collections.abc import Sequence


def choose_methods(count: int, *key: object) -> tuple[str, ...]:
    """``count`` methods in an order drawn by the key: all twelve come before any comes again."""
    generator = random.Random("/".join(map(str, key)))
    codes: list[str] = []
    while len(codes) < count:
        codes.extend(generator.sample(sorted(METHODS), len(METHODS)))
    return tuple(codes[:count])


def tracks_for(problem: Problem, codes: Sequence[str]) -> tuple[TrackPlan, ...]:
    """One track for each code. A track is named by its method and its place: ``E1``, ``B2``, ``M3``."""
    return tuple(
        TrackPlan(f"{code}{place}", conversation(problem.text, hint(code)), code, hint(code))
        for place, code in enumerate(codes, start=1)
    )


def without_methods(problem: Problem, count: int) -> tuple[TrackPlan, ...]:
    return tracks_for(problem, [NO_METHOD] * count)
