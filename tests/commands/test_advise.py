"""``advise``: the forecast as a table, and what it needs to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import invoke

from speclrm.app.advice import AdviceOptions, advise
from speclrm.app.known_costs import kept_costs
from speclrm.app.options import CalibrateOptions
from speclrm.app.presets import provenance
from speclrm.app.thresholds import pair_name
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.presets import EngineFit, Preset, presets_dir, write_preset
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.protocols import Role


def rows(*words: str) -> list[dict[str, Any]]:
    done = invoke("advise", "--json", *words, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return found


def test_the_map_has_a_row_for_each_placement_and_number_of_tracks_and_says_where_drafts_pay() -> None:
    found = rows("--tracks", "1,20", "--acceptance", "0.46,0.86")
    assert [row["tracks"] for row in found] == [1, 20] * 3
    for row in found:
        low, high = row["gains"].values()
        assert low < high
        assert (row["pays_from"] <= 0.46) == (low >= 1)
        assert (row["pays_from"] <= 0.86) == (high >= 1)
    own, sliced, mps = ([row["gains"]["0.86"] for row in found[start : start + 2]] for start in (0, 2, 4))
    assert own > mps > sliced
    done = invoke("advise", "--tracks", "20", cwd=Path.cwd())
    assert "one, by time slices" in done.stdout
    assert "one, by MPS (assumed)" in done.stdout


def test_to_the_end_of_the_slowest_track_drafts_pay_less_and_least_in_few_steps() -> None:
    steady, long, short = (
        rows("--tracks", "20", *more)[0] for more in ((), ("--token-budget", "8192"), ("--token-budget", "384"))
    )
    assert steady["gains"]["0.72"] > long["gains"]["0.72"] > short["gains"]["0.72"]
    assert steady["pays_from"] < long["pays_from"] < short["pays_from"]


def test_a_draft_that_is_as_slow_as_the_target_never_pays(tmp_path: Path) -> None:
    cost = EngineCost(0.02, 1e-5, 1e-9, 100_000)
    fits: Any = {"target": EngineFit(cost=cost), "draft": EngineFit(cost=cost)}
    write_preset(Preset(engines=fits), tmp_path / "equal.json")
    name = f"sim/{tmp_path}/equal.json"
    done = invoke("advise", "--target", name, "--draft", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "never" in done.stdout
    assert "as measured" in done.stdout


def test_a_pair_that_was_calibrated_on_this_machine_is_forecast_as_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(tmp_path))
    done = invoke("advise", "--target", "big", "--draft", "small", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "speclrm calibrate big --draft small" in done.stderr

    measured = provenance(read_machine(), CalibrateOptions(target="big", draft="small"))
    fits: Any = {
        "target": EngineFit(cost=EngineCost(0.02, 1e-5, 1e-9, 100_000), share=0.5),
        "draft": EngineFit(cost=EngineCost(0.002, 1e-6, 1e-9, 100_000), share=0.5),
    }
    preset = Preset(engines=fits, one_device=True, measured=measured)
    write_preset(preset, presets_dir() / f"{pair_name('big', 'small')}.json")
    costs = kept_costs("big", "small", read_machine())
    assert costs[Role.TARGET].slowdown == pytest.approx(1.0)
    found = advise(AdviceOptions(target="big", draft="small", tracks=(1,)))
    assert found.costs == "measured on this machine"
    assert [row.placement for row in found.rows] == ["as measured"]
    assert found.rows[0].gains[0.86] > 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--acceptance", "1.2"), "a share is 1 at most"),
        (("--acceptance", "many"), "write numbers above 0"),
        (("--tracks", "0"), "write whole numbers from 1"),
        (("--target", "sim/nothing"), "There is no simulated engine"),
        (("--draft", "a-real-one"), "Give two of one kind"),
    ],
)
def test_what_cannot_be_forecast_is_said_in_one_paragraph(words: tuple[str, ...], said: str) -> None:
    done = invoke("advise", *words, cwd=Path.cwd())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_simulated_engines_share_a_device_as_the_command_line_says(tmp_path: Path) -> None:
    words = ("run", "speculative", "--dataset", "sim:a70?size=1", "--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b")
    recipe = ("--speculate", "always", "--token-budget", "256", "--tracks", "5", "--display", "none")
    seconds: list[float] = []
    for number, more in enumerate([(), ("--shared-device", "--share-gpu", "mps"), ("--shared-device",)]):
        done = invoke(*words, *recipe, *more, "--output-dir", f"r{number}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        seconds.append(json.loads((tmp_path / f"r{number}" / "summary.json").read_text())["seconds"])
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == 3
