"""What a person sees of a run: while it goes, and the final report."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from support import make_strategy, play, work

from speclrm.app.time_left import Left
from speclrm.commands import monitor as monitoring
from speclrm.commands.display import JsonView, LiveView, PlainView, headline, print_report
from speclrm.commands.monitor import Monitor
from speclrm.commands.running_tracks import RunningTracks
from speclrm.evaluators.metrics import ModeCounts, RunSummary, Summary
from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.events import (
    EngineFacts,
    EngineRecovered,
    OperationStuck,
    ProblemStarted,
    RunFinished,
    RunStarted,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    TrackFinished,
    TrackResumed,
    TrackStarted,
)
from speclrm.runtime.ledger import EngineUse, FlopCounts, TokenCounts
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]


def events_of(samples: int) -> list[Event]:
    """Of a run of so many samples, two at a time."""
    problems = [Problem(f"p{number}", "What is two and two?", "4" if number % 3 else "5") for number in range(samples)]
    played = play(
        make_strategy("speculative", tracks=3),
        draft=by_step(STEPS),
        target=by_step(STEPS, scores=[9, 3, 8]),
        problems=problems,
        concurrency=2,
    )
    return played.collector.events


def plain_view(total: int) -> tuple[PlainView, Monitor, io.StringIO]:
    console = Console(file=io.StringIO(), width=80)
    monitor = Monitor()
    monitor.plan(total)
    assert isinstance(console.file, io.StringIO)
    return PlainView(monitor, console), monitor, console.file


def test_what_the_screen_says_of_a_run_is_what_its_summary_says() -> None:
    events = events_of(7)
    monitor, tracks, fold = Monitor(), RunningTracks(), Summary()
    for event in events:
        monitor.emit(event)
        tracks.add(event)
        fold.add(event)
        if not isinstance(event, SampleFinished | TrackFinished):
            continue
        summary = fold.summary()
        assert monitor.outcomes == summary.outcomes
        assert (monitor.steps["draft"], monitor.steps["rewrite"]) == (summary.accepted, summary.rewritten)
        states = [track for state in fold.states.values() for track in state.tracks.values()]
        assert (monitor.ended, monitor.tracks) == (sum(track.finished for track in states), len(states))
        busy = {
            (state.problem, state.repeat, track.track): (len(track.steps), track.tokens)
            for state in fold.states.values()
            for track in state.tracks.values()
            if not track.finished
        }
        assert {key: (track.steps, track.tokens) for key, track in tracks.running.items()} == busy
        accuracy = "" if summary.accuracy is None else f" · accuracy {summary.accuracy:.0%}"
        assert headline(monitor).startswith(f"{len(summary.samples)}/? samples{accuracy} · tracks {monitor.ended}/")
    assert not tracks.running
    assert f"({fold.summary().acceptance:.0%} kept)" in headline(monitor)


def test_the_plain_display_has_a_line_for_each_sample_and_its_texts_are_harmless() -> None:
    view, _, file = plain_view(4)
    for event in events_of(4):
        if isinstance(event, SampleFinished):
            event = event.model_copy(update={"answer": "\x1b[31m4"})
        view.emit(event)
    lines = file.getvalue().splitlines()
    assert [line.partition(" · ")[0] for line in lines] == [
        "p0/0: wrong (\\u001b[31m4; gold 5)",
        "p1/0: correct (\\u001b[31m4; gold 4)",
        "p2/0: correct (\\u001b[31m4; gold 4)",
        "p3/0: wrong (\\u001b[31m4; gold 5)",
    ]
    assert [line.split(" · ")[1] for line in lines] == [f"{number}/4 samples" for number in (1, 2, 3, 4)]
    assert "accuracy 50% · tracks 12/12 · accepted 24 rewritten 12 (67% kept)" in lines[-1]


def test_the_state_of_a_run_is_said_a_few_times_a_second_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now)
    view, _, file = plain_view(6)
    for event in events_of(6):
        if isinstance(event, SampleFinished):
            now += 0.1
        view.emit(event)
    assert ["accuracy" in line for line in file.getvalue().splitlines()] == [True, False, False, True, False, True]


def test_the_json_display_gives_the_rows_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    events = events_of(4)
    view, fold = JsonView(Monitor()), Summary()
    for event in [*events, *events]:  # a second run on the same screen
        view.emit(event)
    for event in events:
        fold.add(event)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [{"kind": "sample", **row.model_dump(mode="json")} for row in fold.summary().samples]
    assert rows == json.loads(json.dumps([*expected, *expected]))


def last_part(events: Sequence[Event], samples: int) -> int:
    """Where the events of the last samples begin."""
    ends = [place for place, event in enumerate(events) if isinstance(event, SampleFinished)]
    return ends[-samples - 1] + 1


@pytest.mark.parametrize("kind", ["plain", "json", "rich"])
def test_a_sample_costs_the_display_the_same_after_many_as_after_few(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def cost(samples: int) -> int:
        view, monitor, _ = plain_view(samples)
        live = LiveView(monitor, Console(file=io.StringIO(), width=80))
        sink: Sink = {"plain": view, "json": JsonView(monitor), "rich": live}[kind]
        events = events_of(samples)
        start = last_part(events, 3)
        for event in events[:start]:
            sink.emit(event)

        def rest() -> None:
            for event in events[start:]:
                sink.emit(event)
                if kind == "rich":
                    live._draw()  # pyright: ignore[reportPrivateUsage]

        return work(rest)

    assert cost(80) <= 1.05 * cost(20)


def started(track: str) -> TrackStarted:
    return TrackStarted(problem="p", repeat=0, track=track, hint="", prompt_ids={})


def step(track: str, number: int, tokens: int) -> list[Event]:
    where: Any = {"problem": "p", "repeat": 0, "track": track, "step": number}
    return [
        StepDrafted(**where, text="x", ids=(1,), operations=()),
        StepCommitted(**where, origin="draft", tokens=tokens, score=8.0),
    ]


def finished(track: str, reason: str = "answer") -> TrackFinished:
    return TrackFinished(problem="p", repeat=0, track=track, reason=reason, answer="4", tokens=0)  # type: ignore[arg-type]


def at(t: float, *events: Event) -> list[Event]:
    return [event.model_copy(update={"t": t}) for event in events]


def run_started(engine: str = "target") -> RunStarted:
    facts = {"target": EngineFacts(name=engine, max_num_seqs=1)}
    return RunStarted(run="r", started="", config={}, versions={}, machine={}, engines=facts)


def test_a_track_that_is_resumed_runs_again_with_its_steps_and_one_of_a_finished_sample_does_not() -> None:
    tracks = RunningTracks()
    for event in [*map(started, "ab"), *step("a", 0, 5), finished("a", "cancelled")]:
        tracks.add(event)
    assert [key[2] for key in tracks.running] == ["b"]
    tracks.add(TrackResumed(problem="p", repeat=0, track="a"))
    assert [(key[2], track.steps, track.tokens) for key, track in tracks.running.items()] == [("b", 0, 0), ("a", 1, 5)]
    tracks.add(SampleFinished(problem="p", repeat=0, outcome="ungraded", answer=None, winner=None, seconds=1.0))
    assert not tracks.running


def test_the_time_that_is_left_counts_down_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [500.0]
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now[0])
    monitor = Monitor()
    monitor.plan(2)
    assert monitor.left() is None
    for event in [
        *at(0.0, run_started(), ProblemStarted(problem="p", repeat=0, text="", gold=None), *map(started, "ab")),
        *at(10.0, *step("a", 0, 100), *step("b", 0, 50)),
    ]:
        monitor.emit(event)
    assert monitor.left() is None  # no track has ended
    monitor.emit(*at(10.0, finished("a")))
    first = monitor.left()
    assert first is not None
    now[0] += 1.0
    assert monitor.left() == first.after(1.0)
    assert monitor.elapsed_s == pytest.approx(11.0)


def test_rates_are_of_the_last_seconds_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now[0])
    events = [event for event in events_of(3) if not isinstance(event, RunStarted)]
    last = events[-1].t
    monitor = Monitor()
    for event in (run_started(), *events):
        monitor.emit(event)
    now[0] += 4
    drafted = sum(
        operation.output_tokens for event in events if isinstance(event, StepDrafted) for operation in event.operations
    )
    assert monitor.rates()["draft"] == pytest.approx(drafted / (last + 4))
    now[0] += monitoring.WINDOW_S
    assert monitor.rates() == {}


def test_what_is_virtual_says_so_and_does_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = [0.0]
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now[0])
    for real in (0.0, 1000.0):
        monitor = Monitor()
        monitor.plan(4)
        for event in (run_started("sim/qwq-32b"), *events_of(3)[1:]):
            now[0] += real
            monitor.emit(event)
        said.append(headline(monitor))
    assert said[0] == said[1]
    assert re.search(r"draft \d+ tok/virtual s .* target \d+ tok/virtual s", said[0])
    assert re.search(r"0:\d\d of virtual time, (about \d:\d\d|\d:\d\d to \d:\d\d) of it left$", said[0])


def test_after_a_resume_the_past_counts_by_its_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: 1e6)
    events = [event for event in events_of(3) if not isinstance(event, RunFinished)]
    scale = 1000.0 / events[-1].t
    monitor = Monitor()
    for event in events:  # all at once, as a resumed run shows its past
        monitor.emit(event.model_copy(update={"t": event.t * scale}))
    assert monitor.elapsed_s == pytest.approx(1000.0)
    rate = sum(monitor.rates().values())
    whole = sum(op.output_tokens for event in events for op in getattr(event, "operations", ()))
    assert rate * monitoring.WINDOW_S < whole / 5


def test_a_display_that_missed_events_goes_on() -> None:
    events = events_of(6)
    view, monitor, file = plain_view(6)
    for place, event in enumerate(events):
        if place % 3:
            view.emit(event)
    assert len(file.getvalue().splitlines()) == sum(
        isinstance(event, SampleFinished) for place, event in enumerate(events) if place % 3
    )
    assert monitor.left() is not None


def printed(summary: RunSummary) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    print_report(console, summary)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_report_shows_the_ledger_a_column_a_model() -> None:
    lines = printed(
        RunSummary(
            tokens={
                "draft": TokenCounts(generated=40, kept=20, rejected=10, useless=10, prompt=100, cached=75),
                "target": TokenCounts(generated=60, kept=50, judge=10, prompt=200, cached=100),
            },
            flops={"draft": FlopCounts(decode=80, all=130), "target": FlopCounts(decode=1200, all=3200)},
            decode_flops=1280,
            all_flops=3330,
            engines={
                "draft": EngineUse(idle=0.6, idle_ready=0.01, batch=2.5),
                "target": EngineUse(idle=0.05, idle_ready=0.0, batch=7.0, preemptions=3),
            },
            modes=ModeCounts(speculated=7, eager=2, written=5, changes=3),
            draft_share=2 / 7,
            chains=2,
            chain_length=35.0,
            seconds=10.0,
            deferred=4,
        )
    )
    for line in (
        "modes 7 steps speculated (2 ahead of scores), 5 left to the target; tracks changed 3 times",
        "chains 35.0 tokens kept by 2 tracks with an answer, on average; 28.6% of all kept by the draft",
        "FLOPs 1.28e+03 to decode, 3.33e+03 with what was read of prompts",
        "room tracks gave theirs to older ones 4 times",
        "tokens draft target",
        "generated 40 60",
        "a second 4.0 6.0",
        "kept 20 50",
        "rejected 10",
        "useless 10",
        "judge 10",
        "discarded 50.0% 0.0%",
        "cached 75.0% 50.0%",
        "all FLOPs 130 3.2e+03",
        "engine idle 60.0% 5.0%",
        "though a track was ready 1.0% 0.0%",
        "mean batch 2.5 7.0",
        "preemptions 3",
    ):
        assert line in lines, line


def test_what_a_trace_does_not_tell_has_no_line() -> None:
    lines = printed(RunSummary(tokens={"target": TokenCounts(generated=6, kept=6, prompt=2)}, seconds=1.0))
    assert "generated 6" in lines
    for word in ("useless", "FLOPs", "idle", "batch", "modes", "room", "chains"):
        assert not [line for line in lines if word in line], word


def test_estimates_take_their_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now, spent, made = [0.0], [0.0], list[float]()
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(monitoring.time, "thread_time", lambda: spent[0])

    def estimate(_: object, at_s: float) -> Left:
        made.append(at_s)
        spent[0] += 0.02
        return Left(100.0, 90.0, 110.0)

    monkeypatch.setattr(monitoring.TimeLeft, "left", estimate)
    monitor = Monitor()
    monitor.emit(*at(0.0, run_started()))
    for _ in range(1000):
        now[0] += 0.1
        assert monitor.left() is not None
    assert 1 <= len(made) <= 100 * monitoring.ESTIMATE_SHARE / 0.02 + 1


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_the_screen_names_an_operation_that_is_stuck_and_says_what_becomes_of_engines(kind: str) -> None:
    monitor = Monitor()
    console = Console(file=io.StringIO(), width=80)
    view = PlainView(monitor, console) if kind == "plain" else LiveView(monitor, console)
    view.emit(OperationStuck(operation="p/0/2/5/draft", engine="m", role="draft", seconds=151.2, limit_s=600, others=3))
    view.emit(EngineRecovered(engine="m", down_s=31.0, role="draft", changed={"max_num_seqs": 16}))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "p/0/2/5/draft in m brought nothing for 151 s, and 3 more there" in shown
    assert "hung after 600 s" in shown
    assert "m works again after 31.0 s with max_num_seqs 16" in shown


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (Left(100.0, 85.0, 125.0), "about 1:40 left"),
        (Left(60.0, 20.4, 140.2), "0:20 to 2:21 left"),
        (Left(1.0, 0.2, 1.9), "about 0:01 left"),
        (None, "estimating"),
    ],
)
def test_the_time_left_is_one_number_only_where_that_tells_it(
    left: Left | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor()
    monitor.emit(*at(0.0, run_started()))
    monkeypatch.setattr(monitor, "left", lambda: left)
    assert headline(monitor).endswith(f", {said}")
