"""Provides a priority queue whose entries may leave at any time."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """A queue by order, first come first served among equals; any entry may leave before its turn.

    ``order``: any values that compare. ``numbers``: those of the entries that wait, always the same set, so that it takes no
    call to see whether there are any. An entry that leaves is only marked, since finding it would take as long as the queue
    is; once more than half of the entries are marked, they are removed together. So each operation costs about the same,
    whatever the number of entries.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, T]] = []
        self.numbers: set[int] = set()
        self._numbers = count()

    def __len__(self) -> int:
        return len(self.numbers)

    def push(self, order: Any, item: T) -> int:
        """Adds an entry and returns the number by which it can be removed again."""
        number = next(self._numbers)
        heapq.heappush(self._heap, (order, number, item))
        self.numbers.add(number)
        return number

    def remove(self, number: int) -> None:
        """Removes an entry, unless its turn has come already."""
        self.numbers.discard(number)
        self._throw_out()

    def first(self) -> tuple[Any, T]:
        """Returns the first entry with its order. Raises IndexError if nobody waits."""
        while self._heap[0][1] not in self.numbers:
            heapq.heappop(self._heap)
        order, _, item = self._heap[0]
        return order, item

    def pop(self) -> T:
        """Removes the first entry. Raises IndexError if nobody waits."""
        self.first()
        _, number, item = heapq.heappop(self._heap)
        self.numbers.remove(number)
        self._throw_out()
        return item

    def _throw_out(self) -> None:
        if len(self._heap) > 2 * len(self.numbers):
            self._heap = [entry for entry in self._heap if entry[1] in self.numbers]
            heapq.heapify(self._heap)
