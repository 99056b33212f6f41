"""Decides whether a request is sent again, and when."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from speclrm.runtime.engines.http.client import Kind, Trouble

TRIES: dict[Kind, int] = {"busy": 6, "dropped": 4, "silent": 2, "failed": 3, "garbage": 3}
"""How often one request may meet each kind of trouble in all. What is not here is never tried again by the engine."""
FIRST_WAIT_S = 0.25
WAIT_MAX_S = 20.0
"""The wait before a retry is drawn between nothing and a bound that doubles from the first to the last of these ("full
jitter", Brooker 2015, AWS Architecture Blog): many requests that failed together do not come back together."""
BUDGET = 20
BUDGET_SHARE = 0.2
"""Retries that a server may cost: some from the start, and a share of the requests that went well. Beyond that retries only add
to what is wrong with it (Google SRE book, chapter 22)."""


class Retry(NamedTuple):
    """``wait_s``: None if the request is not to be sent again."""

    wait_s: float | None


class Retries:
    """Counts what one server costs in retries. ``rng``: for the waits, which change no result."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._left = float(BUDGET)

    def went_well(self) -> None:
        self._left = min(10.0 * BUDGET, self._left + BUDGET_SHARE)

    @property
    def spent(self) -> bool:
        return self._left < 1

    def after(self, trouble: Trouble, met: int) -> Retry:
        """Decides about a request that met this kind of trouble ``met`` times, this time included."""
        if met >= TRIES.get(trouble.kind, 0) or self.spent:
            return Retry(None)
        self._left -= 1
        bound = min(WAIT_MAX_S, FIRST_WAIT_S * 2.0 ** (met - 1))
        wait_s = self._rng.uniform(0.0, bound)
        if trouble.retry_after_s is not None:  # at least as long as it asks, and not all at once after that
            wait_s += trouble.retry_after_s
        return Retry(wait_s)
