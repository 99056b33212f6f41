"""Several engines of a role from the command line, and the options of engines that fail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_runner import Done, invoke

from speclrm.runtime.events import RunStarted, StepDrafted
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from pathlib import Path

SIMULATED = ("--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b", "--dataset", "sim:a70?size=4")


def run(cwd: Path, *more: str) -> Done:
    budget = ("--tracks", "2", "--token-budget", "400", "--speculate", "always", "--display", "none")
    return invoke(
        *("run", "speculative", *SIMULATED, *budget, "--output-dir", "out", *more),
        cwd=cwd,
        SPECLRM_CACHE_DIR=str(cwd / "cache"),
        COLUMNS="200",
    )


def test_simulated_replicas_share_the_tracks(tmp_path: Path) -> None:
    done = run(tmp_path, "--target-replicas", "2", "--draft-replicas", "3")
    assert done.returncode == 0, done.stderr
    events = list(read_trace(tmp_path / "out" / "trace.jsonl"))
    first = events[0]
    assert isinstance(first, RunStarted)
    assert {role: facts.replicas for role, facts in first.engines.items()} == {"target": 2, "draft": 3}
    where = {one.engine for event in events if isinstance(event, StepDrafted) for one in event.operations}
    assert where == {"sim/r1-1.5b", "sim/r1-1.5b#2", "sim/r1-1.5b#3"}
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert (config["target_replicas"], config["engine_restarts"], config["max_errors"]) == (2, 3, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--target-replicas", "0"), "--target-replicas"),
        (("--engine-restarts", "-1"), "--engine-restarts"),
        (("--max-errors", "-1"), "--max-errors"),
        (("--target-replicas", "2", "--shared-device"), "--shared-device"),
    ],
)
def test_what_cannot_be_is_refused_in_one_paragraph_before_anything_is_made(
    given: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = run(tmp_path, *given)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
