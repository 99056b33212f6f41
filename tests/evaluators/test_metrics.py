from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_strategy, operation, play

from speclrm.evaluators.metrics import RunSummary, Summary, pass_at_k, summarize
from speclrm.evaluators.report import write_reports
from speclrm.runtime.engines.scripted import Reply, by_step
from speclrm.runtime.errors import RequestError
from speclrm.runtime.events import EVENT, OperationDropped, StepDrafted, StepScored, StepWritten
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.engine import Request
    from speclrm.runtime.events import Event, Operation

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
PROBLEMS = [Problem(f"p{number}", f"Problem {number}", "4") for number in range(4)]


def chance(seed: int) -> tuple[object, object]:
    """A pair of scripts in which anything may happen, by the seed and the request's id."""

    def draw(request: Request) -> random.Random:
        return random.Random(f"{seed}/{request.id}")

    def script(request: Request, prompt: str) -> Reply:
        dice = draw(request)
        if dice.random() < 0.03:
            return Reply(error=RequestError("chance"))
        if operation(request)[3] == "score":
            return Reply(score=dice.uniform(0, 9))
        text = dice.choice(
            ["word " * dice.randrange(1, 30) + "\n\n", "\n\n", "end", f"\\boxed{{{dice.randrange(3)}}}", "é" * 9]
        )
        return Reply(text * (5 if operation(request)[3] == "write" else 1), token_s=dice.random())

    return script, script


def costs(event: Event) -> tuple[Operation, ...]:
    match event:
        case StepDrafted() | StepScored() | StepWritten():
            return event.operations
        case OperationDropped():
            return (event.operation,)
        case _:
            return ()


@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["baseline", "speculative"]),
    fast=st.sampled_from([None, 1]),
    in_flight_max=st.sampled_from([None, 2]),
)
@settings(max_examples=40, deadline=None)
def test_every_generated_token_has_one_fate(seed: int, name: str, fast: int | None, in_flight_max: int | None) -> None:
    draft, target = chance(seed)
    played = play(
        make_strategy(name, tracks=3, token_budget=120, max_step_tokens=40, fast=fast),
        draft=draft,  # type: ignore[arg-type]
        target=target,  # type: ignore[arg-type]
        problems=PROBLEMS,
        in_flight_max=in_flight_max,
    )
    summary = summarize(played.collector.events)
    for role, engine in (("draft", played.draft), ("target", played.target)):
        assert engine is not None
        counts = summary.tokens.get(role)
        if counts is None:
            assert engine.stats().output_tokens == 0
            continue
        assert counts.generated == engine.stats().output_tokens
        assert counts.generated == counts.kept + counts.rejected + counts.dropped + counts.useless + counts.judge
        # Of a request that was given up before its first token nobody knows what was read.
        answered = {one.id for event in played.collector.events for one in costs(event) if one.prompt_tokens}
        assert counts.prompt == sum(len(one.prompt_ids) for one in engine.requests if one.id in answered)
    assert summary.accepted + summary.rewritten <= summary.drafted


def test_the_summary_of_the_trace_is_that_of_the_run(tmp_path: Path) -> None:
    played = play(
        make_strategy("speculative"),
        draft=by_step(STEPS),
        target=by_step(STEPS, scores=[9, 3, 8]),
        problems=PROBLEMS,
        directory=tmp_path / "run",
    )
    lines = (tmp_path / "run" / "trace.jsonl").read_text().splitlines()
    assert summarize(EVENT.validate_json(line) for line in lines) == summarize(played.collector.events)


def test_the_figures_of_a_small_run() -> None:
    played = play(
        make_strategy("speculative"),
        draft=by_step(STEPS),
        target=by_step(STEPS, scores=[9, 3, 8]),
        problems=PROBLEMS,
    )
    summary = summarize(played.collector.events)
    assert (summary.drafted, summary.accepted, summary.rewritten) == (36, 24, 12)
    assert summary.acceptance == pytest.approx(2 / 3)
    assert summary.accuracy == 1.0
    assert summary.outcomes == {"correct": 4}
    assert summary.scores == (0, 0, 0, 12, 0, 0, 0, 0, 12, 12)
    assert summary.tokens["target"].judge == 36
    assert summary.phases["score"].requests == 36
    assert summary.status == "finished"
    assert [row.votes for row in summary.samples] == [(("4", row.votes[0][1]),) for row in summary.samples]


def test_the_fold_can_be_asked_at_any_time() -> None:
    played = play(make_strategy("baseline"), target=by_step(STEPS), problems=PROBLEMS)
    fold = Summary()
    for event in played.collector.events:
        fold.add(event)
        assert isinstance(fold.summary(), RunSummary)


@pytest.mark.parametrize(
    ("samples", "correct", "k", "value"),
    [(9, 0, 3, 0.0), (9, 9, 1, 1.0), (4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 3, 1.0)],
)
def test_pass_at_k_is_unbiased(samples: int, correct: int, k: int, value: float) -> None:
    assert pass_at_k(samples, correct, k) == pytest.approx(value)


def test_pass_at_more_than_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@5 needs at least 5"):
        pass_at_k(4, 2, 5)


def test_reports_are_whole_files(tmp_path: Path) -> None:
    played = play(make_strategy("baseline"), target=by_step(STEPS), problems=PROBLEMS)
    summary = summarize(played.collector.events)
    write_reports(tmp_path, summary)
    write_reports(tmp_path, summary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.jsonl", "summary.json"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
    assert RunSummary.model_validate_json((tmp_path / "summary.json").read_text()).accuracy == 1.0
