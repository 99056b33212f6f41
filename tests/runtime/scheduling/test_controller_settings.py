"""The numbers that the controller decides by. Changing one is a decision: the tables of docs/scheduling.md follow from them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict

import pytest

from speclrm.runtime.scheduling.controller_settings import ControllerSettings


def test_each_number_is_the_one_that_the_published_tables_were_made_with() -> None:
    assert asdict(ControllerSettings()) == {
        "look_s": 0.25,
        "look_iterations": 16,
        "decide_s": 1.0,
        "moved": 0.25,
        "margin": 0.05,
        "change_steps": 1.0,
        "tail": 0.8,
        "accepted_prior": 0.6,
        "prior_verdicts": 3.0,
        "verdicts_others": 8.0,
        "verdicts_max": 64.0,
        "favour": 0.5,
        "stay": 1.5,
        "crowd": 32,
        "hope": 1.2,
        "hope_gain": 0.3,
        "probes": 8,
        "probe_tracks": 0.2,
        "probe_share": 0.01,
        "try_again": 64,
    }


def test_nobody_changes_them_under_way() -> None:
    with pytest.raises(FrozenInstanceError):
        ControllerSettings().margin = 2.0  # type: ignore[misc]
