"""Schedules the requests of all tracks of all problems: a lane for each role, the engines' room, and the order of service."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Paceable
from speclrm.runtime.events import EngineRecovered
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.admission import Admission
from speclrm.runtime.scheduling.controller import Controller
from speclrm.runtime.scheduling.lanes import STALL_LIMIT_S, Lane
from speclrm.runtime.scheduling.overlap import Overlap
from speclrm.runtime.scheduling.pacing import Pacer
from speclrm.runtime.scheduling.requests import RANK_WIDTH

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import Event, Purpose
    from speclrm.runtime.scheduling.engine_queue import LaneStats


_RANK: dict[Purpose, int] = {"choose": 0, "score": 0, "closing": 0, "rewrite": 1, "write": 2, "draft": 2}
_AHEAD_RANK = 3


def priority(purpose: Purpose, order: int, *, ahead: bool = False) -> int:
    """Returns a number that is lower for what is served earlier: scores, then rewrites, then new steps; older samples first.

    A score is short and everything else of its track waits for it; finishing old samples frees their memory. Work made
    ``ahead`` of a decision comes last: nobody waits for it yet. ``order``: the sample's number in the order of their
    starts.
    """
    return (_AHEAD_RANK if ahead else _RANK[purpose]) * RANK_WIDTH + min(order, RANK_WIDTH - 1)


class Scheduler:
    """Holds the lanes of a runtime, the reservations of its tracks, and the controller.

    ``engines``: one of each role, or several with the same model. ``slices``: draft and target share a device by time slices.
    """

    def __init__(
        self,
        engines: Mapping[Role, Engine | Sequence[Engine]],
        *,
        in_flight_max: int | None = None,
        stall_limit_s: float = STALL_LIMIT_S,
        slices: bool = False,
    ) -> None:
        self.lanes: dict[Role, Lane] = {}
        self._listeners: list[Callable[[Event], object]] = []
        self.overlap = Overlap(self._works)
        for role, one in engines.items():
            several: Sequence[Engine] = one if isinstance(one, list | tuple) else [one]  # pyright: ignore[reportAssignmentType]
            self.lanes[role] = Lane(
                role,
                *several,
                in_flight_max=in_flight_max,
                stall_limit_s=stall_limit_s,
                overlap=self.overlap,
                tell=self._tell,
            )
        self.admission = Admission(self.lanes)
        self._pacer = self._make_pacer() if slices and Role.DRAFT in self.lanes else None
        self.controller = self._make_controller()

    def forget(self) -> None:
        """Lets the controller begin anew, with nothing learned, for comparisons; no track may be at work."""
        if self._pacer is not None:
            self._pacer.set(0.0)
        self.controller = self._make_controller()

    def _make_controller(self) -> Controller | None:
        if Role.DRAFT not in self.lanes:
            return None
        return Controller(self.lanes, self.admission, self.overlap, pacer=self._pacer)

    def _make_pacer(self) -> Pacer | None:
        engines = [engine for engine in self.lanes[Role.DRAFT].engines if isinstance(engine, Paceable)]
        return Pacer(engines) if len(engines) == len(self.lanes[Role.DRAFT].engines) else None

    def _works(self, role: Role, works: bool) -> None:
        if role is Role.TARGET and self._pacer is not None:
            self._pacer.target_works(works)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Scheduler, None]:
        """Watches the engines for as long as the block lasts."""
        watches = [
            asyncio.create_task(watch, name=f"watch {lane.role.value}")
            for lane in self.lanes.values()
            for watch in lane.watches()
        ]
        try:
            yield self
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    @contextmanager
    def told(self, publish: Callable[[Event], object]) -> Generator[None, None, None]:
        """Publishes which engines fail and return while the block lasts, and first those that do not work now."""
        self._listeners.append(publish)
        try:
            for lane in self.lanes.values():
                for queue in lane.queues:
                    if not queue.health.works:
                        publish(queue.health.failure())
            yield
        finally:
            self._listeners.remove(publish)

    def _tell(self, event: Event) -> None:
        if isinstance(event, EngineRecovered) and event.changed:
            for lane in self.lanes.values():
                lane.resize()
            self.admission.resize_rooms()
        for publish in tuple(self._listeners):
            publish(event.model_copy())  # each run numbers its own

    def stats(self) -> dict[Role, tuple[LaneStats, ...]]:
        """Returns a snapshot of each queue, by role and in the order of the role's engines."""
        return {role: lane.stats() for role, lane in self.lanes.items()}
