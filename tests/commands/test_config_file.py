"""Flags, environment, file, defaults: which counts, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest
import typer
from cli_runner import speclrm
from typer.testing import CliRunner

from speclrm.commands import program

if TYPE_CHECKING:
    from pathlib import Path

BASE = ("run", "speculative", "--dataset", "reasoning-gym:chain_sum", "--limit", "1", "--target", "t", "--draft", "d")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "speclrm.toml"
    file.write_text(
        'token-budget = 300\nseed = 5\n\n[run]\nmax_step_tokens = 30\nmethods = ["A", "C"]\nclosing = false\n'
    )
    return file


def recorded(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())["config"]


def test_the_command_line_counts_before_the_environment_and_that_before_the_file(tmp_path: Path, config: Path) -> None:
    done = speclrm(
        *(*BASE, "--config", str(config), "--output-dir", "out", "--temperature", "0.1"),
        cwd=tmp_path,
        SPECLRM_TEMPERATURE="0.2",
        SPECLRM_TOKEN_BUDGET="400",
    )
    assert done.returncode == 0, done.stderr
    recipe = recorded(tmp_path / "out")["recipe"]
    assert isinstance(recipe, dict)
    assert recipe["temperature"] == 0.1  # the flag, not the environment
    assert recipe["token_budget"] == 400  # the environment, not the file
    assert recipe["max_step_tokens"] == 30  # the file's table for the command
    assert recipe["methods"] == ["A", "C"]
    assert recipe["closing"] is False
    assert recorded(tmp_path / "out")["seed"] == 5  # the file's own keys
    assert recipe["top_p"] == 0.95  # the default


def test_the_file_may_be_named_by_the_environment_and_an_original_command_reads_the_table_of_run(
    tmp_path: Path, config: Path
) -> None:
    done = speclrm(
        *("base_test", "--dataset_name", "reasoning-gym:chain_sum", "--problem_id", "0", "--model_name", "t"),
        cwd=tmp_path,
        SPECLRM_CONFIG=str(config),
        SPECLRM_OUTPUT_DIR="elsewhere",
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "elsewhere" / "t").glob("*/*")
    recipe = recorded(folder)["recipe"]
    assert isinstance(recipe, dict)
    assert (recipe["token_budget"], recipe["max_step_tokens"]) == (300, 30)


def test_a_dry_run_shows_settings_that_a_file_takes_and_first_prompts_and_leaves_nothing(tmp_path: Path) -> None:
    done = speclrm(*BASE, "--dry-run", "--token-budget", "77", "--methods", "B", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 2  # t is no model: a dry run checks what a run checks
    (tmp_path / "m").mkdir()
    done = speclrm(
        *("run", "speculative-methods", "--dataset", "reasoning-gym:chain_sum", "--limit", "1", "--token-budget", "77"),
        *("--target", "some/target", "--draft", "some/draft", "--dry-run", "--prompt-style", "raw"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "speculative-methods: 1 problems, 1 samples of each" in done.stdout
    for part in (
        "token_budget = 77",
        "# target, choosing methods:",
        "# draft, first step of track M1:",
        "Judge the last",
    ):
        assert part in done.stdout
    assert not list(tmp_path.glob("runs*"))
    settings = tmp_path / "again.toml"
    settings.write_text(done.stdout)
    again = speclrm("run", "speculative-methods", "--config", str(settings), "--dry-run", cwd=tmp_path)
    assert again.stdout == done.stdout, again.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("token_bugdet = 1", "there is no setting 'token_bugdet'. Close to it: token_budget"),
        ("[run]\ntoken_bugdet = 1", "[run] has no setting 'token_bugdet'. Close to it: token_budget"),
        ("[run]\nrisk = 0.05", "[run] has no setting 'risk'. It is one of calibrate."),
        ("[ruin]\nlimit = 1", "there is no command 'ruin'. There are:"),
        ("token_budget = ", "is not TOML"),
        ("seed = 2020-01-01", "seed is date, not text, a number, true or false"),
        ("token_budget = 'many'", "Invalid value for '--token-budget'"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(content)
    done = speclrm(*BASE, "--config", "bad.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_settings_of_other_commands_beside_the_tables_are_told_of_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "both.toml").write_text("risk = 0.05\nlimit = 1\n")
    done = speclrm(*BASE, "--config", "both.toml", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: --config both.toml has settings that `run` does not: risk (of calibrate)" in done.stderr


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    done = speclrm(*BASE, "--config", "none.toml", cwd=tmp_path)
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)


def test_engine_arguments_are_recorded_and_read_back(tmp_path: Path) -> None:
    speculation = '{"method": "ngram", "num_speculative_tokens": 3}'
    done = speclrm(
        *(
            *BASE,
            "--target-arg",
            "quantization=fp8",
            "--target-arg",
            "swap-space=2",
            "--draft-arg",
            "enforce_eager=false",
        ),
        *("--target-speculative-config", speculation, "--output-dir", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    config = recorded(tmp_path / "out")
    assert config["target_args"] == {
        "quantization": "fp8",
        "swap_space": 2,
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
    }
    assert config["draft_args"] == {"enforce_eager": False}
    (tmp_path / "args.toml").write_text('target_arg = ["a=1", "b=[1, 2]"]\n')
    done = speclrm(*BASE, "--config", "args.toml", "--output-dir", "again", cwd=tmp_path)
    assert recorded(tmp_path / "again")["target_args"] == {"a": 1, "b": [1, 2]}, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-arg", "quantization"), "write it as NAME=VALUE"),
        (("--draft-arg", "=3"), "write it as NAME=VALUE"),
        (("--target-speculative-config", "{"), "is not JSON"),
        (("--target-speculative-config", "3"), "must be a JSON object"),
    ],
)
def test_engine_arguments_that_are_none_are_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = speclrm(*BASE, *arguments, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def commands() -> dict[str, Any]:
    """Every command and the commands of commands, by what is typed."""
    found: dict[str, Any] = {}
    for name, command in cast("Any", typer.main.get_command(program.app)).commands.items():
        inner = getattr(command, "commands", {})
        found |= {f"{name} {part}": one for part, one in inner.items()} if inner else {name: command}
    return found


def test_each_command_has_help_with_a_sentence_for_each_option() -> None:
    runner = CliRunner()
    for name, command in commands().items():
        done = runner.invoke(program.app, [*name.split(), "--help"], env={"COLUMNS": "120"})
        assert done.exit_code == 0, name
        assert "Usage:" in done.output
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)


def test_each_option_of_each_command_is_an_environment_variable() -> None:
    for name, command in commands().items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.envvar == f"SPECLRM_{parameter.name.upper()}", (name, parameter.name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("speclrm base", ["base-test", "baseline-eval"]),
        ("speclrm spec_scale_reason_", ["spec-scale-reason-async", "spec-scale-reason-2"]),
        ("speclrm run spec", ["speculative", "speculative-methods", "specreason"]),
        ("speclrm base_test --dataset_name ai", ["aime", "aime25", "aime24"]),
        ("speclrm scale_reason --use_role", ["--use-role-prompts"]),
        ("speclrm run speculative --reproduce-fault two", ["two-loops"]),
    ],
)
def test_the_shell_completes_commands_options_and_names_also_as_the_scripts_write_them(
    tmp_path: Path, line: str, words: list[str]
) -> None:
    last = str(len(line.split()) - 1)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from speclrm import cli; sys.argv = ['speclrm']; cli.main()"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "_SPECLRM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": last},
    )
    assert done.stdout.split() == words, done.stderr
