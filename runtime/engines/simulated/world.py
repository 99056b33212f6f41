"""Defines what a simulated engine asks of the world that writes its texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import Request


class World(Protocol):
    """The protocol of what simulated models write and how sure they are. Log-probabilities are natural."""

    def write(self, request: Request) -> Sequence[int]:
        """Returns the ids that would follow the request's prompt if nothing stopped them."""
        ...

    def digits(self, request: Request) -> Sequence[float]:
        """Returns log-probabilities of 0 to 9, if the request asks for a score; of ends of text, if it asks for those."""
        ...

    def sampled(self, request: Request, ids: Sequence[int]) -> Sequence[float]:
        """Returns the log-probability of each of the ids that the request is answered with."""
        ...

    def entropy(self, request: Request) -> float:
        """Returns the entropy of the first position, in nats."""
        ...

    def likelihood(self, request: Request) -> Sequence[float]:
        """Returns the log-probability of each prompt id from ``likelihood_from`` on."""
        ...
