"""Seeds of small runs in which things go wrong. Each names the command that runs it once more."""

from __future__ import annotations

import pytest
from simulation.cases import simulate

pytestmark = pytest.mark.timeout(180)

EACH = 10


def expect_nothing(first: int) -> None:
    for seed in range(first, first + EACH):
        outcome = simulate(seed)
        if outcome.faults:
            pytest.fail(str(outcome), pytrace=False)


@pytest.mark.parametrize("first", range(0, 150, EACH))
def test_nothing_is_lost_and_nothing_hangs_whatever_goes_wrong(first: int) -> None:
    expect_nothing(first)
