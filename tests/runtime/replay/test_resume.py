"""A run that was cut anywhere goes on inside its problems and ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from again import Setup, cut, decisions, generated, lines_of, read_all, simulated, world
from cli_runner import Done, invoke, scripted, start
from support import make_strategy

from speclrm.evaluators.metrics import summarize
from speclrm.runtime.errors import EngineDeadError, ResumeError, RunDirectoryError, TraceReadError
from speclrm.runtime.events import ProblemStarted, RunResumed, SampleEvent, SampleFinished, TrackFinished, TrackResumed
from speclrm.runtime.protocols import Role
from speclrm.runtime.replay.recorded_run import read_past
from speclrm.runtime.state import SampleState, apply
from speclrm.runtime.trace import run_directory
from speclrm.runtime.trace.check import Checker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from speclrm.runtime.engine import Engine, Request


def on_world(name: str, *, problems: int = 1, steps: float = 3.0, **options: Any) -> Setup:
    one = world(steps)

    def engines() -> Mapping[Role, Engine]:
        made = simulated(one)
        return made if name.startswith("spec") else {Role.TARGET: made[Role.TARGET]}

    return Setup(engines, make_strategy(name, **options), one.problems(problems))


def check(setup: Setup, folder: Path, expected: Mapping[tuple[str, int], Any]) -> None:
    """Goes on with a cut run and looks at everything that must hold."""
    before = (folder / "trace.jsonl").read_bytes()
    fold = setup.resume(folder)
    assert decisions(fold.lines) == expected
    assert lines_of(folder) == fold.lines  # the trace alone says the same as those who saw it happen
    events = read_all(folder)
    assert [event.seq for event in events] == list(range(len(events)))
    assert all(one.t <= other.t for one, other in pairwise(events))
    whole = before[: before.rfind(b"\n") + 1]
    assert (folder / "trace.jsonl").read_bytes().startswith(whole)  # nothing that was there is lost or written again
    assert max(Counter(generated(events)).values()) == 1  # no step was generated twice
    checker = Checker()
    for number, event in enumerate(events, start=1):
        checker.add("trace.jsonl", number, event)
    assert checker.report().violations == ()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("speculative", {"tracks": 2}),
        ("parallel", {"tracks": 2}),
        ("speculative-methods", {"tracks": 2}),
        ("parallel", {"tracks": 2, "token_budget": 30}),
        ("speculative", {"tracks": 1, "fidelity": "original"}),
    ],
    ids=["speculative", "parallel", "methods", "closing", "original"],
)
def test_a_run_cut_between_any_two_events_ends_as_if_it_had_not_been(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    setup = on_world(name, **options)
    expected = decisions(setup.run(tmp_path / "whole").lines)
    count = len(read_all(tmp_path / "whole"))
    for lines in range(1, count):
        check(setup, cut(tmp_path / "whole", tmp_path / str(lines), lines=lines), expected)


def test_a_larger_run_cut_at_random_bytes_and_cut_again_while_it_goes_on(tmp_path: Path) -> None:
    setup = on_world("speculative", problems=3, steps=8.0, tracks=3)
    expected = decisions(setup.run(tmp_path / "whole").lines)
    length = (tmp_path / "whole" / "trace.jsonl").stat().st_size
    draw = random.Random(20261125)
    first = (tmp_path / "whole" / "trace.jsonl").read_bytes().index(b"\n") + 1
    for number in range(6):
        once = cut(tmp_path / "whole", tmp_path / f"{number}-once", size=draw.randrange(first, length))
        start = once.joinpath("trace.jsonl").stat().st_size
        check(setup, once, expected)
        end = once.joinpath("trace.jsonl").stat().st_size
        twice = cut(once, tmp_path / f"{number}-twice", size=draw.randrange(start, end))
        check(setup, twice, expected)
        playback, again = setup.replay(read_past(twice, whole=True))
        assert not playback.differences
        assert again.lines == lines_of(twice)


@pytest.mark.parametrize("name", ["speculative", "parallel"])
def test_a_run_that_was_cancelled_goes_on_with_the_step_that_it_was_on(name: str, tmp_path: Path) -> None:
    setup = on_world(name, problems=2, steps=6.0, tracks=2)
    expected = decisions(setup.run(tmp_path / "whole").lines)
    for number, after_s in enumerate((0.3, 0.62, 1.0)):
        folder = tmp_path / str(number)
        setup.run(folder, cancel_after_s=after_s)
        assert any(isinstance(event, TrackFinished) and event.reason == "cancelled" for event in read_all(folder))
        check(setup, folder, expected)
        events = read_all(folder)
        assert any(isinstance(event, TrackResumed) for event in events)
        counts = summarize(events).tokens
        for one in counts.values():
            spent = one.kept + one.rejected + one.dropped + one.judge + one.choice
            assert one.generated == spent
        assert summarize(events).acceptance == summarize(read_all(tmp_path / "whole")).acceptance
        playback, _ = setup.replay(read_past(folder, whole=True))
        assert not playback.differences


def test_the_fold_of_a_resumed_trace_is_the_state_of_the_resumed_run(tmp_path: Path) -> None:
    setup = on_world("speculative", steps=6.0, tracks=2)
    setup.run(tmp_path / "run", cancel_after_s=0.5)
    fold = setup.resume(tmp_path / "run")
    state = SampleState("sim-0", 0)
    for event in read_all(tmp_path / "run"):
        if isinstance(event, SampleEvent):
            state = apply(state, event)
    assert fold.samples == (state,)
    assert all(track.finished for track in state.tracks.values())
    assert len(state.finished_tracks) == len(state.tracks)


def test_tracks_that_an_engines_death_ended_go_on(tmp_path: Path) -> None:
    one = world(6.0)

    class Dying:
        """An engine that dies on its twelfth request."""

        def __init__(self, engine: Any) -> None:
            self._engine, self._left = engine, 12

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

        async def stream(self, request: Request) -> Any:
            self._left -= 1
            if self._left < 0:
                raise EngineDeadError("gone")
            async for delta in self._engine.stream(request):
                yield delta

    setup = Setup(lambda: simulated(one), make_strategy("speculative", tracks=2), one.problems(1))
    expected = decisions(setup.run(tmp_path / "whole").lines)
    engines: Any = {role: Dying(engine) for role, engine in simulated(one).items()}
    with pytest.raises(EngineDeadError):
        setup.run(tmp_path / "run", engines=engines)
    check(setup, tmp_path / "run", expected)


def test_finished_samples_are_not_run_again_and_stops_across_tracks_stay_as_they_were(tmp_path: Path) -> None:
    setup = on_world("speculative", problems=4, steps=6.0, tracks=3, fast=1)
    setup.concurrency = 1
    whole = setup.run(tmp_path / "whole")
    events = read_all(tmp_path / "whole")
    second = [index for index, event in enumerate(events) if isinstance(event, SampleFinished)][1]
    folder = cut(tmp_path / "whole", tmp_path / "run", lines=second + 1)
    fold = setup.resume(folder)
    assert fold.lines[:2] == whole.lines[:2]
    started = [event.problem for event in read_all(folder) if isinstance(event, ProblemStarted)]
    assert started == [problem.id for problem in setup.problems]


def test_each_attempt_is_noted_with_its_number_and_time_goes_on(tmp_path: Path) -> None:
    setup = on_world("speculative", steps=6.0)
    setup.run(tmp_path / "run", cancel_after_s=0.5)
    setup.resume(tmp_path / "run", cancel_after_s=0.2)
    setup.resume(tmp_path / "run")
    events = read_all(tmp_path / "run")
    assert [event.attempt for event in events if isinstance(event, RunResumed)] == [1, 2]
    assert sorted({event.attempt for event in events}) == [0, 1, 2]
    record = run_directory.read_record(tmp_path / "run")
    assert len(record.resumed) == 2
    assert all(attempt.versions["python"] for attempt in record.resumed)


def test_what_an_earlier_attempt_had_survives_a_resume_that_dies_at_once(tmp_path: Path) -> None:
    setup = on_world("speculative", steps=6.0, tracks=2)
    expected = decisions(setup.run(tmp_path / "whole").lines)
    folder = cut(tmp_path / "whole", tmp_path / "run", lines=30)
    for after_s in (0.0, 0.001, 0.01):
        setup.resume(folder, cancel_after_s=after_s)
    check(setup, folder, expected)


def test_another_strategy_does_not_fit_the_trace_and_the_trace_stays_whole(tmp_path: Path) -> None:
    setup = on_world("speculative", steps=6.0, tracks=2)
    setup.run(tmp_path / "whole")
    folder = cut(tmp_path / "whole", tmp_path / "run", lines=40)
    other = Setup(setup.engines, make_strategy("speculative", tracks=2, score_threshold=9), setup.problems)
    with pytest.raises(ResumeError, match=r"cannot go on from its trace: .*recorded"):
        other.resume(folder)
    before = [event for event in read_all(tmp_path / "whole")[:40] if isinstance(event, SampleEvent)]
    assert [event for event in read_all(folder) if isinstance(event, SampleEvent)] == before
    setup.resume(folder)  # with the right one it still goes on


def test_a_folder_with_a_broken_or_missing_trace_is_told_in_clear_words(tmp_path: Path) -> None:
    setup = on_world("speculative")
    setup.run(tmp_path / "run")
    cut(tmp_path / "run", tmp_path / "empty", size=0)
    with pytest.raises(ResumeError, match="is empty"):
        read_past(tmp_path / "empty")
    (tmp_path / "empty" / "trace.jsonl").unlink()
    with pytest.raises(TraceReadError):
        read_past(tmp_path / "empty")
    told: list[str] = []
    read_past(cut(tmp_path / "run", tmp_path / "torn", size=6000), told.append)
    assert "torn" in told[0]


# ------------------------------------------------------------------------------------------------------------- the lock


def test_two_runs_cannot_write_one_folder(tmp_path: Path) -> None:
    with (
        run_directory.locked(tmp_path),
        pytest.raises(RunDirectoryError, match=f"being written by process {os.getpid()}"),
        run_directory.locked(tmp_path),
    ):
        pass
    with run_directory.locked(tmp_path):
        pass


def test_the_lock_of_a_process_that_died_is_taken_over_with_a_notice(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from speclrm.runtime.trace.run_directory import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match=f"process {holder.pid} on"), run_directory.locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    told: list[str] = []
    with run_directory.locked(tmp_path, told.append):
        assert f"process {holder.pid} on" in told[0]
        assert "taken over" in told[0]


# ---------------------------------------------------------------------------------------------------------- the command

SCRIPT: dict[str, Any] = {
    "steps": [f"Step {number} of many.\n\n" for number in range(12)] + ["So it is \\boxed{4}."],
    "scores": [9, 3, 8, 7, 2, 9, 9, 1, 9, 8, 9, 9, 9],
}
DATA = (
    '{"id": "a", "problem": "Two and two?", "answer": "4"}\n{"id": "b", "problem": "One and three?", "answer": "5"}\n'
)
RUN = ["run", "speculative", "--dataset", "data.jsonl", "--target", "t", "--draft", "d", "--display", "none"]


ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "SPECLRM_SPECULATE": "always"}
"""What ``auto`` decides depends on what engines cost at the moment, here in real time."""


def command(*arguments: str, cwd: Path) -> Done:
    """The command on scripted engines that take real time."""
    return invoke(*arguments, cwd=cwd, engines=scripted(**SCRIPT), SPECLRM_CACHE_DIR=str(cwd / "cache"), **ENVIRONMENT)


def background(*arguments: str, cwd: Path, token_s: float = 0.001) -> subprocess.Popen[str]:
    script = {**SCRIPT, "token_s": token_s}
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return start(*arguments, cwd=cwd, environment=ENVIRONMENT, process=nowhere, **script)


def test_a_process_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(DATA)
    done = command(*RUN, "--output-dir", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trace = tmp_path / "run" / "trace.jsonl"
    kills = 0
    for lines in (12, 30, 48, 70):
        arguments = ["resume", "run", "--display", "none"] if trace.exists() else [*RUN, "--output-dir", "run"]
        process = background(*arguments, cwd=tmp_path)
        deadline = time.monotonic() + 40
        while process.poll() is None and time.monotonic() < deadline:
            if trace.exists() and trace.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait(timeout=10)
    assert kills >= 3
    done = command("resume", "run", "--display", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ended = decisions((tmp_path / "run" / "results.jsonl").read_text().splitlines())
    assert ended == decisions((tmp_path / "whole" / "results.jsonl").read_text().splitlines())
    assert max(Counter(generated(read_all(tmp_path / "run"))).values()) == 1
    assert command("replay", "run", cwd=tmp_path).returncode == 0
    done = command("resume", "run", cwd=tmp_path)
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True), done.stderr


def test_changes_that_make_results_incomparable_are_refused_with_a_table_or_recorded(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(DATA)
    done = command(*RUN, "--limit", "1", "--output-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = [*RUN, "--resume", "--output-dir", "run"]
    changed = [*asked, "--seed", "3", "--score-threshold", "5"]
    done = command(*changed, cwd=tmp_path)
    assert done.returncode == 2
    rows = [line.split() for line in done.stderr.splitlines()]
    assert ["setting", "recorded", "asked"] in rows
    assert ["score_threshold", "7.0", "5.0"] in rows
    assert ["seed", "0", "3"] in rows
    assert any(row[:2] == ["problems", "1"] for row in rows)
    assert not [event for event in read_all(tmp_path / "run") if isinstance(event, RunResumed)]
    done = command(*changed, "--override", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (resumed,) = [event for event in read_all(tmp_path / "run") if isinstance(event, RunResumed)]
    assert resumed.overrides["score_threshold"] == (7.0, 5.0)
    assert resumed.overrides["seed"] == (0, 3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in rows] == ["a", "b"]
    assert command("replay", "run", cwd=tmp_path).returncode == 0


def test_harmless_changes_are_allowed_and_a_second_process_is_not(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(DATA)
    process = background(*RUN, "--output-dir", "run", cwd=tmp_path, token_s=0.05)
    trace = tmp_path / "run" / "trace.jsonl"
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and not (trace.exists() and trace.read_bytes().count(b"\n") > 5):
        time.sleep(0.005)
    done = command("resume", "run", cwd=tmp_path)
    assert process.poll() is None, "it is at work for many seconds yet"
    assert done.returncode == 2
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    done = command(*RUN, "--resume", "--output-dir", "run", "--concurrency", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_idle_virtual_loop_tells_so_before_time_goes_on() -> None:
    from speclrm.runtime.clock import VirtualTimeLoop, now_s, run_virtual

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        seen: list[float] = []
        timer = asyncio.create_task(asyncio.sleep(5))
        await loop.idle()
        seen.append(now_s())
        await timer
        seen.append(now_s())
        return seen

    assert run_virtual(main()) == [0.0, 5.0]
