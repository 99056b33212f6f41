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
