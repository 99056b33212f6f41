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
        "tracks_moved": 0.25,
        "gain_on": 1.05,
        "hope_on": 1.1,
        "hysteresis": 0.05,
        "even": 0.02,
        "tail": 0.5,
        "accepted_prior": 0.6,
        "prior_verdicts": 8.0,
        "verdicts_max": 64.0,
        "hopeful": 0.95,
        "hope": 1.5,
        "probes": 6,
        "probe_share": 0.4,
        "probe_budget": 0.01,
        "probes_min": 4,
        "probe_steps": 16,
        "probe_worth": 20.0,
        "probe_again": 64,
        "look_again": 32,
        "changes_free": 4,
        "moved": 0.1,
        "outlier": 4.0,
        "eager_acceptance": 0.6,
        "eager_cost": 0.25,
    }


def test_nobody_changes_them_under_way() -> None:
    with pytest.raises(FrozenInstanceError):
        ControllerSettings().gain_on = 2.0  # type: ignore[misc]
