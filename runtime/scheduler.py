"""Where the requests of all tracks of all problems meet: a lane a role, and the order in which they are served."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.lanes import STALL_LIMIT_S, Lane, LaneStats

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from speclrm.runtime.protocols import Engine, Role

Purpose = Literal["choose", "draft", "score", "rewrite", "write", "closing"]
"""What an operation is for."""

_RANK: dict[Purpose, int] = {"choose": 0, "score": 0, "closing": 0, "rewrite": 1, "write": 2, "draft": 2}
_RANK_WIDTH = 1_000_000


def priority(purpose: Purpose, order: int) -> int:
    """Lower is served earlier: scores before rewrites before new steps; among equals, older samples first.

    A score is short and everything else of its track waits for it; finishing old samples frees their memory.
    ``order``: the sample's number in the order of their starts.
    """
    return _RANK[purpose] * _RANK_WIDTH + min(order, _RANK_WIDTH - 1)


class Scheduler:
    """The lanes of a runtime."""

    def __init__(
        self,
        engines: Mapping[Role, Engine],
        *,
        in_flight_max: int | None = None,
        stall_limit_s: float = STALL_LIMIT_S,
    ) -> None:
        self.lanes: dict[Role, Lane] = {
            role: Lane(role, engine, in_flight_max=in_flight_max, stall_limit_s=stall_limit_s)
            for role, engine in engines.items()
        }

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Scheduler, None]:
        """Keeps watch over the engines for as long as the block lasts."""
        watches = [asyncio.create_task(lane.watch(), name=f"watch {role}") for role, lane in self.lanes.items()]
        try:
            yield self
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    def stats(self) -> dict[Role, LaneStats]:
        return {role: lane.stats() for role, lane in self.lanes.items()}
