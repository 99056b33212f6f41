"""Decides which tracks may continue, by the KV cache that the engines have.

An engine whose KV cache is full preempts requests and computes them again, over and over if all of them grow. So tracks
reserve room here: a track has a seat, whose size is its context in each engine. If the seats exceed an engine's room,
the youngest tracks stand up at their next step and wait until there is room again, oldest first.
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

    from speclrm.runtime.protocols import Role
    from speclrm.runtime.scheduling.lanes import Lane

ROOM_SHARE = 0.95
"""Share of an engine's KV cache that is reserved at most; the rest is for blocks that are not full."""
SPARE_TOKENS = 96
"""Tokens that a track needs beside its context for a moment: a step that is being made and the judge's question."""
GROWTH_TOKENS = 64
"""Tokens kept free for each seated track before another one is seated: two steps, so that nobody stands up again at once."""


@dataclass(eq=False, slots=True)
class Seat:
    """A track's reservation of KV cache. ``order``: lower is older. ``places``: its engine of each role, chosen when it
    is first seated.

    ``tokens``: of its context in each engine. ``asked``: it has to stand up at its next step.
    """

    order: tuple[int, int]
    places: dict[Role, int]
    tokens: dict[Role, int]
    seated: bool = False
    asked: bool = False

    def __lt__(self, other: Seat) -> bool:
        return self.order < other.order


@dataclass(slots=True)
class _Room:
    """The reservations of one engine. ``leaving``: tokens of tracks that were asked to stand up and have not yet."""

    capacity: float
    used: int = 0
    leaving: int = 0
    seats: list[Seat] = field(default_factory=list[Seat])


class Admission:
    """Seats tracks. A track that finds room is seated at once; no engine gets more context than it can hold."""

    def __init__(self, lanes: Mapping[Role, Lane]) -> None:
        self._lanes = lanes
        self._rooms: dict[tuple[Role, int], _Room] = {}
        for role, lane in lanes.items():
            for number, engine in enumerate(lane.engines):
                kv_tokens = engine.stats().kv_tokens
                self._rooms[role, number] = _Room(float("inf") if kv_tokens is None else kv_tokens * ROOM_SHARE)
        self._waiting: Waiting[tuple[Seat, asyncio.Future[None]]] = Waiting()
        self._arrivals = count()
        self.stood_up = 0
        """Times that a track had to stand up."""

    @property
    def seated(self) -> int:
        return max((len(room.seats) for room in self._rooms.values()), default=0)

    def mean_tokens(self, role: Role) -> float:
        """Returns the mean context length of seated tracks in that role's engines."""
        rooms = [room for (owner, _), room in self._rooms.items() if owner is role]
        seats = sum(len(room.seats) for room in rooms)
        return max(0.0, sum(room.used for room in rooms) / seats - SPARE_TOKENS) if seats else 0.0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def claim(self, order: int, tokens: Mapping[Role, int]) -> Seat:
        """Makes a seat that is not taken yet. ``order``: of the sample; ``tokens``: of the prompt, by role."""
        return Seat((order, next(self._arrivals)), {}, dict(tokens))

    def sit_at_once(self, seat: Seat) -> bool:
        """Takes the seat if there is room and nobody waits. Returns whether it is taken."""
        if not seat.seated and not self._waiting and self._fits(seat):
            self._take(seat)
        return seat.seated

    async def sit(self, seat: Seat) -> None:
        """Waits for the seat."""
        if not self.sit_at_once(seat):
            await self._wait(seat)

    async def hold(self, seat: Seat) -> None:
        """Called before a step: returns at once, or waits if the track has to make room for older ones."""
        if seat.asked:
            self._stand(seat)
            self.stood_up += 1
            self._fill()
            await self.sit(seat)

    def resize(self, seat: Seat, role: Role, tokens: int) -> None:
        """Changes the length of the track's context in an engine."""
        grown = tokens - seat.tokens[role]
        seat.tokens[role] = tokens
        if not seat.seated or not grown:
            return
        room = self._rooms[role, seat.places[role]]
        room.used += grown
        room.leaving += grown if seat.asked else 0
        if grown < 0:
            self._fill()
        elif room.used - room.leaving > room.capacity:
            self._ask(room)

    def leave(self, seat: Seat) -> None:
        """Gives the seat back when the track ends. May be called again."""
        if seat.seated:
            self._stand(seat)
            self._fill()

    # ------------------------------------------------------------------------------------------------------------ inside

    def _places(self, seat: Seat) -> dict[Role, int]:
        """Returns its engines; for a track that was never seated, those it would get, or all waiting tracks would want
        the same one.
        """
        return seat.places or {role: self._place(role) for role in seat.tokens}

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

    async def _wait(self, seat: Seat) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = self._waiting.push(seat.order, (seat, turn))
        self._fill()
        try:
            await turn
        except asyncio.CancelledError:
            if seat.seated:
                self._stand(seat)
            else:
                self._waiting.remove(number)
            self._fill()
            raise

    def _fits(self, seat: Seat) -> bool:
        for role, place in self._places(seat).items():
            room = self._rooms[role, place]
            need = seat.tokens[role] + SPARE_TOKENS
            # The first track is always seated: the engine decides whether a single one fits.
            if room.seats and room.used - room.leaving + need + GROWTH_TOKENS * len(room.seats) > room.capacity:
                return False
        return True

    def _take(self, seat: Seat) -> None:
        seat.places = self._places(seat)
        seat.seated, seat.asked = True, False
        for role, place in seat.places.items():
            room = self._rooms[role, place]
            room.used += seat.tokens[role] + SPARE_TOKENS
            insort(room.seats, seat)

    def _stand(self, seat: Seat) -> None:
        for role, place in seat.places.items():
            room = self._rooms[role, place]
            size = seat.tokens[role] + SPARE_TOKENS
            room.used -= size
            room.leaving -= size if seat.asked else 0
            del room.seats[bisect_left(room.seats, seat)]
        seat.seated = seat.asked = False

    def _ask(self, room: _Room) -> None:
        """Asks the youngest to stand up until the rest fits; the oldest stays, whatever its size."""
        for place in range(len(room.seats) - 1, 0, -1):
            seat = room.seats[place]
            if room.used - room.leaving <= room.capacity:
                return
            if not seat.asked:
                seat.asked = True
                for role, place in seat.places.items():
                    self._rooms[role, place].leaving += seat.tokens[role] + SPARE_TOKENS

    def _fill(self) -> None:
        """Seats waiting tracks, oldest first; none passes one that does not fit yet."""
        while self._waiting:
            _, (seat, turn) = self._waiting.first()
            given_up = turn.done()
            if not given_up and not self._fits(seat):
                return
            self._waiting.pop()
            if not given_up:
                self._take(seat)
                turn.set_result(None)
