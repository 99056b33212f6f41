"""Engines that make it hard: slow to abort, or standing still."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from watched import WatchedSimulated
from workloads import simulated

from speclrm.runtime.engines.simulated.engine import SimulatedEngine

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, Sequence

    from workloads import Workload

    from speclrm.runtime.engine import Delta, EngineStats, Request
    from speclrm.runtime.engines.simulated.text_world import SimulatedWorld
    from speclrm.runtime.protocols import Role


class Sluggish(WatchedSimulated):
    """A simulated engine that takes its time to abort a request, and may stand still for ever at one.

    ``abort_s``: how long aborts take, in turn; ``stalls_at``: the number of the request that is never answered.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.abort_s: list[float] = []
        self.stalls_at: int | None = None
        self.stalled = 0
        self._requests = 0

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        return self.opened.watch(request, self._slowly(request))

    def stats(self) -> EngineStats:
        stats = super().stats()
        return replace(stats, running=stats.running + self.stalled)

    async def _slowly(self, request: Request) -> AsyncGenerator[Delta, None]:
        number, self._requests = self._requests, self._requests + 1
        finished = False
        try:
            if number == self.stalls_at:
                self.stalled += 1
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    self.stalled -= 1
            async with aclosing(SimulatedEngine.stream(self, request)) as deltas:
                async for delta in deltas:
                    finished = delta.finish is not None
                    yield delta
        finally:
            if not finished and self.abort_s:
                await unhurried(self.abort_s[number % len(self.abort_s)])


async def unhurried(seconds: float) -> None:
    """Sleeps whatever comes: nobody gets an engine to abort any faster."""
    task = asyncio.ensure_future(asyncio.sleep(seconds))
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def sluggish(
    work: Workload, abort_s: Sequence[float] = ()
) -> tuple[SimulatedWorld, dict[Role, list[WatchedSimulated]], list[Sluggish]]:
    """A workload's engines, by role and all together. ``abort_s``: how long aborts take, one after the other."""
    world, several = simulated(work, Sluggish)
    engines = [engine for role in several.values() for engine in role if isinstance(engine, Sluggish)]
    for place, engine in enumerate(engines):
        engine.abort_s = [*abort_s[place:], *abort_s[:place]]
    return world, several, engines


def draw_aborts(draw: random.Random, share: float) -> list[float]:
    """How long aborts take, where they take any time at all."""
    if draw.random() > share:
        return []
    return [round(draw.uniform(0, draw.choice([0, 0.01, 1])), 4) for _ in range(7)]
