"""A strategy for measurements alone: drafts are scored as ever, and a seeded coin decides instead of the score.

Models of random numbers judge nothing, and speed depends on how many drafts are kept. The coin falls the same way for the same
step of the same track, whoever drafts it and whenever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.seeds import derive_seed
from speclrm.strategies.speculative import Speculative

if TYPE_CHECKING:
    from speclrm.runtime.protocols import Step, Track

SIDES = 1 << 31


class Coin(Speculative):
    """``chance``: that a draft is kept, 0 to 1. ``seed``: of the coin."""

    name = "speculative"
    chance = 0.7
    seed = 0

    async def _judged(self, track: Track, step: Step) -> tuple[bool, float | None]:
        _, score = await super()._judged(track, step)
        fallen = derive_seed(self.seed, "coin", track.problem.id, track.repeat, track.state.track, step.index)
        assert fallen is not None
        return fallen < self.chance * SIDES, score
