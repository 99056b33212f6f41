"""Shares a device between simulated engines."""

from __future__ import annotations

from typing import Protocol


class OnDevice(Protocol):
    """What a device asks of an engine on it."""

    share: float
    """Its speed, 0 to 1, while another works there."""

    def retime(self) -> None:
        """Fits its current work to a speed that has changed."""
        ...


class Device:
    """A device that engines share: one that works alone has full speed, each of two that work has its own ``share``.

    ``slices``: they share it by time slices, else side by side.
    """

    def __init__(self, *, slices: bool = True) -> None:
        self.slices = slices
        self.engines = 0
        """How many are on it."""
        self._busy: list[OnDevice] = []

    def speed(self, engine: OnDevice) -> float:
        return 1.0 if all(other is engine for other in self._busy) else engine.share

    def set_busy(self, engine: OnDevice, busy: bool) -> None:
        if busy == (engine in self._busy):
            return
        if busy:
            self._busy.append(engine)
        else:
            self._busy.remove(engine)
        for other in self._busy:
            if other is not engine:
                other.retime()  # its iterations take longer or shorter from now on
