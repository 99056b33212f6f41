"""Those who wait for their turn, the most urgent first."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """A queue by order, of equals the one that came first; anyone may go away before his turn.

    ``order``: any values that compare. Who goes away is only forgotten, since looking for him would take as long as the
    queue is; once more than half of what is kept is of that kind, it is thrown out. So each costs about the same, in
    whatever number they come and go.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, T]] = []
        self._here: set[int] = set()
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._here)

    def push(self, order: Any, item: T) -> int:
        """Returns the number by which it can be taken out again."""
        number = next(self._numbers)
        heapq.heappush(self._heap, (order, number, item))
        self._here.add(number)
        return number

    def remove(self, number: int) -> None:
        """Takes one out, unless his turn has come already."""
        self._here.discard(number)
        self._throw_out()

    def first(self) -> tuple[Any, T]:
        """Whose turn it is, with his order. Raises IndexError where nobody waits."""
        while self._heap[0][1] not in self._here:
            heapq.heappop(self._heap)
        order, _, item = self._heap[0]
        return order, item

    def pop(self) -> T:
        """Takes him out. Raises IndexError where nobody waits."""
        self.first()
        _, number, item = heapq.heappop(self._heap)
        self._here.remove(number)
        self._throw_out()
        return item

    def _throw_out(self) -> None:
        if len(self._heap) > 2 * len(self._here):
            self._heap = [entry for entry in self._heap if entry[1] in self._here]
            heapq.heapify(self._heap)
