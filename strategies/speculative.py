"""The draft writes each step, the target judges it and rewrites what is not good enough.

After SSR (arXiv 2505.15340) and SpecReason (arXiv 2504.07891), without rounds: no track waits for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Role
from speclrm.strategies.acceptance import REWRITTEN_SCORE, accepts
from speclrm.strategies.family import Family
from speclrm.strategies.prompts import RAW_OPENING

if TYPE_CHECKING:
    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Track


class Speculative(Family):
    """``speculative`` and ``speculative-methods``: draft, score, rewrite, on each track for itself."""

    name: str = "speculative"
    roles: frozenset[Role] = frozenset({Role.DRAFT, Role.TARGET})
    raw_opening: str = RAW_OPENING

    async def run_track(self, track: Track) -> FinishReason:
        while (reason := self.end(track.state)) is None:
            if not await track.speculates():
                await track.commit(await track.write(), REWRITTEN_SCORE)
                continue
            step = await track.draft()
            score = await track.score(step)
            if accepts(score.value, self.recipe.score_threshold):
                await track.commit(step, score.value)
            else:
                await track.commit(await track.rewrite(step), REWRITTEN_SCORE)
        return await self.closed(track, reason)
