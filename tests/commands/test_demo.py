"""The demonstration on scripted engines."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from cli_runner import speclrm

from speclrm.app.demo import _Drafts  # pyright: ignore[reportPrivateUsage]
from speclrm.runtime.events import StepCommitted, StepDrafted, StepScored, StepWritten

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demonstration_calibrates_runs_both_ways_and_says_which_was_faster(tmp_path: Path) -> None:
    models = ("--target", "t", "--draft", "d", "--limit", "2", "--tracks", "2")
    done = speclrm("demo", "--output-dir", "out", "--display", "none", *models, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for part in ("threshold", "d drafts where it pays", "t alone, as many tracks at once", "On this machine"):
        assert part in said
    # The scripted target always says 4, so nothing can be promised, and that is said.
    assert "threshold none: too few problems for a promise: the target alone solved 0 of 16" in said
    assert "`--score-threshold auto` would not draft with this pair: no threshold is safe." in said
    assert re.search(r"drafted and scored (\d+) steps on other problems: \d+ were kept and \d+ rewritten", said)
    # Quick runs are repeated in the other order.
    assert re.search(r"auto +\S+ s and \S+ s, accuracy", done.stdout)
    written = [tmp_path / "out" / name for name in ("speculative", "baseline", "baseline-2", "speculative-2")]
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)
    began = [json.loads((folder / "run.json").read_text())["started"] for folder in written]
    assert began == sorted(began)
    # Then what a GPU gives, simulated: six rows with a speed-up each.
    table = done.stdout[done.stdout.index("measured on an H200") :]
    assert len(re.findall(r"\d\.\d\dx", table)) == 6
    assert "one, by time slices" in table


def test_a_drafted_step_whose_score_was_refused_is_counted_and_no_example() -> None:
    drafts = _Drafts()
    where: dict[str, Any] = {"problem": "p", "repeat": 0, "track": "M1"}
    for number, scored in enumerate((True, False)):
        drafts.emit(StepDrafted(**where, step=number, text="a draft" + "!" * number, ids=(1,), operations=()))
        if scored:
            drafts.emit(StepScored(**where, step=number, value=3.0, mass=1.0, digits=(), operations=()))
        text = f"instead of {number}, and longer"
        drafts.emit(StepWritten(**where, step=number, write_kind="rewrite", text=text, ids=(2,), operations=()))
        drafts.emit(StepCommitted(**where, step=number, origin="rewrite", tokens=1, score=9.0))
    found = drafts.found
    assert (found.kept, found.rewritten) == (0, 2)
    assert [(one.text, one.score, one.instead) for one in found.examples] == [
        ("a draft", 3.0, "instead of 0, and longer")
    ]
