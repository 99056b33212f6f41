"""Drafts as a table: what is in a row, which drafts share a context, and what a Parquet file keeps of it."""

from __future__ import annotations

from collections import Counter
from math import exp
from typing import TYPE_CHECKING, Any

import pytest
from support import PROBLEM, make_strategy, play

from speclrm.evaluators.export import export
from speclrm.evaluators.training_pairs import PairRow, pair_rows
from speclrm.runtime.engines.scripted import by_step

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.events import Event

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
WRITTEN = ["No.\n\n", "Then we think.\n\n", "It is \\boxed{5}."]


def events(**options: Any) -> list[Event]:
    played = play(
        make_strategy("speculative", tracks=2, **options),
        draft=by_step(STEPS),
        target=by_step(WRITTEN, scores=[9, 3, 8]),
        problems=[PROBLEM],
    )
    return played.collector.events


def test_a_row_has_draft_rewrite_score_and_outcome() -> None:
    rows = [row for row in pair_rows(events()) if row.track == next(iter(pair_rows(events()))).track]
    assert [row.fate for row in rows] == ["accepted", "rewritten", "accepted"]
    assert [row.score for row in rows] == [9, 3, 8]
    assert [row.draft for row in rows] == STEPS
    assert [row.rewrite for row in rows] == [None, WRITTEN[1], None]
    assert [row.context for row in rows] == ["", STEPS[0], STEPS[0] + WRITTEN[1]]
    for row in rows:
        assert row.digits is not None
        assert len(row.digits) == 10
        assert row.digits.index(max(row.digits)) == row.score
        assert sum(row.digits) == pytest.approx(row.mass)
        assert (row.problem_text, row.gold, row.outcome) == (PROBLEM.text, "4", "correct")
        assert (row.track_answer, row.agrees) == ("4", True)


def test_digits_are_the_probabilities_of_the_trace() -> None:
    scored = [event for event in events() if event.kind == "step_scored"]
    wanted = Counter(tuple(map(exp, event.digits)) for event in scored)
    assert Counter(row.digits for row in pair_rows(events())) == wanted


def test_drafts_share_a_context_if_prompt_and_steps_are_the_same() -> None:
    rows = list(pair_rows(events(methods=("A", "A"), duplicates=True)))
    contexts: dict[str, set[tuple[int, str]]] = {}
    for row in rows:
        contexts.setdefault(row.context_id, set()).add((row.step, row.context))
    assert all(len(found) == 1 for found in contexts.values())
    assert len(contexts) == 3  # the tracks are the same
    assert len({row.context_id for row in pair_rows(events(methods=("A", "B")))}) == 6


def test_a_sample_that_did_not_end_has_rows_without_an_outcome() -> None:
    whole = events()
    cut = next(place for place, event in enumerate(whole) if event.kind == "step_scored" and event.step == 1) + 1
    rows = list(pair_rows(whole[:cut]))
    assert {row.outcome for row in rows} == {None}
    assert Counter(row.fate for row in rows)["dropped"] >= 1
    assert len(rows) == sum(event.kind == "step_drafted" for event in whole[:cut])


def test_a_parquet_file_gives_the_rows_back(tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    wanted = list(pair_rows(events()))
    assert export(events(), tmp_path / "pairs.parquet", "pairs") == len(wanted)
    found = parquet.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [PairRow.model_validate(row) for row in found] == wanted
