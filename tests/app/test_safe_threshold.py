"""Which threshold can be promised: by hand, on seeds of simulated worlds, and by the command."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cli_runner import Done, invoke

from speclrm.app.safe_threshold import Promise, candidates, find_promise, lost_max, problems_min, upper_bound
from speclrm.benchmarks.studies.safe_threshold import WORLDS, row
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.presets import EngineFit, Preset, write_preset

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.engines.simulated.text_world import WorldSettings


@pytest.mark.parametrize(
    ("lost", "problems", "confidence", "bound"),
    [
        # No loss: 1 - (1 - confidence)^(1/n). One of two: p with p^2 = confidence.
        (0, 10, 0.9, 1 - 0.1 ** (1 / 10)),
        (1, 2, 0.81, 0.9),
        (3, 3, 0.9, 1.0),
        (0, 0, 0.9, 1.0),
        (5, 100, 0.95, 0.102253),  # tables of Clopper and Pearson: the two-sided 90 % limit
    ],
)
def test_the_bound_is_that_of_clopper_and_pearson(lost: int, problems: int, confidence: float, bound: float) -> None:
    assert upper_bound(lost, problems, confidence) == pytest.approx(bound, abs=1e-5)


def test_as_many_problems_are_needed_as_show_the_risk_without_a_loss() -> None:
    assert (problems_min(0.05, 0.9), problems_min(0.1, 0.9), problems_min(0.5, 0.75)) == (45, 22, 2)
    assert lost_max(44, 0.05, 0.9) is None
    assert (lost_max(45, 0.05, 0.9), lost_max(77, 0.05, 0.9), lost_max(78, 0.05, 0.9)) == (0, 1, 1)
    for problems in (45, 80, 200):
        allowed = lost_max(problems, 0.05, 0.9)
        assert allowed is not None
        assert upper_bound(allowed, problems, 0.9) <= 0.05 < upper_bound(allowed + 1, problems, 0.9)


def test_thresholds_are_tried_from_the_strictest_to_the_one_that_keeps_all() -> None:
    assert candidates([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.0) == [9, 7, 5, 3, 0.0]
    assert candidates([4.0, 4.0, 4.0], 0.0) == [4.0, 0.0]
    assert candidates([-0.5], -100.0) == [-0.5, -100.0]


def found(losses: dict[float, int], *, solved: int = 60, asked: int = 80) -> tuple[Promise, list[float]]:
    """What comes of thresholds that lose so many answers, and which of them were tried."""
    tried: list[float] = []

    async def attempt(threshold: float, allowed: int) -> tuple[int, int]:
        tried.append(threshold)
        lost = losses[threshold]
        return (solved, lost) if lost <= allowed else (allowed + 5, allowed + 1)

    thresholds = sorted(losses, reverse=True)
    return asyncio.run(find_promise(thresholds, attempt, asked=asked, solved=solved, risk=0.05, confidence=0.9)), tried


def test_the_last_threshold_before_the_first_that_loses_too_much_is_taken() -> None:
    promise, tried = found({9.0: 0, 8.0: 0, 7.0: 3, 0.0: 0})
    assert (promise.threshold, tried) == (8.0, [9.0, 8.0, 7.0])  # what comes after a failure may not be tried any more
    assert "at most 5.0% of the target's right answers lost, with 90% confidence (0 of 60 were)" in promise.reason
    assert [(trial.threshold, trial.problems, trial.lost) for trial in promise.trials] == [
        (9.0, 60, 0),
        (8.0, 60, 0),
        (7.0, 5, 1),
    ]
    assert promise.trials[0].bound == pytest.approx(1 - 0.1 ** (1 / 60))


def test_where_even_the_strictest_loses_too_much_there_is_none() -> None:
    promise, tried = found({9.0: 30, 0.0: 60})
    assert (promise.threshold, tried) == (None, [9.0])
    assert promise.reason.startswith(
        "no threshold is safe for this pair: even at 9.000, the strictest, drafts lost 1 of 5 answers"
    )


def test_too_few_problems_promise_nothing_and_nothing_is_drafted_for_them() -> None:
    promise, tried = found({9.0: 0}, solved=44)
    assert (promise.threshold, tried) == (None, [])
    assert "the target alone solved 44 of 80" in promise.reason
    assert "it takes 45 to show at most 5.0% of the target's right answers lost" in promise.reason


# One in ten may lose more than was promised. If it were just so many, 9 or more of 40 would have a probability of 1.6 %.
@pytest.mark.parametrize("name", ["a good judge", "losses as large as the risk"])
def test_what_is_promised_holds_on_problems_that_were_not_seen(name: str) -> None:
    told = row(WORLDS[name], range(40), 0.05, 0.9, 80)
    assert told.found > 0.2
    assert told.lost <= 0.05
    assert told.over <= 0.2
    assert told.far <= 0.1


def test_a_judge_that_hardly_tells_is_promised_nothing_but_by_chance() -> None:
    assert row(WORLDS["a judge that hardly tells"], range(20), 0.05, 0.9, 80).found <= 0.05


def calibrated(settings: WorldSettings, folder: Path) -> tuple[Done, Done]:
    """The command on a world in which drafts pay, and a run with the threshold that it kept."""
    cost = EngineCost(w=0.02, p=1e-5, k=1e-9, kv_tokens=200_000)
    fits = {"target": EngineFit(cost=cost), "draft": EngineFit(cost=replace(cost, w=0.002))}
    write_preset(Preset(engines=fits, world=settings), folder / "world.json")  # type: ignore[arg-type]
    common = ("--draft", "sim/world.json", "--dataset", "sim:world.json?size=100", "--display", "none")
    cache = str(folder / "cache")
    calibration = invoke(
        *("calibrate", "sim/world.json", *common, "--quick", "--json", "--token-budget", "400"),
        cwd=folder,
        SPECLRM_CACHE_DIR=cache,
    )
    auto = ("--score-threshold", "auto", "--score-method", "average", "--limit", "4", "--output-dir", "out")
    run = invoke(
        "run", "speculative", "--target", "sim/world.json", *common, *auto, cwd=folder, SPECLRM_CACHE_DIR=cache
    )
    return calibration, run


def test_the_command_keeps_a_promise_that_a_run_states(tmp_path: Path) -> None:
    calibration, run = calibrated(WORLDS["a good judge"], tmp_path)
    assert calibration.returncode == 0, calibration.stderr
    told = json.loads(calibration.stdout)
    assert told["threshold"] == told["promise"]["threshold"] is not None
    assert told["promise"]["solved"] >= 45
    assert told["promise"]["asked"] == 80
    assert run.returncode == 0, run.stderr
    assert f"score threshold {told['threshold']:.3f}: at most 5.0% of the target's right answers lost" in run.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["drafted"] > 0


def test_where_no_threshold_is_safe_the_command_says_so_and_auto_does_not_draft(tmp_path: Path) -> None:
    settings = replace(WORLDS["a judge that hardly tells"], harm=1.0)
    calibration, run = calibrated(settings, tmp_path)
    assert calibration.returncode == 0, calibration.stderr
    told = json.loads(calibration.stdout)
    assert (told["threshold"], told["acceptance"]) == (None, 0.0)
    assert told["promise"]["reason"].startswith("no threshold is safe for this pair")
    assert run.returncode == 0, run.stderr
    assert "no step is drafted: no threshold is safe for this pair" in run.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["drafted"], set(summary["tokens"])) == (0, {"target"})
