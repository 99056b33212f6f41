"""The real pair, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from speclrm.evaluators.metrics import summarize
from speclrm.runtime.events import EVENT
from speclrm.runtime.models import store

if TYPE_CHECKING:
    from pathlib import Path

TARGET, DRAFT = "qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"


@pytest.mark.models
@pytest.mark.timeout(900)
def test_the_real_pair_drafts_scores_rewrites_and_is_graded(tmp_path: Path) -> None:
    for name in (TARGET, DRAFT):
        if store.find_local(name) is None:
            pytest.skip(f"{name} is not here: speclrm models pull {name}")
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "speclrm.cli",
                "run",
                "speculative",
                "--speculate",
                "always",
                "--target",
                TARGET,
                "--draft",
                DRAFT,
            ),
            *("--dataset", "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2", "--limit", "3"),
            *("--tracks", "3", "--token-budget", "128", "--max-step-tokens", "48", "--score-method", "average"),
            *("--score-threshold", "7.6", "--display", "json", "--output-dir", str(tmp_path / "run")),
        ],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["sample"] * 3 + ["summary"]
    summary = summarize(
        EVENT.validate_json(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()
    )
    assert summary.drafted >= 9
    assert summary.accepted + summary.rewritten > 0
    assert summary.digit_mass is not None
    assert summary.digit_mass > 0.9
    assert all(len(row.tracks) == 3 for row in summary.samples)
    assert not [track for row in summary.samples for track in row.tracks if track.reason == "error"]
    for counts in summary.tokens.values():
        assert counts.generated == counts.kept + counts.rejected + counts.dropped + counts.useless + counts.judge
