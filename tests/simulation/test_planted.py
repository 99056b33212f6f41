"""Bugs are planted, and found: a simulation that finds nothing says little until it is known to find something."""

from __future__ import annotations

import pytest
from simulation.cases import simulate
from simulation.planted import PLANTED, find

pytestmark = pytest.mark.timeout(180)

SEEDS = 10
"""From 0 on. docs/reliability.md has which of them is the first to find each."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    assert find(name, 0, SEEDS) is not None


def test_without_it_the_same_seeds_find_nothing() -> None:
    assert [str(outcome) for seed in range(SEEDS) if (outcome := simulate(seed)).faults] == []
