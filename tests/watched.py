"""The scheduler under watch: what each lane was asked and when it began, who has a reservation, and what an engine has open.

``watched()`` puts lanes and reservations that keep a record in the place of plain ones; both do what plain ones do.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

from speclrm.runtime.clock import VirtualTimeLoop, now_s
from speclrm.runtime.engines.scripted import ScriptedEngine
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.scheduling import scheduler
from speclrm.runtime.scheduling.admission import Admission, Reservation
from speclrm.runtime.scheduling.lanes import Lane, LaneSlot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Mapping
    from types import TracebackType
    from typing import Any

    from speclrm.runtime.engine import Delta, Request
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.scheduling.requests import RequestState

T = TypeVar("T")


@dataclass(eq=False)
class Asked:
    """An operation before one engine. Numbers count what happened in all lanes; None where it did not."""

    id: str
    priority: int
    queue: int
    asked: int
    asked_s: float
    lasting: bool = False
    began: int | None = None
    began_s: float = 0.0
    left: int | None = None


@dataclass
class Record:
    """What happened in the lanes and reservations of one runtime."""

    asked: list[Asked] = field(default_factory=list[Asked])
    in_flight: dict[int, int] = field(default_factory=dict[int, int])
    most_in_flight: dict[int, int] = field(default_factory=dict[int, int])
    reservations: list[Reservation] = field(default_factory=list[Reservation])
    admissions: list[Admission] = field(default_factory=list[Admission])
    over: list[str] = field(default_factory=list[str])
    step_tokens: int = 0
    _happened: int = 0

    def next(self) -> int:
        self._happened += 1
        return self._happened

    def unfair(self) -> list[tuple[Asked, Asked]]:
        """Pairs of operations of one queue: one that began, and a more urgent one that stood there first and went on waiting.

        A place is given at some moment and used a turn of the loop later, so who came at that very moment came late.
        """
        found: list[tuple[Asked, Asked]] = []
        for one in self.asked:
            if one.began is None or one.began_s == one.asked_s:
                continue  # found room at once: nobody waited, or a place was already promised to each who did
            for other in self.asked:
                if other.queue != one.queue or other is one or other.asked_s >= one.began_s:
                    continue
                if other.lasting and not one.lasting:
                    continue  # into a place that is kept from long writes
                ahead = (other.priority, other.asked) < (one.priority, one.asked)
                waited = (other.began is None or other.began > one.began) and (
                    other.left is None or other.left > one.began
                )
                if ahead and waited:
                    found.append((one, other))
        return found


class _WatchedStay(LaneSlot):
    def __init__(self, lane: Lane, request_state: RequestState, record: Record) -> None:
        queue = lane.queues[request_state.place]
        super().__init__(lane, request_state)
        self._record = record
        self._of = id(queue)
        self._entry = Asked(
            request_state.request.id, request_state.request.priority, self._of, 0, 0.0, request_state.lasting
        )

    async def __aenter__(self) -> AsyncIterator[Delta]:
        record, entry = self._record, self._entry
        entry.asked, entry.asked_s = record.next(), now_s()
        record.asked.append(entry)
        try:
            deltas = await super().__aenter__()
        except BaseException:
            entry.left = record.next()
            raise
        entry.began, entry.began_s = record.next(), now_s()
        record.in_flight[self._of] = record.in_flight.get(self._of, 0) + 1
        record.most_in_flight[self._of] = max(record.most_in_flight.get(self._of, 0), record.in_flight[self._of])
        return deltas

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record.in_flight[self._of] -= 1
        self._entry.left = self._record.next()
        await super().__aexit__(kind, error, trace)


@contextmanager
def watched() -> Generator[Record]:
    """Runtimes that are opened inside the block are under watch."""
    record = Record()

    class WatchedLane(Lane):
        def fly(self, request_state: RequestState) -> LaneSlot:
            return _WatchedStay(self, request_state, record)

    class WatchedAdmission(Admission):
        def __init__(self, lanes: Mapping[Role, Lane]) -> None:
            super().__init__(lanes)
            self._watched_lanes = lanes
            record.admissions.append(self)

        def claim(self, order: int, tokens: Mapping[Role, int]) -> Reservation:
            reservation = super().claim(order, tokens)
            record.reservations.append(reservation)
            return reservation

        def resize(self, reservation: Reservation, role: Role, tokens: int) -> None:
            super().resize(reservation, role, tokens)
            self._look()

        def _look(self) -> None:
            for role, lane in self._watched_lanes.items():
                for place, engine in enumerate(lane.engines):
                    room = engine.stats().kv_tokens
                    admitted = [s for s in record.reservations if s.admitted and s.places.get(role) == place]
                    held = sum(reservation.tokens[role] for reservation in admitted)
                    if room is not None and len(admitted) > 1 and held > room + record.step_tokens * len(admitted):
                        record.over.append(f"{role} {place}: {len(admitted)} reservations hold {held} of {room} tokens")

    with patch.object(scheduler, "Lane", WatchedLane), patch.object(scheduler, "Admission", WatchedAdmission):
        yield record


class Opened:
    """What was asked of an engine, and what it has open. ``fails``: raised for a request instead of its first delta."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open: set[str] = set()
        self.fails: Callable[[Request], Exception | None] = lambda _: None

    async def watch(self, request: Request, stream: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        self.asked.append(request.id)
        self.open.add(request.id)
        try:
            async with aclosing(stream) as deltas:
                if (error := self.fails(request)) is not None:
                    raise error
                async for delta in deltas:
                    yield delta
        finally:
            self.open.discard(request.id)


class WatchedSimulated(SimulatedEngine):
    """A simulated engine that keeps a record of its requests."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.opened = Opened()

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        return self.opened.watch(request, super().stream(request))


class WatchedScripted(ScriptedEngine):
    """A scripted engine that keeps a record of its requests."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.opened = Opened()

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        return self.opened.watch(request, super().stream(request))


class CountingLoop(VirtualTimeLoop):
    """Counts its turns, and calls ``at_turn[1]`` in the turn ``at_turn[0]``."""

    def __init__(self) -> None:
        self.turns = 0
        self.at_turn: tuple[int, Callable[[], object]] | None = None
        super().__init__()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)  # asked once a turn, with 0 where somebody is ready
        self.turns += 1
        if self.at_turn is not None and self.turns == self.at_turn[0]:
            self.at_turn[1]()


def run_counted(main: Callable[[CountingLoop], Coroutine[Any, Any, T]]) -> T:
    loop = CountingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop))
