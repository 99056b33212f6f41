"""The target thinks alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Role
from speclrm.strategies.family import Family
from speclrm.strategies.plan import without_methods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Problem, Track, TrackPlan


class Direct(Family):
    """``baseline``: each track is one write of the target, read step by step."""

    name: str = "baseline"
    roles: frozenset[Role] = frozenset({Role.TARGET})

    def plan(self, problem: Problem, repeat: int, seed: int | None) -> Sequence[TrackPlan]:
        return without_methods(problem, self.recipe.tracks)

    async def run_track(self, track: Track) -> FinishReason:
        while (reason := self.end(track.state)) is None:
            await track.commit(await track.write())
        return await self.closed(track, reason)
