"""Limits how many samples are at work, counted by their tracks."""

from __future__ import annotations

import asyncio
from fractions import Fraction


class Places:
    """So many places, each for all tracks of one sample; first come, first served.

    A track that has ended leaves its share of the place to the next sample, which starts when the free shares make a whole
    place. So as many tracks are at work as there are places for, though a sample lasts as long as its slowest track.
    """

    def __init__(self, count: int) -> None:
        self._free = Fraction(count)
        self._waiting: dict[Place, asyncio.Future[None]] = {}

    def place(self) -> Place:
        """Returns one that is still to be taken."""
        return Place(self)

    async def take(self, place: Place) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[place] = turn
        self.serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                place.leave()  # it was given at the same moment
            else:
                self._waiting.pop(place, None)  # it may have been passed over already, since nobody waits for it
                self.serve()
            raise

    def release(self, share: Fraction) -> None:
        self._free += share
        self.serve()

    def serve(self) -> None:
        """Gives what is free to those that wait, in their order."""
        while self._waiting:
            place, turn = next(iter(self._waiting.items()))
            if not turn.done() and place.share > self._free:
                return
            del self._waiting[place]
            if not turn.done():
                self._free -= place.share
                place.held = True
                turn.set_result(None)


class Place:
    """One sample's place. ``share``: of a whole place, what it holds, or will take."""

    __slots__ = ("_places", "held", "share")

    def __init__(self, places: Places) -> None:
        self._places = places
        self.share = Fraction(1)
        self.held = False

    async def take(self) -> None:
        """Waits until it is free."""
        await self._places.take(self)

    def track_ended(self, tracks: int) -> None:
        """Gives the share of one of ``tracks`` back. The last share is kept until the sample leaves, so samples that are still
        graded are limited, too.
        """
        ended = Fraction(1, tracks)
        if self.share > ended:
            self.share -= ended
            if self.held:
                self._places.release(ended)
            else:
                self._places.serve()

    def leave(self) -> None:
        """Gives back what is left, once."""
        if self.held:
            self.held = False
            self._places.release(self.share)
