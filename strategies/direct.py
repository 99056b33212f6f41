"""Lets the target think alone, on one track or on many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Role
from speclrm.strategies.family import Family

if TYPE_CHECKING:
    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Track


class Direct(Family):
    """``baseline`` and ``parallel``: each track is one write of the target, read step by step."""

    name: str = "baseline"
    roles: frozenset[Role] = frozenset({Role.TARGET})

    async def run_track(self, track: Track) -> FinishReason:
        while (reason := self.end(track.state)) is None:
            await track.commit(await track.write())
        return await self.closed(track, reason)
