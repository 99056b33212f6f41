"""The command line, as a user meets it: messages, exit codes, what goes where."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest
from cli_runner import ENVIRONMENT, speclrm, start

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text(
        '{"id": "one", "problem": "1+3?", "answer": "4"}\n{"id": "two", "problem": "2+3?", "answer": "5"}\n'
    )
    return file


def test_a_run_prints_its_figures_and_leaves_its_files(data: Path, tmp_path: Path) -> None:
    done = speclrm(
        *("run", "speculative", "--dataset", str(data), "--target", "t", "--draft", "d"),
        *("--output-dir", "out", "--display", "plain"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for part in (
        *("accuracy 50.0% of 2 samples", "18 drafted: 12 accepted", "6 rewritten", "kept", "judge 18", "3/3"),
        *("tokens draft target", "engine idle", "though a track was ready", "chains 6"),
    ):
        assert part in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "results.jsonl",
        "run.json",
        "run.lock",
        "summary.json",
        "trace.jsonl",
    ]
    assert "one/0: correct" in done.stderr


def test_json_on_stdout_is_json_and_nothing_else(data: Path, tmp_path: Path) -> None:
    done = speclrm(
        "run",
        "baseline",
        "--dataset",
        str(data),
        "--target",
        "t",
        "--display",
        "json",
        "--output-dir",
        "o",
        cwd=tmp_path,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["sample", "sample", "summary"]
    assert rows[-1]["accuracy"] == 0.5
    assert {row["outcome"] for row in rows[:2]} == {"correct", "wrong"}


def test_what_models_write_cannot_steer_the_terminal(data: Path, tmp_path: Path) -> None:
    done = speclrm(
        "run",
        "baseline",
        "--dataset",
        str(data),
        "--target",
        "t",
        "--display",
        "rich",
        "--output-dir",
        "o",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b[31m" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "spekulative", "--dataset", "D", "--target", "t"], "no strategy called 'spekulative'"),
        (["run", "speculative", "--dataset", "D", "--draft", "d"], "needs a target model"),
        (["run", "speculative", "--dataset", "D", "--target", "t"], "needs a draft model"),
        (["run", "speculative", "--dataset", "D", "--target", "t", "--draft", "d", "--score-threshold", "9.5"], "9.5"),
        (["run", "speculative", "--dataset", "D", "--target", "t", "--draft", "d", "--score-threshold", "hi"], "'hi'"),
        (
            ["run", "speculative", "--dataset", "D", "--target", "t", "--draft", "d", "--score-threshold", "auto"],
            "There is no calibration of t",
        ),
        (["run", "baseline", "--dataset", "none.jsonl", "--target", "t"], "no dataset 'none.jsonl'"),
        (["run", "baseline", "--dataset", "bad.jsonl", "--target", "t"], "bad.jsonl line 2: not JSON"),
        (["run", "baseline", "--dataset", "reasoning-gym:nothing", "--target", "t"], "no task 'nothing'"),
        (["run", "baseline", "--dataset", "D", "--target", "t", "--output-dir", "full"], "already holds another run"),
        (["run", "baseline", "--dataset", "D", "--target", "t", "--seed", "x"], "--seed 'x'"),
        (["run", "baseline", "--dataset", "D", "--target", "t", "--methods", "A,Q"], "no method is called Q"),
        (["calibrate", "t"], "needs a draft model"),
        (["models", "path", "smollm2-135m-instruct"], "is not here"),
        (["models", "path", "nothing-of-that-name"], "no model 'nothing-of-that-name'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    arguments: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"problem": "x"}\n{"problem": \n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "run.json").write_text("{}")
    done = speclrm(*[str(data) if word == "D" else word for word in arguments], cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_in_good_order(number: int, code: int, data: Path, tmp_path: Path) -> None:
    process = started(data, tmp_path)
    trace = tmp_path / "out" / "trace.jsonl"
    process.send_signal(number)
    process.send_signal(number)  # a second one changes nothing
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "ended by" in err
    kinds = [json.loads(line)["kind"] for line in trace.read_text().splitlines()]
    assert "step_committed" in kinds
    assert kinds[-1] == "run_finished"
    assert (tmp_path / "out" / "summary.json").exists()
    assert (tmp_path / "out" / "run.lock").read_text() == ""
    assert out == ""


def started(data: Path, folder: Path, *options: str, token_s: float = 0.05, **process: Any) -> subprocess.Popen[str]:
    """A run in ``out`` that has committed a step, and has some seconds to go."""
    arguments = ["run", "speculative", "--dataset", str(data), "--target", "t", "--draft", "d", "--output-dir", "out"]
    found = start(*arguments, *options, cwd=folder, environment=ENVIRONMENT, process=process, token_s=token_s)
    trace = folder / "out" / "trace.jsonl"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (trace.exists() and "step_committed" in trace.read_text()):
        time.sleep(0.05)
    return found


def test_a_run_that_was_told_to_outlive_its_terminal_does(data: Path, tmp_path: Path) -> None:
    process = started(
        data,
        tmp_path,
        token_s=0.02,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=40)
    assert process.returncode == 0, err


def test_a_terminal_that_is_closed_ends_the_run_as_a_signal_does(data: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = started(
        *(data, tmp_path, "--display", "rich"), stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=_own_terminal
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=20) == 128 + signal.SIGHUP
    assert '"kind":"run_finished"' in (tmp_path / "out" / "trace.jsonl").read_text().splitlines()[-1]


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("command", [["faults"], ["models", "list"], ["doctor"], ["doctor", "--json"]], ids=" ".join)
def test_what_a_full_disk_does_not_take_is_told_once(command: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "speclrm.cli", *command],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **ENVIRONMENT},
        )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("speclrm: The output cannot be read or written: No space left on device.")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_under_what_a_run_says_costs_the_run_nothing(data: Path, tmp_path: Path, stream: str) -> None:
    with open("/dev/full", "w") as full:
        process = started(
            *(data, tmp_path, "--display", "plain"),
            token_s=0.001,
            stdout=full if stream == "stdout" else subprocess.PIPE,
            stderr=full if stream == "stderr" else subprocess.PIPE,
        )
        _, err = process.communicate(timeout=40)
    assert process.returncode == (2 if stream == "stdout" else 0), err
    assert "Traceback" not in (err or "")
    if stream == "stdout":
        assert "speclrm: The output cannot be read or written: No space left on device." in err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "finished"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom speclrm.commands import program\n"
        "try:\n    program.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('vllm', 'torch', 'transformers', 'sympy', 'numpy', 'math_verify') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip().endswith("[]")


def test_calibration_keeps_a_threshold_that_a_run_then_uses(data: Path, tmp_path: Path) -> None:
    common = ["--draft", "d", "--dataset", str(data), "--score-method", "average", "--display", "none"]
    first = speclrm("calibrate", "t", *common, "--acceptance", "0.5", "--checks", "0", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "threshold   8.000 keeps 67%" in first.stdout
    second = speclrm("run", "speculative", "--target", "t", *common, "--score-threshold", "auto", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    run = next((tmp_path / "runs").iterdir())
    config = json.loads((run / "run.json").read_text())["config"]
    assert config["recipe"]["score_threshold"] == pytest.approx(8.0, abs=1e-6)


def test_a_threshold_of_likelihoods_is_kept_apart_from_a_judges(data: Path, tmp_path: Path) -> None:
    common = ["--draft", "d", "--dataset", str(data), "--scorer", "likelihood", "--display", "none"]
    run = ["run", "speculative", "--target", "t", *common, "--score-threshold", "auto"]
    early = speclrm(*run, cwd=tmp_path)
    assert early.returncode == 2
    assert "speclrm calibrate t --draft d --scorer likelihood" in early.stderr
    likelihoods = (-0.5, -2.0, -0.9)
    first = speclrm("calibrate", "t", *common, "--acceptance", "0.5", "--checks", "0", cwd=tmp_path, scores=likelihoods)
    assert first.returncode == 0, first.stderr
    assert "threshold   -0.900 keeps 67%" in first.stdout
    assert "of the judge" not in first.stdout
    second = speclrm(*run, cwd=tmp_path, scores=likelihoods)
    assert second.returncode == 0, second.stderr
    assert "nats a token on average, by likelihood" in second.stdout
    config = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())["config"]
    assert config["recipe"]["score_threshold"] == pytest.approx(-0.9, abs=1e-6)


def test_options_of_the_gate_reach_the_recipe_and_bad_ones_end_with_2(data: Path, tmp_path: Path) -> None:
    common = ["run", "speculative", "--target", "t", "--draft", "d", "--dataset", str(data), "--display", "none"]
    gate = ["--gate-sure", "-0.1", "--gate-doubt", "-2", "--gate-entropy", "1.5", "--gate-tokens", "8"]
    done = speclrm(*common, *gate, "--min-step-tokens", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "drafts kept and 0 left to the target unscored" in done.stdout
    recipe = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())["config"]["recipe"]
    assert [recipe[name] for name in ("gate_sure", "gate_doubt", "gate_entropy", "gate_tokens")] == [-0.1, -2, 1.5, 8]
    assert recipe["min_step_tokens"] == 4
    for wrong, message in (
        (["--gate-tokens", "8"], "give gate_doubt, too"),
        (["--scorer", "likelihood", "--score-threshold", "7"], "with scorer likelihood it is from -100 to 0"),
        (["--judge", "inline"], "Use --judge turn with this model"),  # the scripted engine writes a token a byte
    ):
        refused = speclrm(*common, *wrong, cwd=tmp_path)
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_doctor_examines_and_says_what_to_do(tmp_path: Path) -> None:
    done = speclrm("doctor", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert {"Python", "vLLM", "memory", "disk"} <= found.keys()
    assert "speclrm models pull" in found["model smollm2-135m-instruct"]["advice"]


def test_an_interrupt_while_the_program_is_loaded_ends_it_without_a_traceback() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this test runs in the background\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'speclrm.commands.program':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from speclrm import cli\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_what_the_data_do_not_say_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1+3?", "final": "4"}\n')
    arguments = ("run", "baseline", "--dataset", str(file), "--target", "t")
    for kind in ("plain", "json", "rich", "none"):
        done = speclrm(*arguments, "--output-dir", kind, "--display", kind, cwd=tmp_path)
        assert done.returncode == 0
        note, _, rest = done.stderr.partition("\n")
        assert note.startswith(f"note: {file}: every sample will be ungraded, because no row has a right answer in")
        assert "'question', 'final'" in note
        assert "note:" not in rest
    done = speclrm(*arguments, "--dry-run", "--answer-column", "final", cwd=tmp_path)
    assert "note:" not in done.stdout + done.stderr


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(tmp_path: Path, more: tuple[str, ...]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"output": "\\\\boxed{5}", "gold": "4"}\n' * 2_000)
    process = start("grade", str(file), *more, cwd=tmp_path, environment=ENVIRONMENT)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert said == ""


def test_an_error_names_what_was_given_and_nothing_that_was_not(data: Path, tmp_path: Path) -> None:
    done = speclrm("run", "baseline", "--dataset", str(data), "--target", "t", "--tracks", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "speclrm: Strategy baseline: tracks = 0: Input should be greater than or equal to 1.\n"
