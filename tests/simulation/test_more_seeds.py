"""More seeds, in a file of their own: files are what processes share."""

from __future__ import annotations

import pytest
from simulation.test_seeds import EACH, expect_nothing

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("first", range(150, 300, EACH))
def test_nothing_is_lost_and_nothing_hangs_whatever_goes_wrong(first: int) -> None:
    expect_nothing(first)
