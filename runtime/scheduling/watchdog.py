"""Notices that an engine, or one operation in it, makes no progress: tells of it first, and ends the waits at the limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from speclrm.runtime.clock import now_s
from speclrm.runtime.events import OperationStuck

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Role

log = structlog.get_logger(__name__)

LOOKS = 10
"""Looks at an engine within the time after which it counts as hung."""

TELL_SHARE = 0.25
"""Share of that time, 0 to 1, after which an operation that brings nothing is told of: long enough for a long prompt on a slow
CPU to pass in silence, and early enough for somebody to look before anything is given up.
"""


class Watched(Protocol):
    """An operation in an engine. ``quiet_s``: since when, on the loop's clock, it has brought nothing; ``told``: of that."""

    quiet_s: float
    told: bool

    @property
    def operation(self) -> str: ...

    @property
    def waits(self) -> bool:
        """Whether somebody waits for its next delta. A reader that is busy elsewhere cannot tell that it stalls."""
        ...

    def stall(self) -> None:
        """Ends that wait."""
        ...


class Watchdog:
    """Watches one engine and the operations in it."""

    def __init__(
        self,
        role: Role,
        engine: Engine,
        operations: Collection[Watched],
        limit_s: float,
        tell: Callable[[Event], None],
    ) -> None:
        self._role = role
        self._engine = engine
        self._operations = operations
        self._limit_s = limit_s
        self._tell = tell
        self._told_at = -1
        """The engine's progress when somebody was told of it last."""

    async def watch(self) -> None:
        """Ends the waits for an engine that makes no progress. Runs until cancelled.

        Only waits count: nothing can be said of an engine from which nobody reads.
        """
        seen = (-1, 0.0)
        while True:
            await asyncio.sleep(self._limit_s / LOOKS)
            progress = self._engine.stats().progress
            waits = [one for one in self._operations if one.waits]
            self._tell_of(waits, progress)
            if not waits or progress != seen[0]:
                seen = (progress, now_s())
            elif now_s() - seen[1] >= self._limit_s:
                for one in waits:
                    one.stall()

    def _tell_of(self, waits: Collection[Watched], progress: int) -> None:
        """Tells of those that have brought nothing for long, each once; of an engine that stands still as a whole once."""
        stuck = [one for one in waits if not one.told and now_s() - one.quiet_s >= TELL_SHARE * self._limit_s]
        if not stuck:
            return
        for one in stuck:
            one.told = True
        if progress == self._told_at:
            return
        self._told_at = progress
        longest = min(stuck, key=lambda one: (one.quiet_s, one.operation))
        event = OperationStuck(
            operation=longest.operation,
            engine=self._engine.name,
            role=self._role.value,
            seconds=round(now_s() - longest.quiet_s, 3),
            limit_s=self._limit_s,
            others=len(stuck) - 1,
        )
        log.warning("operation_stuck", **event.model_dump(include={"operation", "engine", "seconds", "others"}))
        self._tell(event)
