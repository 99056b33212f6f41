"""The seven commands of the original experiments, with the flags of its readme."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake import speclrm

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the benchmarks' rows are not in {DATA}")

AIME = "--dataset_name aime --problem_id 60-89 --repeat_id 3"
SPECULATE = "--score_threshold 7.0 --token_budget 8192 --score_method greedy"
SOLVING = {
    "base_test": (
        f"base_test {AIME} --model_name Qwen/QwQ-32B --output_dir results/baseline_vllm_test",
        "baseline",
        ["M1"],
    ),
    "scale_reason": (
        f"scale_reason {AIME} --model_name Qwen/QwQ-32B --output_dir results/scale_reason --use_role_prompts",
        "parallel",
        ["R1.1", "R2.2", "R3.3"],
    ),
    "spec_scale_reason": (
        f"spec_scale_reason {AIME} --output_dir results/spec_scale_Inf {SPECULATE}",
        "speculative",
        None,
    ),
    "spec_scale_reason_async": (
        "spec_scale_reason_async --dataset_name aime --problem_id 60-89 --num_repeats 3 "
        f"--output_dir results/asyn_spec_scale {SPECULATE}",
        "speculative",
        None,
    ),
    "spec_scale_reason_2": (
        f"spec_scale_reason_2 {AIME} --output_dir results/spec_scale_m {SPECULATE} --method_num 3",
        "speculative-methods",
        None,
    ),
}


@needs_data
@pytest.mark.parametrize("name", SOLVING)
def test_a_whole_benchmark_three_times_with_the_flags_of_the_readme(tmp_path: Path, name: str) -> None:
    line, strategy, tracks = SOLVING[name]
    done = speclrm(*line.split(), "--data-dir", str(DATA), "--display", "none", cwd=tmp_path, token_s=0.0)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").glob("*/QwQ-32B/aime/*")
    rows = [json.loads(row) for row in (folder / "results.jsonl").read_text().splitlines()]
    assert sorted((int(row["problem"]), row["repeat"]) for row in rows) == [
        (p, r) for p in range(60, 90) for r in range(3)
    ]
    config = json.loads((folder / "run.json").read_text())["config"]
    assert (config["strategy"], config["target"]) == (strategy, "Qwen/QwQ-32B")
    assert config["draft"] == ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B" if "speculative" in strategy else None)
    assert (config["recipe"]["score_threshold"], config["recipe"]["token_budget"]) == (7.0, 8192)
    if tracks:
        assert [track["track"] for track in rows[0]["tracks"]] == tracks

    command, model = ("baseline_eval", "QwQ-32B") if config["draft"] is None else ("spec_eval", "QwQ-32b")
    found = speclrm(
        *(command, "--dataset_name", "aime", "--model_name", model, "--results_dir", str(folder.parents[2]), "--json"),
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    (one,) = json.loads(found.stdout)["evaluations"]
    assert (one["samples"], one["problems"], sorted(one["pass_at"])) == (90, 30, ["1", "2", "3"])
    assert [repeat["graded"] for repeat in one["by_repeat"]] == [30, 30, 30]


def test_results_are_added_to_a_folder_as_the_scripts_do(tmp_path: Path) -> None:
    for _ in range(2):
        done = speclrm(
            *("base-test", "--dataset-name", "reasoning-gym:chain_sum", "--problem-id", "0-1", "--model-name", "t"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    found = speclrm("eval", "results", "--json", cwd=tmp_path)
    report = json.loads(found.stdout)
    (one,) = report["evaluations"]
    assert (len(one["runs"]), one["samples"], one["problems"]) == (2, 4, 2)
    assert any("same seed" in notice for notice in report["notices"])


@pytest.mark.parametrize("command", ["base_test", "spec_scale_reason"])
def test_models_that_cannot_run_here_are_told_with_one_that_can(tmp_path: Path, command: str) -> None:
    import subprocess
    import sys

    data = tmp_path / "d.jsonl"
    data.write_text('{"problem": "x", "answer": "1"}\n')
    done = subprocess.run(
        [sys.executable, "-m", "speclrm.cli", command, "--dataset", str(data), "--problem_id", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "SPECLRM_CACHE_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 2, done.stderr
    assert "Qwen/QwQ-32B" in done.stderr
    assert "--target" in done.stderr or "qwen2.5-coder" in done.stderr
    assert "Traceback" not in done.stderr
