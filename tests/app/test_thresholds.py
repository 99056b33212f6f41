"""What a judge's scores are worth, by hand, and what a calibration makes of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_runner import invoke
from support import Collector

from speclrm.app.calibrate import calibrate
from speclrm.app.options import CalibrateOptions
from speclrm.app.thresholds import auroc, calibration_error, judge_quality, pair_name
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.simulated.presets import read_preset
from speclrm.runtime.events import RunStarted

if TYPE_CHECKING:
    from pathlib import Path


def test_auroc_counts_pairs_and_halves_ties() -> None:
    assert auroc([(9, True), (8, True), (3, False)]) == 1.0
    assert auroc([(3, True), (8, False)]) == 0.0
    # Pairs: 5>3, 5=5, 7>3, 7>5.
    assert auroc([(5, True), (7, True), (3, False), (5, False)]) == 3.5 / 4
    assert auroc([(5, True), (7, True)]) is None
    assert auroc([]) is None


def test_calibration_error_weighs_the_distance_of_each_bin() -> None:
    assert calibration_error([(9, True), (0, False)]) == 0.0
    assert calibration_error([(9, False)] * 4) == 1.0
    # Two bins: half a step from its outcomes, and a whole one off.
    assert calibration_error([(4.5, True), (4.5, False), (9, False), (9, False)]) == pytest.approx(0.5)
    assert calibration_error([]) is None


def test_the_table_of_thresholds_says_what_each_keeps() -> None:
    quality = judge_quality((1.0, 4.0, 4.0, 8.5), [(4.0, True), (8.5, False)])
    kept = dict(quality.thresholds)
    assert (kept[0.0], kept[1.0], kept[1.5], kept[4.0], kept[4.5], kept[9.0]) == (1.0, 1.0, 0.75, 0.75, 0.25, 0.0)
    assert (quality.steps, quality.right, quality.auroc) == (2, 1, 0.0)


def test_names_of_models_make_a_name_of_a_file() -> None:
    assert pair_name("vllm/Qwen/QwQ-32B", "smollm2-135m-instruct") == "Qwen--QwQ-32B__smollm2-135m-instruct"


def test_the_runs_of_a_calibration_tell_the_display_their_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the time left has no bound: a track might go on for ever."""
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(tmp_path))
    options = CalibrateOptions(
        target="sim/qwq-32b", draft="sim/r1-1.5b", dataset="sim:a70", limit=2, checks=30, token_budget=200, quick=True
    )
    told = Collector()
    run_virtual(calibrate(options, sinks=[told]))
    recipes = [event.config["recipe"] for event in told.of(RunStarted)]
    assert len(recipes) >= 2
    assert all(isinstance(recipe, dict) and recipe["token_budget"] == 200 for recipe in recipes)


def test_a_preset_by_calibrate_is_taken_by_runs(tmp_path: Path) -> None:
    """Simulated engines calibrated, the preset used for engines and problems, and its costs those that it was made with."""
    line = "calibrate sim/qwq-32b --draft sim/r1-1.5b --quick --limit 2 --checks 0"
    line += " --token-budget 1024 --json --preset-file made.json"
    done = real_command(line, tmp_path)
    report = json.loads(done)
    assert report["kind"] == "calibration"
    assert {"threshold", "scores", "judge", "preset", "preset_file"} <= report.keys()
    preset = read_preset(str(tmp_path / "made.json"))
    assert preset.engines["target"].cost.w == pytest.approx(18.4e-3, rel=0.01)
    assert preset.engines["draft"].cost.w == pytest.approx(2.4e-3, rel=0.01)
    assert preset.world is not None
    assert preset.world.draft_step == pytest.approx(32, rel=0.3)
    assert preset.measured["draft"] == "sim/r1-1.5b"
    run = "run speculative --dataset sim:made.json?size=1 --target sim/made.json --draft sim/made.json --display none"
    real_command(f"{run} --score-threshold {report['threshold']} --output-dir out --token-budget 1024", tmp_path)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["acceptance"] == pytest.approx(report["acceptance"], abs=0.2)


def test_calibrate_with_a_preset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = invoke("calibrate", "sim/none", "--draft", "sim/r1-1.5b", cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no simulated engine 'sim/none'" in done.stderr


def real_command(line: str, cwd: Path) -> str:
    done = invoke(*line.split(), cwd=cwd, SPECLRM_CACHE_DIR=str(cwd / "cache"))
    assert done.returncode == 0, done.stderr
    return done.stdout
