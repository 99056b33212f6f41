"""A recorded run, played again, is the same run; and what-if says how far the record reaches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from again import Setup, cut, decisions, lines_of, read_all, simulated, world
from cli_runner import Done, invoke, speclrm
from support import PROBLEM, make_strategy

from speclrm.runtime.engine import Delta
from speclrm.runtime.engines.scripted import ByteTokenizer, Reply, ScriptedEngine, by_step
from speclrm.runtime.errors import RequestError, ResumeError
from speclrm.runtime.events import OperationDropped, RunStarted, StepCommitted, TrackFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.replay.recorded_run import past_of, read_past
from speclrm.runtime.run_parts import Resumption
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from speclrm.runtime.engine import Engine, Request

TRACES = Path(__file__).parents[2] / "traces"
STEPS = ["First we add.\n\n", "Then we look.\n\n", "\n\n", "Third, é is cut.\n\n", "So it is \\boxed{4}."]


def on_world(name: str, *, problems: int = 2, steps: float = 5.0, **options: Any) -> Setup:
    one = world(steps)

    def engines() -> Mapping[Role, Engine]:
        made = simulated(one)
        return made if name.startswith("spec") else {Role.TARGET: made[Role.TARGET]}

    return Setup(engines, make_strategy(name, **options), one.problems(problems))


def on_script(
    name: str,
    target: list[str] = STEPS,
    draft: list[str] = STEPS,
    *,
    scores: tuple[float, ...] = (9, 3, 8, 7, 9, 9, 9),
    fail: str | None = None,
    **options: Any,
) -> Setup:
    """Scripted engines; ``fail``: the kind of request that is refused on the second step."""

    def refusing(script: Any) -> Any:
        def answer(request: Request, prompt: str) -> Reply:
            if fail is not None and request.id.endswith(f"/1/{fail}"):
                return Reply(wait_s=0.5, error=RequestError("refused: too odd\nby the script"))
            return script(request, prompt)

        return answer

    def engines() -> Mapping[Role, Engine]:
        made: dict[Role, Engine] = {
            Role.TARGET: ScriptedEngine(
                refusing(by_step(target, scores=scores)), name="target", tokenizer=ByteTokenizer(), chunk_tokens=5
            )
        }
        if name.startswith("spec"):
            made[Role.DRAFT] = ScriptedEngine(refusing(by_step(draft)), name="draft", tokenizer=ByteTokenizer())
        return made

    return Setup(engines, make_strategy(name, **options), [PROBLEM])


SETUPS: dict[str, Setup] = {
    "speculative": on_world("speculative"),
    "parallel": on_world("parallel"),
    "baseline": on_world("baseline"),
    "speculative-methods": on_world("speculative-methods"),
    "fast-1": on_world("speculative", fast=1),
    "fast-2": on_world("parallel", fast=2, tracks=4),
    "original": on_world("speculative", fidelity="original"),
    "auto": on_world("speculative", steps=40.0, speculate="auto"),
    "ahead": on_world("speculative", draft_ahead="always", rewrite_ahead="always"),
    "gates": on_world("speculative", gate_sure=-0.1, gate_entropy=1.5, judge="inline", draft_ahead="always"),
    "likelihood": on_world("speculative", scorer="likelihood", score_threshold=-0.2),
    "scripted-ahead": on_script(
        "speculative", max_step_tokens=16, tracks=2, draft_ahead="always", rewrite_ahead="always"
    ),
    "closing": on_world("speculative", token_budget=40),
    "closing-written": on_world("parallel", token_budget=40),
    "step-limit": on_world("parallel", step_limit=2),
    "scripted": on_script("speculative", max_step_tokens=16, tracks=2),
    "scripted-written": on_script("parallel", max_step_tokens=16, tracks=2, token_budget=50),
    "refused-score": on_script("speculative", fail="score", tracks=2),
    "refused-draft": on_script("speculative", fail="draft", tracks=1),
    "refused-rewrite": on_script("speculative", fail="rewrite", tracks=1),
    "refused-draft-ahead": on_script("speculative", fail="draft-ahead", tracks=2, draft_ahead="always"),
    "refused-write": on_script("parallel", ["\n\n", "x\n\n", *STEPS], fail="write", tracks=2),
}


@pytest.mark.parametrize("name", SETUPS)
def test_a_run_played_again_has_the_same_events_and_the_same_results_to_the_byte(name: str, tmp_path: Path) -> None:
    setup = SETUPS[name]
    fold = setup.run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    playback, again = setup.replay(read_past(tmp_path / "run", whole=True))
    assert [str(one) for one in playback.differences] == []
    assert not playback.stops
    assert again.lines == fold.lines == lines_of(tmp_path / "run")
    assert again.lines
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("name", ["speculative", "parallel", "fast-2"])
def test_a_cancelled_run_plays_again_up_to_where_it_was_cancelled(name: str, tmp_path: Path) -> None:
    setup = SETUPS[name]
    setup.run(tmp_path / "run", cancel_after_s=0.8)
    dropped = [event for event in read_all(tmp_path / "run") if isinstance(event, OperationDropped)]
    assert any(event.reason == "cancelled" for event in dropped)
    playback, again = setup.replay(read_past(tmp_path / "run", whole=True))
    assert [str(one) for one in playback.differences] == []
    assert playback.stops  # where the record ends
    assert again.lines == lines_of(tmp_path / "run")


RECORDED: dict[str, Setup] = {
    "speculative": on_world("speculative", ties="first"),
    "parallel": on_world("parallel", ties="first"),
    "speculative-methods": on_world("speculative-methods", ties="first"),
    "original": SETUPS["original"],
    "scripted": on_script("speculative", max_step_tokens=16, tracks=2, ties="first"),
}
"""Of the time when a tie went to the first track that ended."""


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_traces_still_play_as_they_were_recorded(name: str) -> None:
    """To record them anew after a change that is meant: delete the file, and copy a fresh run's trace there."""
    setup = RECORDED[name]
    trace = TRACES / f"replay-{name}.jsonl"
    playback, again = setup.replay(past_of(read_trace(trace), trace.name, whole=True))
    assert [str(one) for one in playback.differences] == []
    assert not playback.stops
    assert len(again.lines) == len(setup.problems)


def test_a_changed_rule_is_a_difference_that_names_the_step() -> None:
    trace = TRACES / "replay-scripted.jsonl"
    past = past_of(read_trace(trace), trace.name, whole=True)
    rewritten = [event for event in read_trace(trace) if isinstance(event, StepCommitted) and event.origin == "rewrite"]
    lenient = make_strategy("speculative", max_step_tokens=16, tracks=2, score_threshold=2)
    playback, _ = SETUPS["scripted"].replay(past, lenient)
    first = {one.track: one for one in reversed(playback.differences) if one.track is not None}
    assert {one.step for one in first.values()} == {rewritten[0].step}
    assert {(one.recorded, one.now) for one in first.values()} == {("rewritten", "accepted with 3")}
    # Draft and target write the same here, so the requests behind it are the very same, and the record still answers.
    assert not playback.stops


def test_what_if_keeps_what_the_change_does_not_touch(tmp_path: Path) -> None:
    setup = on_world("speculative", tracks=3)
    fold = setup.run(tmp_path / "run")
    playback, again = setup.replay(read_past(tmp_path / "run", whole=True), make_strategy("speculative", tracks=2))
    assert len(again.lines) == len(fold.lines)  # two tracks of the three are in the record from end to end
    assert all(len(row.tracks) == 2 for row in again.summary().samples)
    assert not playback.stops


def test_a_stricter_rule_stops_at_the_rewrite_that_was_never_asked_for(tmp_path: Path) -> None:
    setup = on_script("speculative", tracks=1)
    setup.run(tmp_path / "run")
    playback, again = setup.replay(
        read_past(tmp_path / "run", whole=True), make_strategy("speculative", tracks=1, score_threshold=8.5)
    )
    (stop,) = playback.stops.values()
    assert (stop.step, stop.operation.rpartition("/")[2], stop.why) == (2, "rewrite", "the trace does not have it")
    assert ("accepted with 8", "asks for rewrite") in {(one.recorded, one.now) for one in playback.differences}
    assert again.lines == []


def test_a_changed_temperature_finds_no_request_in_the_record(tmp_path: Path) -> None:
    setup = on_script("speculative", tracks=1)
    setup.run(tmp_path / "run")
    playback, _ = setup.replay(
        read_past(tmp_path / "run", whole=True), make_strategy("speculative", tracks=1, temperature=0.1)
    )
    assert [(one.step, one.now) for one in playback.differences if one.track] == [(0, "another request")]


def test_a_smaller_budget_is_answered_from_the_longer_record(tmp_path: Path) -> None:
    long = on_world("parallel", token_budget=60, closing=False)
    long.run(tmp_path / "run")
    short = make_strategy("parallel", token_budget=25, closing=False)
    playback, again = long.replay(read_past(tmp_path / "run", whole=True), short)
    direct = Setup(long.engines, short, long.problems).run(tmp_path / "direct")
    assert not [stop for stop in playback.stops.values() if stop.why != "the trace does not have it"]
    for row, other in zip(again.summary().samples, direct.summary().samples, strict=True):
        assert [(track.reason, track.tokens) for track in row.tracks] == [
            (track.reason, track.tokens) for track in other.tracks
        ]


def test_what_if_goes_on_live_in_a_new_folder_and_is_the_run_that_would_have_been(tmp_path: Path) -> None:
    setup = on_world("speculative", tracks=2)
    setup.run(tmp_path / "run")
    lenient = make_strategy("speculative", tracks=2, score_threshold=5)
    other = Setup(setup.engines, lenient, setup.problems)
    playback, _ = setup.replay(read_past(tmp_path / "run", whole=True), lenient)
    kept = playback.kept()
    assert sum(len(sample.events) for sample in kept.samples.values()) > 10
    fold = other.run(tmp_path / "new", resumption=Resumption(kept, lambda _: (lenient, 0), anew=True))
    assert decisions(fold.lines) == decisions(other.run(tmp_path / "direct").lines)
    again, _ = other.replay(read_past(tmp_path / "new", whole=True))
    assert not again.differences
    assert not again.stops


def test_a_trace_of_an_older_form_is_refused_in_clear_words() -> None:
    with pytest.raises(ResumeError, match="written by an older SpecLRM"):
        past_of(read_trace(TRACES / "v1-scripted.jsonl"), "v1-scripted.jsonl")


def test_the_context_limits_of_the_engines_are_recorded(tmp_path: Path) -> None:
    SETUPS["scripted"].run(tmp_path / "run")
    first = read_all(tmp_path / "run")[0]
    assert isinstance(first, RunStarted)
    assert first.context_max == {"target": 100_000, "draft": 100_000}


def test_an_error_of_a_request_is_told_again_as_it_was(tmp_path: Path) -> None:
    setup = SETUPS["refused-rewrite"]
    setup.run(tmp_path / "run")
    _, again = setup.replay(read_past(tmp_path / "run", whole=True))
    ends = [event for event in read_all(tmp_path / "run") if isinstance(event, TrackFinished)]
    assert [event.error for event in ends] == ["RequestError: refused: too odd"]
    assert [track.error for row in again.summary().samples for track in row.tracks] == [ends[0].error]


@pytest.mark.parametrize("name", ["refused-draft", "refused-score", "refused-draft-ahead"])
def test_a_run_with_a_refused_request_goes_on_wherever_it_was_cut(name: str, tmp_path: Path) -> None:
    setup = SETUPS[name]
    expected = decisions(setup.run(tmp_path / "whole").lines)
    for lines in range(1, len(read_all(tmp_path / "whole"))):
        assert decisions(setup.resume(cut(tmp_path / "whole", tmp_path / str(lines), lines=lines)).lines) == expected


@pytest.mark.parametrize("name", ["refused-draft", "refused-score", "refused-draft-ahead"])
def test_a_trace_in_which_a_refused_request_ended_its_track_plays_and_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SpecLRM did it once."""
    setup = SETUPS[name]
    with monkeypatch.context() as patch:
        patch.setattr("speclrm.strategies.speculative.RequestError", type("Never", (Exception,), {}))
        fold = setup.run(tmp_path / "run")
    assert any("RequestError" in str(track.error) for row in fold.summary().samples for track in row.tracks)
    playback, again = setup.replay(read_past(tmp_path / "run", whole=True))
    assert [str(one) for one in playback.differences] == []
    assert again.lines == fold.lines
    for lines in (len(read_all(tmp_path / "run")) - 1, len(read_all(tmp_path / "run")) - 2):
        short = cut(tmp_path / "run", tmp_path / str(lines), lines=lines)
        assert decisions(setup.resume(short).lines) == decisions(fold.lines)


# ------------------------------------------------------------------------------------------------------------ the command

LINE = (
    "run speculative --dataset sim:a70?size=1 --target sim/qwq-32b --draft sim/r1-1.5b --token-budget 300 --display none "
    "--output-dir run"
)


def test_the_command_replays_asks_what_if_and_goes_on_in_a_new_folder(tmp_path: Path) -> None:
    done = real("run", *LINE.split()[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = real("replay", "run", cwd=tmp_path)
    assert (done.returncode, "the same run" in done.stdout) == (0, True), done.stderr
    results = (tmp_path / "run" / "results.jsonl").read_bytes()
    done = real("replay", "run", "--set", "score_threshold=5", cwd=tmp_path)
    assert done.returncode == 1
    assert "rewritten -> accepted with" in done.stdout
    assert "is not in the trace" in done.stdout or "the trace does not have it" in done.stdout
    asked = ("--set", "score_threshold=5", "--continue", "--output-dir", "new", "--display", "none")
    done = real("replay", "run", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "results.jsonl").read_text().count("\n") == 1
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == results
    assert real("replay", "new", cwd=tmp_path).returncode == 0


def real(*arguments: str, cwd: Path) -> Done:
    """The command itself, on simulated engines."""
    return invoke(*arguments, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("replay", "nowhere"), "There is no nowhere"),
        (("resume", "empty"), "holds no run"),
        (("replay", "newer"), "written by a newer SpecLRM"),
        (("replay", "run", "--set", "treshold=5"), "Did you mean score_threshold?"),
        (("replay", "run", "--continue"), "give both --continue and --output-dir"),
    ],
)
def test_what_cannot_be_played_is_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "run.json").write_text('{"schema_version": 99}')
    shutil.copytree(tmp_path / "empty", tmp_path / "run")
    done = speclrm(*arguments, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


class Speechless(ScriptedEngine):
    """Says that it has come to its limit before its first word."""

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        yield Delta((), "length")


def test_an_answer_without_a_word_is_played_again_and_not_for_ever(tmp_path: Path) -> None:
    setup = Setup(
        lambda: {Role.TARGET: Speechless(by_step(STEPS), name="target", tokenizer=ByteTokenizer())},
        make_strategy("baseline"),
        [PROBLEM],
    )
    fold = setup.run(tmp_path / "run")
    playback, again = setup.replay(read_past(tmp_path / "run", whole=True))
    assert (playback.differences, dict(playback.stops), again.lines) == ([], {}, fold.lines)
