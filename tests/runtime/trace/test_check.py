"""The checker finds each kind of corruption, and says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import boxed, play

from speclrm.app import trace_check
from speclrm.evaluators.metrics import summarize
from speclrm.evaluators.report import write_reports
from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.events import EngineFailed, EngineRecovered, RunResumed, RunStarted
from speclrm.runtime.protocols import Problem
from speclrm.runtime.trace.check import Checker
from speclrm.runtime.trace.reader import read_run
from speclrm.strategies.catalog import strategy

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue

    Lines = list[dict[str, Any]]

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
PROBLEMS = [Problem("one", "What is two and two?", "4"), Problem("two", "What is three and one?", "5")]
RECORDED = sorted((Path(__file__).parents[2] / "traces").glob("*.jsonl"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two samples with accepted, rewritten and scored steps, and its derived files."""
    chosen = strategy("speculative", boxed, tracks=3, speculate="always")
    config: dict[str, JsonValue] = {"recipe": chosen.recipe.model_dump(mode="json")}
    folder = tmp_path / "run"
    play(
        chosen,
        target=by_step(STEPS, scores=[9, 3, 8]),
        draft=by_step(STEPS),
        problems=PROBLEMS,
        directory=folder,
        config=config,
    )
    write_reports(folder, summarize(read_run(folder)))
    return folder


def test_a_good_run_has_no_violations(run: Path) -> None:
    report = trace_check.check(run)
    assert report.violations == ()
    assert report.unfinished == ()
    assert report.events > 50


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_traces_of_every_form_have_none(path: Path) -> None:
    assert trace_check.check(path).violations == ()


def first(lines: Lines, kind: str, **fields: Any) -> int:
    return next(
        number
        for number, line in enumerate(lines)
        if line["kind"] == kind and all(line[name] == value for name, value in fields.items())
    )


def change(kind: str, where: dict[str, Any] | None = None, **fields: Any) -> Callable[[Lines], int]:
    """Changes fields of the first such event; returns the line to be named."""

    def spoil(lines: Lines) -> int:
        number = first(lines, kind, **(where or {}))
        lines[number] |= fields
        return number + 1

    return spoil


def open_track(lines: Lines) -> int:
    del lines[first(lines, "track_finished")]
    for seq, line in enumerate(lines):
        line["seq"] = seq
    return first(lines, "sample_finished") + 1


def repeat(kind: str, **where: Any) -> Callable[[Lines], int]:
    """Has the first such event twice."""

    def spoil(lines: Lines) -> int:
        number = first(lines, kind, **where)
        lines.insert(number + 1, dict(lines[number]))
        for seq, line in enumerate(lines):
            line["seq"] = seq
        return number + 2

    return spoil


def gap(lines: Lines) -> int:
    del lines[20]
    return 21


def backwards(lines: Lines) -> int:
    lines[30]["t"] = 0.0
    return 31


def after_the_end(lines: Lines) -> int:
    lines.append(lines[-2] | {"seq": lines[-1]["seq"] + 1})
    return len(lines)


def late_step(lines: Lines) -> int:
    """A commit behind the end of its track."""
    number = first(lines, "track_finished")
    end = lines[number]
    commit = first(lines, "step_committed", problem=end["problem"], track=end["track"])
    lines.insert(number + 1, dict(lines[commit]) | {"t": end["t"]})
    for seq, line in enumerate(lines):
        line["seq"] = seq
    return number + 2


def same_operation(lines: Lines) -> int:
    one = first(lines, "step_drafted", step=0)
    track = {name: lines[one][name] for name in ("problem", "track")}
    other = first(lines, "step_drafted", step=1, **track)
    lines[other]["operations"][0]["id"] = lines[one]["operations"][0]["id"]
    return other + 1


def strange_operation(lines: Lines) -> int:
    number = first(lines, "step_scored")
    lines[number]["operations"][0]["id"] = "elsewhere/0/A1/0/score"
    return number + 1


def too_much_cached(lines: Lines) -> int:
    number = first(lines, "step_scored")
    lines[number]["operations"][0]["cached_tokens"] = 10**6
    return number + 1


def wrong_leader(lines: Lines) -> int:
    number = next(
        number for number, line in enumerate(lines) if line["kind"] == "vote_updated" and len(line["classes"][0]) > 1
    )
    line = lines[number]
    line["leader"] = next(name for name in line["classes"][0] if name != line["leader"])
    return number + 1


CORRUPTIONS: dict[str, tuple[str, Callable[[Lines], int]]] = {
    "an event is missing": ("seq", gap),
    "time goes back": ("time", backwards),
    "an event behind the run's end": ("closed", after_the_end),
    "a second head": ("order", repeat("run_started")),
    "a track started twice": ("track", repeat("track_started")),
    "a track finished twice": ("closed", repeat("track_finished")),
    "a track that was never started": ("track", change("step_drafted", track="Z9")),
    "a step behind its track's end": ("closed", late_step),
    "a step committed twice": ("fate", repeat("step_committed")),
    "a step of another number": ("step", change("step_committed", step=7)),
    "a draft without a number": ("step", change("step_drafted", step=5)),
    "a draft counted as written": ("fate", change("step_committed", origin="write")),
    "a commit of fewer tokens than ids": ("tokens", change("step_committed", tokens=1)),
    "a rewrite counted as a draft": ("fate", change("step_committed", {"origin": "rewrite"}, origin="draft")),
    "a track's tokens": ("tokens", change("track_finished", tokens=5)),
    "an operation twice": ("operation", same_operation),
    "an operation of another track": ("operation", strange_operation),
    "more cached than asked": ("operation", too_much_cached),
    "a vote by nobody": ("vote", change("vote_updated", classes=[["Z9"]], leader="Z9")),
    "a leader without a vote": ("vote", change("vote_updated", leader="Z9")),
    "a leader against the scores": ("vote", wrong_leader),
    "a winner against the vote": ("vote", change("sample_finished", winner="Z9")),
    "an answer that is not the winner's": ("vote", change("sample_finished", answer="17")),
    "an outcome without its answer": ("vote", change("sample_finished", outcome="no_answer")),
    "a track without an end": ("track", open_track),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_kind_of_corruption_is_found_with_its_line(run: Path, name: str) -> None:
    rule, spoil = CORRUPTIONS[name]
    trace = run / "trace.jsonl"
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    number = spoil(lines)
    trace.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    found = trace_check.check(trace).violations
    assert (rule, number) in [(one.rule, one.line) for one in found if one.path == str(trace)], found


@pytest.mark.parametrize("what", ["not json\n", '{"kind":"step_judged","seq":5}\n', '{"kind":"step_scored","seq":5}\n'])
def test_lines_that_are_no_events_are_named_and_the_rest_is_still_checked(run: Path, what: str) -> None:
    trace = run / "trace.jsonl"
    lines = trace.read_text().splitlines(keepends=True)
    lines[5] = what
    lines[-1] = lines[-1].replace('"finished"', '"finished","more":1')
    trace.write_text("".join(lines))
    found = [(one.rule, one.line) for one in trace_check.check(run).violations]
    assert ("unreadable", 6) in found
    assert ("unreadable", len(lines)) in found


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("results.jsonl", '"answer":"4"', '"answer":"5"', "answer is '5'; the trace gives '4'"),
        ("results.jsonl", '"steps":3', '"steps":4', "tracks is"),
        ("results.jsonl", '"problem":"two"', '"problem":"three"', "sample three/0 is not finished in the trace"),
        ("summary.json", '"drafted": 18', '"drafted": 19', "drafted is 19; the trace gives 18"),
        ("summary.json", '"rejected": ', '"rejected": 9', "draft tokens rejected is 9"),
        ("summary.json", '"tokens"', '"tokes"', "no summary of a run"),
    ],
)
def test_derived_files_that_say_something_else_are_named(run: Path, name: str, old: str, new: str, said: str) -> None:
    path = run / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert [one for one in trace_check.check(run).violations if said in one.text and one.path == str(path)]


def test_a_run_that_did_not_end_is_said_and_no_violation(run: Path) -> None:
    trace = run / "trace.jsonl"
    lines = trace.read_text().splitlines(keepends=True)
    for count in range(1, len(lines)):
        trace.write_text("".join(lines[:count]))
        report = trace_check.check(run)
        assert report.violations == ()
        assert report.unfinished[0] == "the run did not end"


def test_the_checker_knows_nothing_of_the_runtime_but_its_events() -> None:
    folder = Path(trace_check.__file__).parents[1] / "runtime" / "trace"
    lines = [line for name in ("check", "checked_samples") for line in (folder / f"{name}.py").read_text().splitlines()]
    imported = {line.split()[1] for line in lines if line.lstrip().startswith(("from speclrm", "import speclrm"))}
    assert imported == {"speclrm.runtime.events", "speclrm.runtime.trace.checked_samples"}


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_row_of_results_ends_at_the_end_of_its_line_alone(tmp_path: Path, character: str) -> None:
    write = by_step(["First we add.\n\n", f"So it is \\boxed{{x {character}= 5}}."])
    problem = Problem(f"s{character}1", f"What is{character} 2 + 3?", f"x {character}= 5")
    play(strategy("baseline", boxed), target=write, problems=[problem], directory=tmp_path / "run")
    summary = summarize(read_run(tmp_path / "run"))
    assert character in (summary.samples[0].answer or "")
    write_reports(tmp_path / "run", summary)
    assert trace_check.check(tmp_path / "run").violations == ()


STARTED: dict[str, Any] = {"started": "", "config": {}, "versions": {}, "machine": {}}


def engines(*events: EngineFailed | EngineRecovered | RunResumed) -> list[str]:
    """What the checker says of a trace with these events."""
    checker = Checker()
    checker.add("trace", 1, RunStarted(seq=0, run="r", **STARTED))  # type: ignore[arg-type]
    for number, event in enumerate(events, 1):
        checker.add("trace", number + 1, event.model_copy(update={"seq": number}))
    return [violation.text for violation in checker.report().violations if violation.rule == "engine"]


def test_an_engine_fails_and_works_again_by_turns() -> None:
    failed, back = EngineFailed(engine="e", error="x"), EngineRecovered(engine="e", down_s=1.0)
    other = EngineFailed(engine="f", error="x")
    resumed = RunResumed(attempt=1, **STARTED)
    later = EngineFailed(attempt=1, engine="e", error="x")
    assert engines(failed, other, back, failed, back) == []
    assert engines(failed, resumed, later) == []
    assert engines(failed, failed) == ["e failed a second time without having worked again"]
    assert engines(other, back) == ["e works again, though it had not failed"]
