"""``speclrm runs``: each run is a line, whatever became of it."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from cli_runner import speclrm

from speclrm.runtime.trace.run_directory import locked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data.jsonl").write_text(
        '{"id": "one", "problem": "1+3?", "answer": "4"}\n{"id": "two", "problem": "2+3?", "answer": "5"}\n'
    )
    words = ("--dataset", str(folder / "data.jsonl"), "--target", "t", "--repeats", "2", "--display", "none")
    for name, strategy in (("b", "baseline"), ("in/s", "speculative")):
        draft = ("--draft", "d") if strategy == "speculative" else ()
        done = speclrm("run", strategy, *words, *draft, "--output-dir", f"all/{name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "all", tmp_path / "all")
    return tmp_path


def rows(folder: Path) -> dict[str, dict[str, object]]:
    done = speclrm("runs", "all", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return {row["directory"].removeprefix("all/"): row for row in json.loads(done.stdout)["runs"]}


def test_a_run_is_listed_with_what_it_came_to(folder: Path) -> None:
    done = speclrm("runs", "all", cwd=folder)
    assert done.returncode == 0, done.stderr
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["run", "strategy", "models", "data", "status", "accuracy", "tokens", "time"]
    assert first.split()[:5] == ["b", "baseline", "t", "data.jsonl", "finished"]
    assert "50.0% (6% to 94%)" in first
    assert second.split()[:7] == ["in/s", "speculative", "t", "+", "d", "data.jsonl", "finished"]
    listed = rows(folder)
    summary = json.loads((folder / "all" / "in" / "s" / "summary.json").read_text())
    assert listed["in/s"]["tokens"] == {role: counts["generated"] for role, counts in summary["tokens"].items()}
    assert (listed["b"]["samples"], listed["b"]["wanted"]) == (4, 4)
    assert listed["b"]["reproducibility"] == "replay only"


def test_reports_that_are_missing_or_older_than_the_trace_are_not_what_is_listed(folder: Path) -> None:
    before = rows(folder)
    run = folder / "all" / "b"
    summary = run / "summary.json"
    summary.write_text(summary.read_text().replace('"accuracy": 0.5', '"accuracy": 0.75'))
    assert rows(folder)["b"]["accuracy"] == 0.75  # as long as nothing was written to the trace since
    later = summary.stat().st_mtime_ns + 10**9
    os.utime(run / "trace.jsonl", ns=(later, later))
    assert rows(folder) == before
    for name in ("summary.json", "results.jsonl"):
        (run / name).unlink()
        assert rows(folder) == before
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "run.lock", "trace.jsonl"]  # nothing is written


def test_a_run_that_did_not_end_is_broken_off_unless_a_process_holds_it(folder: Path) -> None:
    trace = folder / "all" / "b" / "trace.jsonl"
    trace.write_text("".join(trace.read_text().splitlines(keepends=True)[:-1])[:-20])
    assert rows(folder)["b"]["status"] == "broken off"
    with locked(folder / "all" / "b"):
        assert rows(folder)["b"]["status"] == "running"
    assert "broken off, 3 of 4 samples" in speclrm("runs", "all", cwd=folder).stdout


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"trace.jsonl": "no trace\n"}, "trace.jsonl line 1: no event of a trace"),
        ({"trace.jsonl": ""}, "the run ended before anything of it was written"),
        ({"run.json": "{", "trace.jsonl": None}, "the run ended before anything of it was written"),
        ({"run.json": '{"a": 1}', "trace.jsonl": None}, "run.json is not the record of a run"),
        ({"trace.jsonl": b"\xff\xfe\n"}, "trace.jsonl line 1"),
    ],
)
def test_a_broken_folder_is_one_line_and_the_others_stay(
    folder: Path, files: dict[str, str | bytes | None], said: str
) -> None:
    for name, content in files.items():
        path = folder / "all" / "b" / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    shutil.rmtree(folder / "all" / "b" / "summary.json", ignore_errors=True)
    done = speclrm("runs", "all", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    listed = rows(folder)
    assert listed["b"]["status"] == "broken"
    assert said[:30] in str(listed["b"]["error"])
    assert listed["in/s"]["status"] == "finished"


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    done = speclrm("runs", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no folder runs" in done.stderr
    (tmp_path / "runs").mkdir()
    assert "runs holds no run" in speclrm("runs", cwd=tmp_path).stderr
