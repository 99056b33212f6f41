"""Runs, traces and callers under attack, all drawn from seeds: what breaks is told with the seed that breaks it.

To attack for hours: ``make soak``. To attack once more as one seed does: ``python tests/soak.py --only cuts:17``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attack.callers import cancels, readers
from attack.cuts import cuts, ends
from attack.disks import disks

if TYPE_CHECKING:
    from pathlib import Path

    from attack.reports import Report


pytestmark = pytest.mark.timeout(120)


def expect_nothing(report: Report) -> None:
    if report.faults:
        pytest.fail(str(report), pytrace=False)


@pytest.mark.parametrize("seed", range(30))
def test_a_run_cut_anywhere_again_and_again_ends_as_if_it_had_not_been(seed: int, tmp_path: Path) -> None:
    expect_nothing(cuts(seed, tmp_path))


@pytest.mark.parametrize("seed", range(30))
def test_a_run_cancelled_or_left_by_its_engine_at_any_moment_goes_on(seed: int, tmp_path: Path) -> None:
    expect_nothing(ends(seed, tmp_path))


@pytest.mark.parametrize("seed", range(40))
def test_callers_that_give_up_at_any_turn_leave_nothing_behind(seed: int, tmp_path: Path) -> None:
    expect_nothing(cancels(seed, tmp_path))


@pytest.mark.parametrize("seed", range(12))
def test_a_slow_reader_keeps_nobody_waiting_and_loses_nothing(seed: int, tmp_path: Path) -> None:
    expect_nothing(readers(seed, tmp_path))


@pytest.mark.parametrize("seed", range(12))
def test_a_run_whose_disk_fails_waits_or_ends_in_good_order_and_goes_on(seed: int, tmp_path: Path) -> None:
    expect_nothing(disks(seed, tmp_path))
