"""Keeps what the callers of a runtime still have to come: samples that wait for a place, and calls of one sample."""

from __future__ import annotations


class Calls:
    """``singles``: calls of one sample that have ended. As many may come as have come: nobody says how many will."""

    def __init__(self) -> None:
        self.singles = 0
        self._queued: dict[object, int] = {}

    def queue(self, call: object, samples: int) -> None:
        """Notes how many samples of a call wait for those at work to end: each time that one begins, and 0 at the end."""
        if samples:
            self._queued[call] = samples
        else:
            self._queued.pop(call, None)

    @property
    def queued(self) -> int:
        """Samples that wait for those at work to end, of all calls."""
        return sum(self._queued.values())
