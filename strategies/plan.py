"""Chooses the tracks of a sample."""

from __future__ import annotations

import random
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.protocols import Problem, TrackPlan
from speclrm.strategies.methods import METHODS, hint
from speclrm.strategies.prompts import conversation, raw_conversation
from speclrm.strategies.roles import ROLES

if TYPE_CHECKING:
    from collections.abc import Sequence

PlanKind = Literal["plain", "roles", "drawn", "chosen"]
"""``plain``: no hints. ``roles``: personas in turn. ``drawn``: methods drawn by the seed. ``chosen``: methods that the
target names for the problem."""


def draw_methods(count: int, *key: object) -> tuple[str, ...]:
    """Draws ``count`` methods in an order given by the key: all twelve come before any comes again."""
    generator = random.Random("/".join(map(str, key)))
    codes: list[str] = []
    while len(codes) < count:
        codes.extend(generator.sample(sorted(METHODS), len(METHODS)))
    return tuple(codes[:count])


def repeat_codes(codes: Sequence[str], count: int) -> tuple[str, ...]:
    """Repeats the codes in turn until there are ``count``."""
    return tuple(islice(cycle(codes), count))


def tracks_for(
    problem: Problem, codes: Sequence[str], *, raw: bool = False, opening: str = ""
) -> tuple[TrackPlan, ...]:
    """Returns one track for each code. A track is named by its method or role and its place: ``E1``, ``B2``, ``M3``, ``R1.1``."""
    plans: list[TrackPlan] = []
    for place, code in enumerate(codes, start=1):
        text = ROLES[code] if code in ROLES else hint(code)
        make = raw_conversation if raw else conversation
        messages = make(problem, text, role=code in ROLES)
        name = f"{code}.{place}" if code in ROLES else f"{code}{place}"
        plans.append(TrackPlan(name, messages, code, text, raw, opening))
    return tuple(plans)
