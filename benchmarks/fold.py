"""A run's figures as a sink."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.evaluators.metrics import Summary

if TYPE_CHECKING:
    from speclrm.runtime.events import Event


class Fold(Summary):
    """Keeps the summary of the events that it is given."""

    def emit(self, event: Event) -> None:
        self.add(event)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
