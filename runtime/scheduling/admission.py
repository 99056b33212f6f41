"""Decides which tracks may continue, by the KV cache that the engines have.

An engine whose KV cache is full preempts requests and computes them again, over and over if all of them grow. So tracks
reserve room here: the size of a reservation is the track's context in each engine. If reservations exceed an engine's
room, the youngest tracks release theirs at their next step and wait until there is room again, oldest first.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from speclrm.runtime.scheduling.routing import Place, least_loaded
from speclrm.runtime.scheduling.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.scheduling.lanes import Lane

ROOM_SHARE = 0.95
"""Share of an engine's KV cache that is reserved at most; the rest is for blocks that are not full."""
SPARE_TOKENS = 96
"""Tokens that a track needs beside its context for a moment: a step that is being made and the judge's question."""
GROWTH_TOKENS = 64
"""Tokens kept free for each admitted track before another one is: two steps, so that nobody is deferred again at once."""


@dataclass(eq=False, slots=True)
class Reservation:
    """A track's reservation of KV cache. ``order``: lower is older. ``places``: its engine of each role, chosen when it
    is first admitted.

    ``tokens``: of its context in each engine. ``asked``: the track has to release it at its next step.
    """

    order: tuple[int, int]
    places: dict[Role, int]
    tokens: dict[Role, int]
    admitted: bool = False
    asked: bool = False

    def __lt__(self, other: Reservation) -> bool:
        return self.order < other.order


@dataclass(slots=True)
class _Room:
    """The reservations of one engine. ``leaving``: tokens of tracks that were asked to release them and have not yet."""

    capacity: float
    used: int = 0
    leaving: int = 0
    reservations: list[Reservation] = field(default_factory=list[Reservation])


class Admission:
    """Admits tracks. A track that finds room is admitted at once; no engine gets more context than it can hold."""

    def __init__(self, lanes: Mapping[Role, Lane]) -> None:
        self._lanes = lanes
        self._rooms: dict[tuple[Role, int], _Room] = {}
        for role, lane in lanes.items():
            for number, engine in enumerate(lane.engines):
                self._rooms[role, number] = _Room(_capacity(engine))
        self._waiting: Waiting[tuple[Reservation, asyncio.Future[None]]] = Waiting()
        self._arrivals = count()
        self.deferred = 0
        """Times that a track had to release its reservation and wait."""

    def resize_rooms(self) -> None:
        """Reads anew how much the engines hold. The youngest tracks of one that holds less release theirs at their next step."""
        for (role, number), room in self._rooms.items():
            room.capacity = _capacity(self._lanes[role].engines[number])
            if room.used - room.leaving > room.capacity:
                self._ask(room)
        self._fill()

    @property
    def admitted(self) -> int:
        return max((len(room.reservations) for room in self._rooms.values()), default=0)

    def mean_tokens(self, role: Role) -> float:
        """Returns the mean context length of admitted tracks in that role's engines."""
        rooms = [room for (owner, _), room in self._rooms.items() if owner is role]
        reservations = sum(len(room.reservations) for room in rooms)
        return max(0.0, sum(room.used for room in rooms) / reservations - SPARE_TOKENS) if reservations else 0.0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def claim(self, order: int, tokens: Mapping[Role, int]) -> Reservation:
        """Makes a reservation that is not admitted yet. ``order``: of the sample; ``tokens``: of the prompt, by role."""
        return Reservation((order, next(self._arrivals)), {}, dict(tokens))

    def admit_at_once(self, reservation: Reservation) -> bool:
        """Admits the track if there is room and nobody waits. Returns whether it is admitted."""
        if not reservation.admitted and not self._waiting and self._fits(reservation):
            self._take(reservation)
        return reservation.admitted

    async def admit(self, reservation: Reservation) -> None:
        """Waits for room."""
        if not self.admit_at_once(reservation):
            await self._wait(reservation)

    async def hold(self, reservation: Reservation) -> None:
        """Called before a step: returns at once, or waits if the track has to make room for older ones."""
        if reservation.asked:
            self._stand(reservation)
            self.deferred += 1
            self._fill()
            await self.admit(reservation)

    def resize(self, reservation: Reservation, role: Role, tokens: int) -> None:
        """Changes the length of the track's context in an engine."""
        grown = tokens - reservation.tokens[role]
        reservation.tokens[role] = tokens
        if not reservation.admitted or not grown:
            return
        room = self._rooms[role, reservation.places[role]]
        room.used += grown
        room.leaving += grown if reservation.asked else 0
        if grown < 0:
            self._fill()
        elif room.used - room.leaving > room.capacity:
            self._ask(room)

    def leave(self, reservation: Reservation) -> None:
        """Gives the reservation back when the track ends. May be called again."""
        if reservation.admitted:
            self._stand(reservation)
            self._fill()

    # ------------------------------------------------------------------------------------------------------------ inside

    def _places(self, reservation: Reservation) -> dict[Role, int]:
        """Returns its engines; for a track that was never admitted, those it would get, or all waiting tracks would want
        the same one.
        """
        return reservation.places or {role: self._place(role) for role in reservation.tokens}

    def _place(self, role: Role) -> int:
        lane = self._lanes[role]
        if len(lane.queues) == 1:
            return 0
        return least_loaded(
            [
                Place(
                    self._rooms[role, number].used,
                    queue.in_flight,
                    queue.health.works and queue.engine.stats().alive,
                )
                for number, queue in enumerate(lane.queues)
            ]
        )

    async def _wait(self, reservation: Reservation) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = self._waiting.push(reservation.order, (reservation, turn))
        self._fill()
        try:
            await turn
        except asyncio.CancelledError:
            if reservation.admitted:
                self._stand(reservation)
            else:
                self._waiting.remove(number)
            self._fill()
            raise

    def _fits(self, reservation: Reservation) -> bool:
        for role, place in self._places(reservation).items():
            room = self._rooms[role, place]
            need = reservation.tokens[role] + SPARE_TOKENS
            # The first track is always admitted: the engine decides whether a single one fits.
            if (
                room.reservations
                and room.used - room.leaving + need + GROWTH_TOKENS * len(room.reservations) > room.capacity
            ):
                return False
        return True

    def _take(self, reservation: Reservation) -> None:
        reservation.places = self._places(reservation)
        reservation.admitted, reservation.asked = True, False
        for role, place in reservation.places.items():
            room = self._rooms[role, place]
            room.used += reservation.tokens[role] + SPARE_TOKENS
            insort(room.reservations, reservation)

    def _stand(self, reservation: Reservation) -> None:
        for role, place in reservation.places.items():
            room = self._rooms[role, place]
            size = reservation.tokens[role] + SPARE_TOKENS
            room.used -= size
            room.leaving -= size if reservation.asked else 0
            del room.reservations[bisect_left(room.reservations, reservation)]
        reservation.admitted = reservation.asked = False

    def _ask(self, room: _Room) -> None:
        """Asks the youngest to release theirs until the rest fits; the oldest stays, whatever its size."""
        for place in range(len(room.reservations) - 1, 0, -1):
            reservation = room.reservations[place]
            if room.used - room.leaving <= room.capacity:
                return
            if not reservation.asked:
                reservation.asked = True
                for role, place in reservation.places.items():
                    self._rooms[role, place].leaving += reservation.tokens[role] + SPARE_TOKENS

    def _fill(self) -> None:
        """Admits waiting tracks, oldest first; none passes one that does not fit yet."""
        while self._waiting:
            _, (reservation, turn) = self._waiting.first()
            given_up = turn.done()
            if not given_up and not self._fits(reservation):
                return
            self._waiting.pop()
            if not given_up:
                self._take(reservation)
                turn.set_result(None)


def _capacity(engine: Engine) -> float:
    kv_tokens = engine.stats().kv_tokens
    return float("inf") if kv_tokens is None else kv_tokens * ROOM_SHARE
