"""The seven commands of the original experiments, with the flags of its readme."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from cli_runner import invoke, speclrm

DATA = Path(__file__).parents[2].parent / "shared" / "data"
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


FLAGS = {
    "base_test": "--dataset_name math --token_budget 4096 --problem_id 0-99 --repeat_id 3 --model_name Qwen/QwQ-32B "
    "--output_dir out --tensor_parallel_size 4 --gpu_memory_utilization 0.8",
    "scale_reason": "--dataset_name math --token_budget 4096 --problem_id 0-99 --repeat_id 3 --model_name Qwen/QwQ-32B "
    "--output_dir out --tensor_parallel_size 4 --gpu_memory_utilization 0.8 --use_method_prompts --method_num 3",
    "spec_scale_reason": "--dataset_name math --score_threshold 5.0 --token_budget 4096 --problem_id 5 --repeat_id 2 "
    "--score_method average --output_dir out --tensor_parallel_size 4 --method_num 5 --fast 2",
    "spec_scale_reason_async": "--dataset_name math --score_threshold 5.0 --token_budget 4096 --problem_id 5 "
    "--num_repeats 2 --score_method average --output_dir out --tensor_parallel_size 4",
    "spec_scale_reason_2": "--dataset_name math --score_threshold 5.0 --token_budget 4096 --problem_id 5 --repeat_id 2 "
    "--score_method greedy --output_dir out --tensor_parallel_size 4 --method_num 5 --fast 1",
}
"""Every flag of the scripts' own parsers, over all their versions."""


@needs_data
@pytest.mark.parametrize("dashes", [False, True], ids=["underscores", "dashes"])
@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_of_the_scripts_is_taken_with_underscores_and_dashes(
    tmp_path: Path, name: str, dashes: bool
) -> None:
    words = [word.replace("_", "-") if dashes and word.startswith("--") else word for word in FLAGS[name].split()]
    command = name.replace("_", "-") if dashes else name
    done = speclrm(command, *words, "--data-dir", str(DATA), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = tomllib.loads(done.stdout)
    assert (settings["dataset"], settings["tensor_parallel_size"], settings["token_budget"]) == ("math500", 4, 4096)
    assert settings["target"] == "Qwen/QwQ-32B"
    assert "fast" not in FLAGS[name] or settings["fast"] in (1, 2)
    assert "--method_num 5" not in FLAGS[name] or settings["tracks"] == 5
    assert settings["repeats"] == (3 if name in ("base_test", "scale_reason") else 2)


@pytest.mark.parametrize(
    ("command", "strategy"), [("baseline_eval", "baseline"), ("spec-eval", "speculative")], ids=lambda value: value
)
def test_every_flag_of_the_evaluations_is_taken_and_none_is_needed(tmp_path: Path, command: str, strategy: str) -> None:
    folder = {"baseline_eval": "baseline_vllm_test", "spec-eval": "spec_scale_Inf"}[command]
    for name in ("base_test", "spec_scale_reason_2"):
        done = speclrm(
            *(name, "--dataset_name", "reasoning-gym:chain_sum", "--problem_id", "0", "--target", "org/QwQ-32B"),
            *("--output_dir", f"results/{folder}"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    for words in (
        "--dataset_name reasoning-gym:chain_sum",
        f"--dataset_name reasoning-gym:chain_sum --model_name qwq-32b --results_dir results/{folder}",
        "--dataset reasoning-gym:chain_sum --model-size 32b",
    ):
        found = speclrm(command, *words.split(), "--json", cwd=tmp_path)
        assert found.returncode == 0, found.stderr
        report = json.loads(found.stdout)
        assert [one["strategy"].partition("-")[0] for one in report["evaluations"]] == [strategy]
        assert "was asked for; left out: " in report["notices"][0]
    refused = speclrm(command, "--model_size", "1.5b", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "There are: " in refused.stderr


def test_results_are_added_to_a_folder_as_the_scripts_do(tmp_path: Path) -> None:
    for _ in range(2):
        done = speclrm(
            *("base-test", "--dataset-name", "reasoning-gym:chain_sum", "--problem-id", "0-1", "--model-name", "t"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    again = speclrm(
        *("base-test", "--dataset-name", "reasoning-gym:chain_sum", "--problem-id", "0", "--model-name", "o/t"),
        "--dry-run",
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert 'output_dir = "results/baseline_vllm_test/t/reasoning-gym:chain_sum/' in again.stdout
    found = speclrm("eval", "results", "--json", cwd=tmp_path)
    report = json.loads(found.stdout)
    (one,) = report["evaluations"]
    assert (len(one["runs"]), one["samples"], one["problems"]) == (2, 4, 2)
    assert any("same seed" in notice for notice in report["notices"])


def test_simulated_engines_solve_any_dataset_and_hold_its_answers_for_right(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(
        "".join(f'{{"id": "{n}", "problem": "x", "answer": "\\\\frac{{{n}}}{{1001}}"}}\n' for n in range(12))
    )
    done = invoke(
        *("spec_scale_reason", "--dataset_name", "own.jsonl", "--problem_id", "0-11"),
        *("--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b", "--token_budget", "200", "--method_num", "1"),
        *("--output_dir", "results", "--display", "none"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").glob("*/*/*")
    rows = [json.loads(row) for row in (folder / "results.jsonl").read_text().splitlines()]
    right = [row for row in rows if row["outcome"] == "correct"]
    assert {row["outcome"] for row in rows} == {"correct", "wrong"}
    assert all(row["answer"] == row["gold"] == f"\\frac{{{row['problem']}}}{{1001}}" for row in right)


@pytest.mark.parametrize("command", ["base_test", "spec_scale_reason"])
def test_models_that_cannot_run_here_are_told_with_one_that_can(tmp_path: Path, command: str) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"problem": "x", "answer": "1"}\n')
    done = invoke(
        *(command, "--dataset", str(data), "--problem_id", "1"),
        cwd=tmp_path,
        SPECLRM_CACHE_DIR=str(tmp_path),
        HF_HUB_OFFLINE="1",
        HOME=str(tmp_path),
    )
    assert done.returncode == 2, done.stderr
    assert "Qwen/QwQ-32B" in done.stderr
    assert "--target" in done.stderr or "qwen2.5-coder" in done.stderr
    assert "Traceback" not in done.stderr
