"""Chooses the engine that a track lives on, from a snapshot of a role's engines.

A track stays where it began, since the engine there holds its keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Place:
    """One engine of a role as the scheduler sees it. ``tokens``: of the contexts that live there."""

    tokens: int
    in_flight: int
    alive: bool = True


def least_loaded(places: Sequence[Place]) -> int:
    """Returns the number of the engine for a new track: the fewest tokens of context, then the fewest requests.

    Dead engines are skipped as long as one lives.
    """
    numbers = [number for number, place in enumerate(places) if place.alive] or list(range(len(places)))
    return min(numbers, key=lambda number: (places[number].tokens, places[number].in_flight, number))
