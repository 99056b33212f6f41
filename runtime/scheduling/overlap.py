"""Counts the seconds in which engines of several roles worked side by side."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from speclrm.runtime.clock import now_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.protocols import Role


class Overlap:
    """Counts the seconds in which engines of several roles worked side by side: on one device they slow each other down.

    ``notify``: called when the engines of a role begin (True) or end (False) to have work.
    """

    def __init__(self, notify: Callable[[Role, bool], None] | None = None) -> None:
        self._notify = notify
        self._busy: Counter[Role] = Counter()
        self._since_s = 0.0
        self._both_s = 0.0

    @property
    def both_s(self) -> float:
        return self._both_until(now_s())

    def _both_until(self, now: float) -> float:
        return self._both_s + (now - self._since_s if len(self._busy) > 1 else 0.0)

    def change(self, role: Role, by: int) -> None:
        """Notes that an engine of that role begins (1) or ends (-1) to have work."""
        now = now_s()
        self._both_s, self._since_s = self._both_until(now), now
        before = self._busy[role]
        self._busy[role] += by
        if not self._busy[role]:
            del self._busy[role]
        if self._notify is not None and (not before or role not in self._busy):
            self._notify(role, role in self._busy)
