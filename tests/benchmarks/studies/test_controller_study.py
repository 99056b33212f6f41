"""`auto` against the better of its pure choices, in cells that lost before: a few seconds of simulated engines."""

from __future__ import annotations

import pytest

from speclrm.benchmarks.studies.controller import measure


@pytest.mark.parametrize("drafts", ["0.46", "0.86"])
def test_on_short_tracks_that_share_a_device_auto_is_as_good_as_the_better_choice(drafts: str) -> None:
    cell = measure(drafts, 5, shared=True, seeds=[0], budget=768)
    assert (cell.always > 1.3) == (drafts == "0.86")
    assert cell.auto >= 0.98
    assert cell.better >= 0.95
    assert cell.changes <= 6


@pytest.mark.parametrize("drafts", ["0.46", "0.86"])
def test_where_samples_follow_each_other_auto_finds_out_whether_drafts_pay(drafts: str) -> None:
    cell = measure(drafts, 20, shared=True, seeds=[0], budget=384, times=4)
    assert (cell.always > 1.1) == (drafts == "0.86")
    assert cell.auto >= 0.94  # in so short a run a sample more or less in the time that counts is 5 %
    assert cell.better >= 0.94
