"""Runs that end in the middle of something: what was under way is told as what it was, and leaves nothing behind.

Random ones are in tests/attack; here each kind stands by itself.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from again import Setup, cut, decisions, lines_of, read_all, simulated, world
from support import PROBLEM, Collector, ExactAnswers, make_strategy, parts

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.engines.simulated.presets import PRESETS
from speclrm.runtime.errors import EngineStalledError, ResumeError, RuntimeClosedError
from speclrm.runtime.events import (
    Event,
    OperationDropped,
    RunFinished,
    StepWritten,
    TrackContinued,
    TrackFinished,
    TrackPaused,
)
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.replay.recorded_run import lasting, past_of, read_past
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.scheduler import Scheduler
from speclrm.runtime.trace.run_directory import RUN_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from speclrm.runtime.engine import Engine, Request


def speculative(*, problems: int = 1, steps: float = 6.0, **options: Any) -> Setup:
    one = world(steps)
    return Setup(lambda: simulated(one), make_strategy("speculative", **options), one.problems(problems))


def crowded(name: str = "parallel", *, room: int = 900, problems: int = 2, **options: Any) -> Setup:
    """Engines with too little room for all tracks of a sample at once."""
    one = world(40.0)

    def engines() -> Mapping[Role, Engine]:
        little = {role: replace(PRESETS[preset], kv_tokens=room) for role, preset in NAMES.items()}
        made: dict[Role, Engine] = {
            role: SimulatedEngine(f"sim/{NAMES[role]}", little[role], one, one.tokenizer) for role in NAMES
        }
        return made if name.startswith("spec") else {Role.TARGET: made[Role.TARGET]}

    return Setup(engines, make_strategy(name, tracks=4, token_budget=700, **options), one.problems(problems))


NAMES = {Role.TARGET: "qwq-32b", Role.DRAFT: "r1-1.5b"}


def replays(setup: Setup, folder: Path) -> None:
    """The run is played again to the byte."""
    playback, again = setup.replay(read_past(folder, whole=True))
    assert [str(one) for one in playback.differences] == []
    assert again.lines == lines_of(folder)


# ------------------------------------------------------------------------------------------------------- work ahead


@pytest.mark.parametrize("after_s", [0.15, 0.35, 0.6, 0.85])
def test_a_run_that_is_cancelled_while_work_ahead_is_under_way_goes_on(after_s: float, tmp_path: Path) -> None:
    setup = speculative(tracks=3, draft_ahead="always", rewrite_ahead="always")
    expected = decisions(setup.run(tmp_path / "whole").lines)
    setup.run(tmp_path / "cut", cancel_after_s=after_s)
    ended = [event for event in read_all(tmp_path / "cut") if isinstance(event, OperationDropped)][-3:]
    assert {event.reason for event in ended} == {"cancelled"}  # an attempt's end is no decision of a loop
    assert decisions(setup.resume(tmp_path / "cut").lines) == expected
    replays(setup, tmp_path / "cut")


def test_what_an_older_version_gave_up_at_an_attempts_end_is_taken_for_what_it_was(tmp_path: Path) -> None:
    setup = speculative(tracks=3, draft_ahead="always", rewrite_ahead="always")
    expected = decisions(setup.run(tmp_path / "whole").lines)
    setup.run(tmp_path / "cut", cancel_after_s=0.6)
    trace = tmp_path / "cut" / "trace.jsonl"
    old: list[str] = []
    for line in trace.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "run_started":
            event["schema_version"] = 2
        if event["kind"] == "operation_dropped" and "-ahead" in event["operation"]["id"]:
            event["reason"] = "useless" if event["reason"] == "cancelled" else event["reason"]
        old.append(json.dumps(event, separators=(",", ":")))
    trace.write_text("\n".join(old) + "\n")
    assert decisions(setup.resume(tmp_path / "cut").lines) == expected


def test_a_draft_made_ahead_stands_behind_the_step_that_it_was_asked_for(tmp_path: Path) -> None:
    """Without a rewrite ahead, nothing lets the draft's task begin before its step is committed."""
    setup = speculative(tracks=1, draft_ahead="always", rewrite_ahead="never")
    expected = decisions(setup.run(tmp_path / "whole").lines)
    for lines in range(1, len(read_all(tmp_path / "whole"))):
        folder = cut(tmp_path / "whole", tmp_path / str(lines), lines=lines)
        assert decisions(setup.resume(folder).lines) == expected, f"cut behind line {lines}"


# --------------------------------------------------------------------------------------------------------------- room


@pytest.mark.parametrize("options", [{}, {"fast": 1}], ids=["all", "fast"])
def test_a_track_that_gave_its_room_to_older_ones_does_so_again(options: dict[str, Any], tmp_path: Path) -> None:
    setup = crowded(**options)
    whole = setup.run(tmp_path / "whole")
    events = read_all(tmp_path / "whole")
    paused = [event for event in events if isinstance(event, TrackPaused)]
    assert paused
    assert any(isinstance(event, RunFinished) and event.deferred for event in events)
    replays(setup, tmp_path / "whole")
    for share in (0.3, 0.5, 0.7, 0.9):
        folder = cut(tmp_path / "whole", tmp_path / str(share), lines=int(len(events) * share))
        resumed = setup.resume(folder)
        if not options:  # who is first is a matter of time
            assert decisions(resumed.lines) == decisions(whole.lines)
        replays(setup, folder)


def test_a_track_tells_when_it_waits_for_room_and_when_it_has_it(tmp_path: Path) -> None:
    crowded().run(tmp_path)
    waiting: set[tuple[str, str]] = set()
    for event in read_all(tmp_path):
        if isinstance(event, TrackPaused):
            assert (event.problem, event.track) not in waiting
            waiting.add((event.problem, event.track))
        elif isinstance(event, TrackContinued):
            waiting.remove((event.problem, event.track))
        elif isinstance(event, StepWritten):
            assert (event.problem, event.track) not in waiting
    assert not waiting


# ------------------------------------------------------------------------------------------------------ cancellations


@pytest.mark.parametrize("turns", range(4))
def test_a_second_cancellation_loses_no_request(turns: int) -> None:
    """The first answer stops the other track, which has work ahead; then the caller is cancelled, and again."""
    one = world(6.0)
    engines = simulated(one)
    strategy = make_strategy("speculative", tracks=2, fast=1, draft_ahead="always", rewrite_ahead="always")
    events: list[Event] = []

    class Sink:
        def emit(self, event: Event) -> None:
            events.append(event)
            if isinstance(event, TrackFinished) and event.reason == "answer":
                loop.call_soon(later, turns)

        async def room(self) -> None: ...

        async def aclose(self) -> None: ...

    def later(left: int) -> None:
        if left:
            loop.call_soon(later, left - 1)
        else:
            call.cancel()
            loop.call_soon(call.cancel)

    async def main() -> None:
        nonlocal loop, call
        loop = asyncio.get_running_loop()
        async with Runtime(parts(engines)) as runtime:
            before = asyncio.all_tasks()
            call = asyncio.create_task(runtime.solve(one.problems(1)[0], strategy, sinks=[Sink()]))
            await asyncio.wait([call])
            assert asyncio.all_tasks() - before == {call} - {call}
            assert all(not queue.slots for lane in runtime.scheduler.lanes.values() for queue in lane.queues)

    loop: asyncio.AbstractEventLoop
    call: asyncio.Task[Any]
    run_virtual(main())


def test_cancelling_a_resume_that_catches_up_ends_as_a_cancellation_and_changes_nothing(tmp_path: Path) -> None:
    setup = speculative(problems=2, tracks=3)
    expected = decisions(setup.run(tmp_path / "whole").lines)
    folder = cut(tmp_path / "whole", tmp_path / "cut", lines=len(read_all(tmp_path / "whole")) * 3 // 4)
    before = (folder / "trace.jsonl").read_bytes(), (folder / RUN_FILE).read_bytes()

    async def main(turns: int) -> None:
        async with Runtime(parts(setup.engines())) as runtime:
            resumption = setup.resumption(folder)
            run = runtime.run(setup.problems, setup.strategy, directory=folder, resumption=resumption)
            call = asyncio.create_task(run)
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    for turns in (2, 5, 10):
        run_virtual(main(turns))
        assert ((folder / "trace.jsonl").read_bytes(), (folder / RUN_FILE).read_bytes()) == before
    assert decisions(setup.resume(folder).lines) == expected


def test_a_refused_resume_leaves_files_and_the_clock_as_they_were(tmp_path: Path) -> None:
    setup = speculative(problems=2, tracks=2)
    setup.run(tmp_path / "whole")
    folder = cut(tmp_path / "whole", tmp_path / "cut", lines=60)
    trace = folder / "trace.jsonl"
    lines = trace.read_text().splitlines(keepends=True)
    scored = next(index for index, line in enumerate(lines) if '"step_scored"' in line)
    lines[scored] = lines[scored].replace('"digest":"', '"digest":"x', 1)
    trace.write_text("".join(lines))
    before = trace.read_bytes(), (folder / RUN_FILE).read_bytes()
    for _ in range(2):
        with pytest.raises(ResumeError, match="another one than recorded"):
            setup.resume(folder)
        assert (trace.read_bytes(), (folder / RUN_FILE).read_bytes()) == before


def test_leaving_the_runtime_ends_every_call_that_is_under_way() -> None:
    def reply(request: Request, prompt: str) -> Reply:
        return Reply("Step.\n\n" * 400, wait_s=1.0)

    engine = ScriptedEngine(reply, name="target")
    strategy = make_strategy("parallel", tracks=3)

    async def main() -> None:
        before = asyncio.all_tasks()
        runtime = Runtime(parts({Role.TARGET: engine}))
        async with runtime:
            stream = runtime.stream(PROBLEM, strategy)
            await anext(stream)
            other = asyncio.create_task(runtime.solve(PROBLEM, strategy))
            await asyncio.sleep(0.1)
        assert not engine.stats().running
        with pytest.raises(RuntimeClosedError):
            await other
        with pytest.raises(RuntimeClosedError):
            async for _ in stream:
                pass
        assert asyncio.all_tasks() <= before

    run_virtual(main())


# ------------------------------------------------------------------------------------------- slow readers, and stalls


def test_a_reader_that_is_slow_holds_up_nobody_and_loses_nothing() -> None:
    texts = [f"Step {number} of the long way.\n\n" for number in range(500)]

    def reply(request: Request, prompt: str) -> Reply:
        done = prompt.count("of the long way")
        return Reply("".join(texts[done:]) + r"So it is \boxed{4}.")

    engine = ScriptedEngine(reply, name="target", token_s=0.001)
    slow = make_strategy("parallel", tracks=3, token_budget=100_000)
    quick = make_strategy("baseline", token_budget=40)

    async def main() -> list[Event]:
        async with Runtime(parts({Role.TARGET: engine}), in_flight_max=2) as runtime:
            seen: list[Event] = []
            async with aclosing(runtime.stream(PROBLEM, slow)) as stream:
                async for event in stream:
                    seen.append(event)
                    if len(seen) == 10:
                        await asyncio.sleep(3600.0)  # by then it is far behind, and its tracks wait for it
                        asked = now_s()
                        await runtime.solve(Problem("other", "What is one and three?", "4"), quick)
                        assert now_s() - asked < 5.0
            return seen

    seen = run_virtual(main())
    assert {event.reason for event in seen if isinstance(event, TrackPaused)} == {"reader"}
    ends = [event for event in seen if isinstance(event, TrackFinished)]
    assert [event.reason for event in ends] == ["answer"] * 3
    steps = [event.text for event in seen if isinstance(event, StepWritten) and event.track == ends[0].track]
    assert "".join(steps) == "".join(texts) + r"So it is \boxed{4}."


def test_an_engine_that_stalls_ends_its_tracks_with_that_error() -> None:
    engine = ScriptedEngine(lambda request, prompt: Reply("One.\n\nTwo.\n\nThree", token_s=1e6), name="target")
    seen = Collector()

    async def main() -> None:
        async with Runtime(parts({Role.TARGET: engine})) as runtime:
            await runtime.solve(PROBLEM, make_strategy("parallel", tracks=2), sinks=[seen])

    run_virtual(main())
    assert [event.reason for event in seen.of(TrackFinished)] == ["error", "error"]
    assert all((event.error or "").startswith(EngineStalledError.__name__) for event in seen.of(TrackFinished))


# --------------------------------------------------------------------------------------------------- what was learned


def test_a_run_that_goes_on_knows_what_its_controller_had_learned(tmp_path: Path) -> None:
    one = world(12.0)
    strategy = make_strategy("speculative", tracks=5, speculate="auto", token_budget=1500)
    setup = Setup(lambda: simulated(one), strategy, one.problems(3))
    engines = setup.engines()
    learned: list[Any] = []

    class Spy(Runtime):
        async def __aexit__(self, *error: Any) -> None:
            learned.append(self.scheduler.controller)
            await super().__aexit__(*error)

    async def main() -> None:
        async with Spy(parts(engines, ExactAnswers())) as runtime:
            await runtime.run(setup.problems, strategy, directory=tmp_path / "run")

    run_virtual(main())
    (live,) = learned
    again = Scheduler(simulated(one)).controller
    assert again is not None
    again.budget = strategy.limits.token_budget
    again.recall(lasting(read_all(tmp_path / "run")))
    for name in ("threshold", "gain", "worth_a_try", "_eager", "_probes"):
        assert getattr(again, name) == pytest.approx(getattr(live, name)), name
    for name in ("steps", "verdicts", "token_s", "_shape"):
        assert getattr(again._experience, name) == getattr(live._experience, name), name  # pyright: ignore[reportPrivateUsage]
    for role in Role:
        assert again._fits[role].costs == live._fits[role].costs  # pyright: ignore[reportPrivateUsage]
    assert past_of(read_all(tmp_path / "run"), "run").finished
