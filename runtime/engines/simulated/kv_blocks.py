"""Imitates vLLM's KV cache: blocks that are known by their content and found again by the next request.

As in vLLM (v1/core/block_pool.py, v1/core/kv_cache_manager.py): a full block is known by its own ids and all before it.
An unused one stays known until its place is needed: the least recently used first, and of one request the end of its
context first. Blocks that are not full are unknown, and their places are used before those of known ones.
"""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTEXTS_MAX = 1024
"""Contexts whose keys are remembered, one a track: a track's next request repeats nearly all of its last one."""


class BlockKeys:
    """Names the full blocks of token ids, each by its own ids and all before it.

    A context grows by a step at a time and is asked for again and again, so its last keys are kept and only new ids are
    hashed. Integers hash alike in every process, so keys repeat from run to run.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[str, tuple[Sequence[int], list[int]]] = OrderedDict()

    def of(self, context: str, ids: Sequence[int]) -> list[int]:
        """Returns the keys of all full blocks of ``ids``. ``context``: a name under which similar ids were asked for before."""
        size = self._size
        keys: list[int] = []
        if (kept := self._kept.get(context)) is not None:
            old, old_keys = kept
            same = min(len(old), len(ids)) // size
            # Contexts differ at the end: find the last equal block, then compare all before it.
            while same and old[(same - 1) * size : same * size] != ids[(same - 1) * size : same * size]:
                same -= 1
            if same and old[: same * size] == ids[: same * size]:
                keys = old_keys[:same]
        self.extend(keys, ids)
        self.keep(context, ids, keys)
        return keys

    def keep(self, context: str, ids: Sequence[int], keys: list[int]) -> None:
        """Remembers the keys of a context; the lists are not changed afterwards."""
        self._kept[context] = ids, keys
        self._kept.move_to_end(context)
        if len(self._kept) > CONTEXTS_MAX:
            self._kept.popitem(last=False)

    def extend(self, keys: list[int], ids: Sequence[int]) -> None:
        """Appends the keys of the full blocks of ``ids`` to those that are there."""
        size = self._size
        before = keys[-1] if keys else 0
        for start in range(len(keys) * size, len(ids) - size + 1, size):
            before = hash((before, *ids[start : start + size]))
            keys.append(before)


class Blocks:
    """Counts blocks and who uses which. A block is private to a sequence until it is published."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known blocks that nobody uses, least recently used first

    @property
    def room(self) -> int:
        """Blocks that are available: free ones, and known ones that nobody uses."""
        return self._free + len(self._idle)

    @property
    def used(self) -> int:
        return self.total - self.room

    def known(self, keys: Sequence[int]) -> int:
        """Returns how many of the keys, from the first on, are known.

        A context's end is evicted first and its beginning last, so what is known is a prefix and can be found by
        bisection.
        """
        users = self._users
        return bisect(keys, False, key=lambda key: key not in users)

    def idle(self, keys: Sequence[int]) -> int:
        """Returns how many of these known blocks nobody uses: holding them takes room. Used ones are a prefix, too."""
        users = self._users
        return len(keys) - bisect(keys, False, key=lambda key: not users[key])

    def hold(self, keys: Sequence[int]) -> None:
        """Marks known blocks as used."""
        users, idle = self._users, self._idle
        for key in keys:
            count = users[key]
            users[key] = count + 1
            if not count:
                del idle[key]

    def take(self, blocks: int) -> bool:
        """Takes private blocks, or none if there are not enough."""
        if blocks > self.room:
            return False
        while self._free < blocks:
            key, _ = self._idle.popitem(last=False)
            del self._users[key]
            self._free += 1
        self._free -= blocks
        return True

    def publish(self, key: int) -> None:
        """Makes a private block known. If another one with the same content is known, that is used instead.

        vLLM would keep both. Here whoever holds a block holds all before it, which ``known`` and ``idle`` rely on.
        """
        if key in self._users:
            self._free += 1
            self.hold((key,))
        else:
            self._users[key] = 1

    def release(self, keys: Sequence[int], private: int) -> None:
        """Gives back blocks; ``keys`` in the order of the context."""
        users, idle = self._users, self._idle
        for key in reversed(keys):
            count = users[key] - 1
            users[key] = count
            if not count:
                idle[key] = None
        self._free += private
