"""Decides how far apart the draft's iterations begin where two engines share a device by time slices.

On such a device every iteration of the draft is taken from the target's time, and costs about the same for one sequence as
for twenty. Left to itself the draft iterates as often as its slices allow, with few sequences each time. Slowed down, each
iteration serves all that wait.

Let a step have L tokens, of which the draft's are kept with probability a. With m iterations of the draft to one of the
target, a step lasts ``L / m + 1 + L * (1 - a)`` iterations of the target (draft, score, rewrite), and one of these takes
``w_t + m * w_d`` and what is read and written in it, whose sum does not depend on m. The product is least at
``m = sqrt(L * w_t / ((1 + L * (1 - a)) * w_d))``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import EngineCosts, Paceable
    from speclrm.runtime.scheduling.breakeven import StepShape


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a pace depends on.

    ``tracks``: how many speculate. ``acceptance``: share of drafted steps that are kept, 0 to 1. ``target``, ``draft``: costs
    of their iterations; ``slowdown`` says how much slower they are while the other works.
    """

    tracks: float
    acceptance: float
    shape: StepShape
    target: EngineCosts
    draft: EngineCosts


class Pace(NamedTuple):
    """``iterations``: of the draft to one of the target, 0 for as many as its slices allow. ``interval_s``: seconds from the
    beginning of one to that of the next, 0 for none.
    """

    iterations: int = 0
    interval_s: float = 0.0


FREE = Pace()
GAIN = 1.02
"""How much longer a step must last without a pace: the product is flat around its least."""


def pace(now: Snapshot) -> Pace:
    """Returns the best pace of the draft; ``FREE`` where it is no faster by itself.

    The interval is never longer than an iteration of the target alone.
    """
    length, target, draft = now.shape.drafted, now.target, now.draft
    if now.tracks <= 1 or draft.w <= 0 or target.w <= 0:
        return FREE
    rewritten = now.shape.written * (1 - now.acceptance)
    best = max(1, round(math.sqrt(length * target.w / ((1 + rewritten) * draft.w))))
    read = now.shape.scores * now.shape.read_score + (1 - now.acceptance) * now.shape.read_rewrite
    load_s = now.tracks * target.p * (read + rewritten)  # of all steps together, whatever the pace

    def step_s(iterations: float) -> float:
        return (length / iterations + 1 + rewritten) * (target.w + iterations * draft.w) + load_s

    steps = now.tracks / (length / best + 1 + rewritten)  # that end in an iteration of the target
    alone_s = target.w + target.p * steps * (read + rewritten)
    free = alone_s * (1 + target.slowdown) / (draft.w * (1 + draft.slowdown))
    if free <= best or step_s(free) < GAIN * step_s(best):
        return FREE
    return Pace(best, round(min(alone_s / best + draft.w, target.w), 6))


class Pacer:
    """Keeps the draft's engines at a pace while the target has work, and leaves them free while it has none."""

    def __init__(self, engines: Sequence[Paceable]) -> None:
        self._engines = engines
        self._interval_s = 0.0
        self._target_works = False

    def set(self, interval_s: float) -> None:
        """Seconds between the beginnings of two iterations while the target works; 0 for no pace."""
        self._interval_s = interval_s
        self._apply()

    def target_works(self, works: bool) -> None:
        """Notes that the target's engines have work from now on, or none."""
        self._target_works = works
        if self._interval_s:
            self._apply()

    def _apply(self) -> None:
        for engine in self._engines:
            engine.pace(self._interval_s if self._target_works else 0.0)
