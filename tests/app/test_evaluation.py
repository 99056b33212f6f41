"""Runs as they lie in folders: what is found, read, counted; and files of other tools, graded."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from cli_runner import speclrm
from support import PROBLEM, make_strategy, operation, play

from speclrm.app import evaluation
from speclrm.app.run_filter import Wanted
from speclrm.evaluators.metrics import summarize
from speclrm.runtime.engines.scripted import Reply, by_step
from speclrm.runtime.errors import ResultsError, TraceReadError
from speclrm.runtime.events import SCHEMA_VERSION
from speclrm.runtime.protocols import Problem
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.evaluators.evaluation import Evaluation
    from speclrm.runtime.engine import Request

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
CONFIG: dict[str, Any] = {
    "dataset": "own",
    "target": "org/Target-7B",
    "draft": None,
    "recipe": {},
    "reproduce_fault": [],
}


def make_run(folder: Path, answers: dict[tuple[str, int], str], *, name: str = "baseline", **config: Any) -> Path:
    """A run of ``baseline`` or ``speculative`` whose answer to each problem and repeat is given; the gold is 4."""

    def target(request: Request, prompt: str) -> Reply:
        problem, _, _, kind = operation(request)
        repeat = int(request.id.split("/")[1])
        if kind == "score":
            return Reply(score=9 if operation(request)[2] else 3)
        return Reply(f"Well.\n\n\\boxed{{{answers[problem, repeat]}}}")

    def draft(request: Request, prompt: str) -> Reply:
        problem, _, step, _ = operation(request)
        answer = answers[problem, int(request.id.split("/")[1])]
        return Reply(f"\\boxed{{{answer}}}") if step else Reply("Hm.\n\n")

    names = list(dict.fromkeys(problem for problem, _ in answers))
    play(
        make_strategy(name, tracks=1),
        target=target,
        draft=draft,
        problems=[Problem(problem, "?", "4") for problem in names],
        repeats=1 + max(repeat for _, repeat in answers),
        directory=folder,
        config={**CONFIG, **config},
    )
    return folder


def evaluate(folders: list[Path], **options: Any) -> list[Evaluation]:
    notices: list[str] = []
    notice = options.pop("notice", notices.append)
    rebuild = options.pop("rebuild", False)
    return asyncio.run(evaluation.evaluate_runs(folders, Wanted(**options), notice=notice, rebuild=rebuild))


ANSWERS = {("p", 0): "4", ("p", 1): "4.0", ("p", 2): "5", ("q", 0): "5", ("q", 1): "5", ("q", 2): "4"}


def test_an_evaluation_counts_repeats_pass_at_k_and_the_majority(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ANSWERS)
    (one,) = evaluate([tmp_path])
    # The scripted judge of the run compares texts, so 4.0 was graded wrong there; the majority knows that it is 4.
    assert [(r.correct, r.graded) for r in one.by_repeat] == [(1, 2), (0, 2), (1, 2)]
    assert one.accuracy == pytest.approx(2 / 6)
    assert one.pass_at == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3), 3: 1.0}
    assert one.majority == 0.5
    assert (one.solved, one.problems, one.samples) == (2, 2, 6)
    assert one.outcomes == {"correct": 2, "wrong": 4}


def test_speculation_is_told_by_steps_and_by_tracks(tmp_path: Path) -> None:
    make_run(tmp_path / "run", {("p", 0): "4"}, name="speculative")
    (one,) = evaluate([tmp_path])
    assert (one.acceptance, one.rewrite_rate, one.track_rewrite_rate) == (0.5, 0.5, 0.5)
    assert (one.scores[3], one.scores[9]) == (1, 1)
    for counts in one.tokens.values():
        assert (
            counts.generated
            == counts.kept + counts.rejected + counts.dropped + counts.useless + counts.judge + counts.choice
        )


def test_runs_of_one_configuration_are_taken_together_and_others_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "1", {("p", 0): "4"})
    make_run(tmp_path / "a" / "2", {("q", 0): "5"})
    make_run(tmp_path / "b", {("p", 0): "4"}, target="other")
    found = evaluate([tmp_path, tmp_path / "b"])
    assert [(one.target, len(one.runs), one.accuracy) for one in found] == [
        ("org/Target-7B", 2, 0.5),
        ("other", 1, 1.0),
    ]
    for wanted in ({"model": "target-7b"}, {"model": "org/Target-7B"}, {"model_size": "7B"}):
        notices: list[str] = []
        (only,) = evaluate([tmp_path], **wanted, notice=notices.append)
        assert only.target == "org/Target-7B"
        assert "was asked for; left out: baseline on own by other" in notices[-1]
    with pytest.raises(ResultsError, match=r"No run of own, third there\. There are: baseline on own by org/Target-7B"):
        evaluate([tmp_path], dataset="own", model="third")


def test_a_run_that_was_broken_off_is_evaluated_with_a_notice(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ANSWERS)
    trace = tmp_path / "run" / "trace.jsonl"
    whole = trace.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(whole) if b'"sample_finished"' in line)
    trace.write_bytes(b"".join(whole[:last]) + whole[last][:20])
    notices: list[str] = []
    (one,) = evaluate([tmp_path], notice=notices.append)
    assert one.samples == 5
    assert one.unfinished == (str(tmp_path / "run"),)
    assert f"line {last + 1}: torn" in notices[0]
    assert "did not end by itself" in notices[1]


def test_derived_files_that_are_missing_or_stale_are_told_of_and_written_anew_only_when_asked(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ANSWERS)
    rows = tmp_path / "run" / "results.jsonl"
    evaluate([tmp_path], rebuild=True)
    written = rows.read_text()
    told: list[str] = []
    evaluate([tmp_path], notice=told.append)
    assert not told
    for spoil in (lambda: rows.unlink(), lambda: rows.write_text(written.replace("correct", "wrong"))):
        spoil()
        left = rows.read_text() if rows.exists() else None
        told = []
        evaluate([tmp_path], notice=told.append)
        assert "--rebuild" in told[0]
        assert (rows.read_text() if rows.exists() else None) == left
        evaluate([tmp_path], notice=told.append, rebuild=True)
        assert "written anew" in told[1]
        assert rows.read_text() == written


def test_a_trace_reads_back_as_it_was_told(tmp_path: Path) -> None:
    played = play(make_strategy("baseline"), target=by_step(STEPS), problems=[PROBLEM], directory=tmp_path / "run")
    events = list(read_trace(tmp_path / "run" / "trace.jsonl"))
    assert events == played.collector.events
    assert summarize(events).accuracy == 1.0


def insert(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"{}\n", *lines[1:]]


def binary(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"\x00\xff\n"]


def headless(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


def newer(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(f'"schema_version":{SCHEMA_VERSION}'.encode(), b'"schema_version":99')]


def mistyped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"repeat":0', b'"repeat":"x"')]


def empty(lines: list[bytes]) -> list[bytes]:
    return []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (insert, "line 2: no event of a trace"),
        (binary, "line 2: no event of a trace"),
        (headless, "line 1: a trace begins with run_started, not with problem_started"),
        (newer, "by a newer SpecLRM (form 99"),
        (mistyped, "line 2: no event of a trace (problem_started.repeat"),
        (empty, "is empty: the run ended before anything was written"),
    ],
)
def test_a_broken_trace_is_named_by_file_and_line(tmp_path: Path, spoil: Any, message: str) -> None:
    make_run(tmp_path / "run", {("p", 0): "4"})
    trace = tmp_path / "run" / "trace.jsonl"
    trace.write_bytes(b"".join(spoil(trace.read_bytes().splitlines(keepends=True))))
    with pytest.raises((TraceReadError, ResultsError)) as caught:
        evaluation.read_run(tmp_path / "run")
    assert message in str(caught.value)
    assert str(trace) in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises((TraceReadError, ResultsError), match=r"Move .*run away|Remove it"):
        evaluate([tmp_path])


def test_folders_without_runs_and_with_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="There is no"):
        evaluation.find_runs([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="holds no run"):
        evaluation.find_runs([tmp_path / "empty"])
    make_run(tmp_path / "mixed" / "run", {("p", 0): "4"})
    (tmp_path / "mixed" / "60-0.pickle").write_bytes(b"cos\nsystem\n(S'touch was-here'\ntR.")
    with pytest.raises(ResultsError, match="loading a pickle runs whatever"):
        evaluation.find_runs([tmp_path / "mixed"])
    with pytest.raises(ResultsError, match="pickles, as the original scripts write them"):
        evaluation.find_runs([tmp_path / "mixed" / "60-0.pickle"])
    with pytest.raises(ResultsError, match="is a file"):
        evaluation.find_runs([tmp_path / "mixed" / "run" / "trace.jsonl"])


# --------------------------------------------------------------------------------------------------------------- the commands


def test_eval_prints_one_table_and_the_details(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one", ANSWERS)
    done = speclrm("eval", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (
        "baseline",
        "org/Target-7B",
        "33.3%",
        "6 of 2 problems",
        "2 correct, 4 wrong",
        "by repeat   0: 50.0% (1/2)",
    ):
        assert part in done.stdout
    done = speclrm("eval", "runs", "--dataset", "other", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "There are: baseline on own" in done.stderr
    assert "`speclrm eval runs`" in done.stderr


def test_the_table_and_the_details_of_eval_fit_in_100_columns(tmp_path: Path) -> None:
    for number in range(6):
        answers = {("p", repeat): "4" for repeat in range(8)}
        folder = tmp_path / "runs" / f"a-run-with-a-long-name-{number}"
        make_run(folder, answers, name="speculative" if number % 2 else "parallel", draft="org/Draft-with-name-1.5B")
    for columns in ("", "80", "300"):
        done = speclrm("eval", "runs", cwd=tmp_path, COLUMNS=columns)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 100
    assert "outcomes    " in done.stdout


def test_eval_tells_how_chains_compare_with_the_baseline(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", {("p", 0): "4"}, name="speculative", draft="org/Draft")
    make_run(tmp_path / "runs" / "b", {("p", 0): "4"})
    done = speclrm("eval", "runs", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    drafted, alone = json.loads(done.stdout)["evaluations"]
    assert alone["compared"] is None
    assert drafted["compared"] == {
        "to": "runs/b",
        "chain_length": pytest.approx(drafted["chain_length"] / alone["chain_length"]),
        "decode_flops": None,
        "all_flops": None,
        "refused": None,
    }
    done = speclrm("eval", "runs", cwd=tmp_path, COLUMNS="200")
    assert f"{drafted['chain_length']:.0f} ({drafted['compared']['chain_length']:.2f}x)" in done.stdout
    assert "ratios      to runs/b" in done.stdout


def test_eval_says_all_of_a_run_in_json(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "one", {("p", 0): "4", ("p", 1): "5"}, name="speculative")
    done = speclrm("eval", "--results-dir", "runs", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["evaluations"]
    assert one["by_repeat"] == [
        {"repeat": 0, "correct": 1, "graded": 1, "accuracy": 1.0},
        {"repeat": 1, "correct": 0, "graded": 1, "accuracy": 0.0},
    ]
    assert (one["accuracy"], one["pass_at"], one["majority"]) == (0.5, {"1": 0.5, "2": 1.0}, 0.5)
    assert one["outcomes"] == {"correct": 1, "wrong": 1}
    assert (one["acceptance"], one["rewrite_rate"], sum(one["scores"])) == (0.5, 0.5, 4)
    assert one["tokens"]["draft"]["rejected"] > 0
    assert one["tokens"]["target"]["judge"] == 4
    assert one["sample_seconds"] >= 0
    assert one["seconds"] >= 0


def test_eval_of_nothing_says_what_to_give(tmp_path: Path) -> None:
    done = speclrm("eval", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Give the --output-dir of a run" in done.stderr


ROWS = [
    {"id": "a", "output": "so \\boxed{\\frac{1}{2}}", "gold": "0.5"},
    {"id": "b", "output": "The answer is 3.", "gold": "4"},
    {"id": "c", "output": "no idea", "gold": "4"},
    {"id": "d", "output": "\\boxed{9^{9^{9^9}}}", "gold": "4"},
]


def test_grade_says_one_thing_a_row_in_order(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = speclrm("grade", "out.jsonl", "--text-column", "output", "--gold-column", "gold", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["outcome"] for row in rows] == ["correct", "wrong", "no_answer", "grader_failed"]
    assert [row["answer"] for row in rows[:3]] == ["\\frac{1}{2}", "3", None]
    assert [(row["row"], row["id"]) for row in rows] == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    plain = speclrm("grade", "out.jsonl", cwd=tmp_path)
    assert "4 rows: 1 correct, 1 wrong, 1 no_answer, 1 grader_failed; accuracy 25.0%" in plain.stdout


def test_rows_without_a_right_answer_are_named_and_do_not_count(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        {"id": "e", "output": "\\boxed{3}", "gold": ""},
        {"id": "f", "output": "no", "gold": None},
        ROWS[1],
    ]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = speclrm("grade", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "empty" in line] == [
        "row 2: ungraded: 'gold' is empty",
        "row 3: ungraded: 'gold' is empty",
    ]
    assert "4 rows: 1 correct, 1 wrong, 2 ungraded; accuracy 50.0% of 2 graded rows" in done.stdout
    done = speclrm("grade", "out.jsonl", "--json", cwd=tmp_path)
    graded = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["outcome"] for row in graded] == ["correct", "ungraded", "ungraded", "wrong"]
    assert (graded[1]["answer"], graded[1]["gold"]) == ("3", None)


def test_answers_alone_are_graded_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text('said,right\n1/2,0.5\n"1,000",1000\n,3\n')
    done = speclrm(
        *("grade", "out.csv", "--text-column", "said", "--gold-column", "right", "--answers-only", "--json"),
        cwd=tmp_path,
    )
    assert [json.loads(line)["outcome"] for line in done.stdout.splitlines()] == ["correct", "correct", "no_answer"]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ('{"output": "x"}\n', (), "line 1: no column 'gold'; the row has 'output'. Name the columns with"),
        ('{"output": "x", "gold": ""}\n' * 2, ("--json",), "no row was graded, because 'gold' is empty in each"),
        ('{"output": ["x"], "gold": "1"}\n', (), "line 1: 'output' is list, not text or a number"),
        ("", (), "holds no row"),
        ('{"output": "\\\\boxed{1}", "gold": "1"}\n{"output": "x"}\n', ("--json",), "line 2: no column 'gold'"),
    ],
)
def test_a_row_that_cannot_be_graded_is_named(
    tmp_path: Path, content: str, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "out.jsonl").write_text(content)
    done = speclrm("grade", "out.jsonl", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) is bool(arguments)  # what came before it is there
