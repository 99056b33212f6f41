"""The commands of ``speclrm trace``."""

from __future__ import annotations

import csv
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from support import boxed, play
from typer.testing import CliRunner

from speclrm.app import trace_check
from speclrm.commands import program
from speclrm.evaluators.anomalies import AnomalyFold
from speclrm.evaluators.metrics import summarize
from speclrm.evaluators.report import write_reports
from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.protocols import Problem
from speclrm.runtime.trace.reader import read_run, read_trace
from speclrm.strategies.catalog import strategy

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

STEPS = ["First [bold]we[/bold] add.\n\n", "Then \x1b[31mwe look.\n\n", "So it is \\boxed{4}."]
PROBLEMS = [Problem("one", "What is two and two?", "4"), Problem("two", "What is three and one?", "5")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced") / "run"
    chosen = strategy("speculative", boxed, tracks=2, speculate="always")
    config: dict[str, JsonValue] = {"recipe": chosen.recipe.model_dump(mode="json")}
    engine = by_step(STEPS, scores=[9, 3, 8])
    play(chosen, target=engine, draft=by_step(STEPS), problems=PROBLEMS, directory=folder, config=config)
    write_reports(folder, summarize(read_run(folder)))
    return folder


def trace(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(program.app, ["trace", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_check_is_silent_about_a_good_run_and_fails_for_a_bad_one(run: Path, tmp_path: Path) -> None:
    assert "all is well" in trace("check", run)
    assert json.loads(trace("check", run, "--json"))["violations"] == []
    lines = (run / "trace.jsonl").read_text().splitlines(keepends=True)
    bad = tmp_path / "trace.jsonl"
    bad.write_text("".join(lines[:7] + lines[8:]))
    assert f"{bad}:8: seq: number 8 follows 6" in trace("check", bad, code=1)
    assert json.loads(trace("check", bad, "--json", code=1))["violations"][0]["line"] == 8


def test_a_path_without_a_trace_is_refused_with_what_to_give(tmp_path: Path) -> None:
    for command in ("check", "stats", "show", "anomalies", "tail"):
        assert "Give the folder of a run" in trace(command, tmp_path, code=2)


def test_show_reads_steps_scores_rejected_drafts_and_votes(run: Path) -> None:
    text = trace("show", run, "--problem", "one")
    for said in (
        "one, repeat 0",
        "What is two and two?",
        "First [bold]we[/bold] add.",
        "rejected draft, score 3.00",
        "rewrite, 19 tokens",
        "result: correct, answer 4",
        "leads",
    ):
        assert said in text
    assert "\x1b[31m" not in text  # the model's, not ours
    assert "two, repeat 0" not in text


def test_show_can_be_kept_to_a_track_or_a_kind(run: Path) -> None:
    names = [event.track for event in read_run(run) if event.kind == "track_started" and event.problem == "one"]
    text = trace("show", run, "--problem", "one", "--track", names[0])
    assert f"track {names[0]}" in text
    assert f"── track {names[1]}" not in text
    scores = trace("show", run, "--kind", "step_scored").splitlines()
    assert len(scores) == 12
    rows = [json.loads(line) for line in trace("show", run, "--kind", "step_scored", "--json").splitlines()]
    assert {row["kind"] for row in rows} == {"step_scored"}
    assert "nothing of that" in trace("show", run, "--problem", "none", code=2)


def test_stats_count_everything(run: Path) -> None:
    stats = json.loads(trace("stats", run, "--json"))
    size = (run / "trace.jsonl").stat().st_size
    assert stats["bytes"] == size
    assert stats["events"] == len((run / "trace.jsonl").read_text().splitlines())
    assert stats["kinds"]["step_committed"]["count"] == stats["steps"] == 12
    assert "step_scored" in trace("stats", run)


def test_tail_shows_the_last_events(run: Path) -> None:
    lines = trace("tail", run, "-n", 3).splitlines()
    assert len(lines) == 3
    assert "run_finished" in lines[-1]
    assert len(trace("tail", run, "-f", "-n", 2, "--json").splitlines()) == 2  # it has ended


@pytest.mark.parametrize("cut", [0, 40])
def test_following_sees_all_events_over_torn_lines_and_new_segments_up_to_the_end(
    run: Path, tmp_path: Path, cut: int
) -> None:
    lines = (run / "trace.jsonl").read_bytes().splitlines(keepends=True)
    live = tmp_path / "trace.jsonl"
    live.write_bytes(b"".join(lines[:5]))
    header = {"kind": "segment_started", "schema_version": 2, "run": json.loads(lines[0])["run"], "segment": 2}

    def write() -> None:
        with live.open("ab") as file:
            for line in lines[5:20]:
                file.write(line[:cut])
                file.flush()
                file.write(line[cut:])
                file.flush()
                time.sleep(0.002)
        live.rename(tmp_path / "trace.0001.jsonl")
        time.sleep(0.02)
        with live.open("ab") as file:
            file.write(json.dumps(header | {"seq": 20}, separators=(",", ":")).encode() + b"\n")
            file.writelines(lines[20:])

    writer = threading.Thread(target=write)
    writer.start()
    found = [placed.event.seq for placed in trace_check.follow(live, 3, lambda: time.sleep(0.001))]
    writer.join()
    assert found[-1] == len(lines) - 1
    assert found == list(range(found[0], len(lines)))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_steps_and_samples_are_exported(run: Path, tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")

    def rows(path: Path) -> list[dict[str, Any]]:
        if ending == "csv":
            with path.open(newline="") as file:
                return list(csv.DictReader(file))
        from pyarrow import parquet

        table: Any = parquet
        return table.read_table(path).to_pylist()

    steps = tmp_path / f"steps.{ending}"
    assert "12 steps" in trace("export", run, steps)
    found = rows(steps)
    assert [row["fate"] for row in found].count("rewritten") == 4
    rejected = next(row for row in found if row["fate"] == "rewritten")
    assert float(rejected["score"]) == 3.0
    assert rejected["draft"] == rejected["text"] == STEPS[1]
    samples = tmp_path / f"samples.{ending}"
    trace("export", run, samples, "--rows", "samples", "--problem", "two")
    (row,) = rows(samples)
    assert (row["problem"], row["outcome"], int(row["steps"])) == ("two", "wrong", 6)
    assert "not written over" in trace("export", run, samples, code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([steps.name, samples.name])


def test_a_table_of_another_kind_is_refused(run: Path, tmp_path: Path) -> None:
    assert ".csv or a .parquet" in trace("export", run, tmp_path / "steps.xlsx", code=2)
    assert not list(tmp_path.iterdir())


def test_anomalies_name_what_was_left_open_and_what_waited(run: Path, tmp_path: Path) -> None:
    lines = (run / "trace.jsonl").read_text().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if '"step_scored"' in line) + 1
    broken = tmp_path / "trace.jsonl"
    broken.write_text("".join(lines[:cut]))
    found = json.loads(trace("anomalies", broken, "--json"))
    assert not found["finished"]
    assert len(found["open_tracks"]) == 4
    assert "a rewrite, or the draft's keeping" in {one["awaits"] for one in found["open_tracks"]}
    assert "never left: 4 tracks" in trace("anomalies", broken)
    assert json.loads(trace("anomalies", run, "--json"))["open_tracks"] == []


def test_anomalies_tell_stalls_low_masses_and_retries(run: Path) -> None:
    fold = AnomalyFold(stall_s=5.0)
    late = 0.0
    for event in read_trace(run):
        if event.kind == "step_scored" and event.step == 1 and not late:
            event = event.model_copy(update={"mass": 0.01, "said": "well"})
            late = 10.0
        fold.add(event.model_copy(update={"t": event.t + late}))
    found = fold.anomalies()
    assert (found.low_masses, found.lowest_masses[0].said) == (1, "well")
    assert found.stalls == len(found.longest_stalls) == 4
    assert found.longest_stalls[0].before == "step_scored"
