"""The draft writes each step, the target judges it and rewrites what is not good enough.

After SSR (arXiv 2505.15340) and SpecReason (arXiv 2504.07891), without rounds: no track waits for another.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.protocols import Role
from speclrm.strategies.acceptance import REWRITTEN_SCORE, accepts
from speclrm.strategies.family import Family
from speclrm.strategies.plan import choose_methods, tracks_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Problem, Track, TrackPlan


class Speculative(Family):
    """``speculative``: tracks with a method hint each."""

    name: str = "speculative"
    roles: frozenset[Role] = frozenset({Role.DRAFT, Role.TARGET})

    @property
    def methods_by(self) -> Literal["seed", "target", "fixed"]:
        return "fixed" if self.recipe.methods else "seed"

    def plan(self, problem: Problem, repeat: int, seed: int | None) -> Sequence[TrackPlan]:
        count = self.recipe.tracks
        if self.recipe.methods:
            return tracks_for(problem, list(islice(cycle(self.recipe.methods), count)))
        return tracks_for(problem, choose_methods(count, seed, problem.id, repeat))

    async def run_track(self, track: Track) -> FinishReason:
        while (reason := self.end(track.state)) is None:
            step = await track.draft()
            score = await track.score(step)
            if accepts(score.value, self.recipe.score_threshold):
                await track.commit(step, score.value)
            else:
                await track.commit(await track.rewrite(step), REWRITTEN_SCORE)
        return await self.closed(track, reason)
