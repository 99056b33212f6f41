"""Runs, traces and callers under attack, all drawn from seeds: what breaks is told with the seed that breaks it.

To attack for hours: ``make soak``. To attack once more as one seed does: ``python tests/soak.py --only cuts:17``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attack.cuts import cuts, ends

if TYPE_CHECKING:
    from pathlib import Path

    from attack.reports import Report


def expect_nothing(report: Report) -> None:
    if report.faults:
        pytest.fail(str(report), pytrace=False)


@pytest.mark.parametrize("seed", range(20))
def test_a_run_cut_anywhere_again_and_again_ends_as_if_it_had_not_been(seed: int, tmp_path: Path) -> None:
    expect_nothing(cuts(seed, tmp_path))


@pytest.mark.parametrize("seed", range(20))
def test_a_run_cancelled_or_left_by_its_engine_at_any_moment_goes_on(seed: int, tmp_path: Path) -> None:
    expect_nothing(ends(seed, tmp_path))
