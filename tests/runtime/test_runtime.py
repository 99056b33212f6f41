"""Whole runs on scripted engines under virtual time: concurrency, errors, cancellation, repeatability."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING

import pytest
from support import PROBLEM, Collector, ExactAnswers, make_strategy, operation, parts, play

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine, by_step
from speclrm.runtime.errors import (
    EngineDeadError,
    RequestError,
    RunDirectoryError,
    SettingsError,
    TooManyErrors,
)
from speclrm.runtime.events import (
    EVENT,
    Event,
    OperationDropped,
    ProblemStarted,
    RunFinished,
    SampleFinished,
    StepCommitted,
    TrackFinished,
    TrackStarted,
)
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.sample import MADE_AT_ONCE
from speclrm.runtime.samples import STARTED_AT_ONCE
from speclrm.runtime.state import SampleState, apply
from speclrm.runtime.trace import run_directory

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.engine import Request
    from speclrm.runtime.engines.scripted import Script

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]
PROBLEMS = [Problem(f"p{number}", f"Problem {number}", "4") for number in range(6)]
SCORES = by_step(STEPS, scores=[9, 3, 8])


def engines() -> dict[Role, ScriptedEngine]:
    return {
        Role.DRAFT: ScriptedEngine(by_step(STEPS), name="draft"),
        Role.TARGET: ScriptedEngine(SCORES, name="target"),
    }


def test_all_samples_come_back_in_order_with_repeats() -> None:
    played = play(make_strategy("speculative"), draft=by_step(STEPS), target=SCORES, problems=PROBLEMS, repeats=2)
    assert [(s.problem, s.repeat) for s in played.samples] == [(p.id, r) for p in PROBLEMS for r in range(2)]
    assert {s.outcome for s in played.samples} == {"correct"}
    assert all(len(s.tracks) == 3 and s.classes == (s.finished_tracks,) for s in played.samples)


def test_the_trace_holds_all_events_and_folds_into_the_live_state(tmp_path: Path) -> None:
    played = play(
        make_strategy("speculative"), draft=by_step(STEPS), target=SCORES, problems=PROBLEMS, directory=tmp_path / "run"
    )
    lines = (tmp_path / "run" / "trace.jsonl").read_text().splitlines()
    events = [EVENT.validate_json(line) for line in lines]
    assert events == played.collector.events
    assert [event.seq for event in events] == list(range(len(events)))
    assert [event.t for event in events] == sorted(event.t for event in events)
    for sample in played.samples:
        state = SampleState(sample.problem, sample.repeat)
        for event in events:
            if getattr(event, "problem", None) == sample.problem:
                state = apply(state, event)
        assert state == sample


def test_the_same_seed_and_script_give_the_same_trace_byte_for_byte(tmp_path: Path) -> None:
    def trace(name: str, seed: int) -> str:
        play(
            make_strategy("speculative"),
            draft=by_step(STEPS),
            target=SCORES,
            problems=PROBLEMS,
            seed=seed,
            directory=tmp_path / name,
        )
        lines = (tmp_path / name / "trace.jsonl").read_text().splitlines()
        return "\n".join(lines[1:])  # the first line names the run, its time and its machine

    one = trace("one", 1)
    assert trace("two", 1) == one
    assert trace("three", 2) != one


def test_another_order_of_arrival_changes_no_track_of_its_own() -> None:
    def slow(request: Request, prompt: str) -> Reply:
        reply = SCORES(request, prompt)
        return Reply(reply.text, score=reply.score, token_s=1.0 if operation(request)[0] == "p3" else 0.001)

    def decisions(target: object) -> list[object]:
        played = play(make_strategy("speculative"), draft=by_step(STEPS), target=target, problems=PROBLEMS)  # type: ignore[arg-type]
        return [(s.problem, {name: track.steps for name, track in s.tracks.items()}) for s in played.samples]

    assert decisions(slow) == decisions(SCORES)


def test_a_slow_track_delays_no_other() -> None:
    def draft(request: Request, prompt: str) -> Reply:
        slow = operation(request)[1].endswith("1")
        return Reply(by_step(STEPS)(request, prompt).text, token_s=10.0 if slow else 0.01)

    played = play(make_strategy("speculative"), draft=draft, target=SCORES)
    ends = {event.track[-1]: event.t for event in played.collector.of(TrackFinished)}
    assert ends["2"] == ends["3"] < 5 < 100 < ends["1"]


def test_no_more_samples_than_asked_for_are_at_work() -> None:
    played = play(make_strategy("baseline"), target=by_step(STEPS), problems=PROBLEMS, concurrency=2)
    at_work = most = 0
    for event in played.collector.events:
        at_work += (event.kind == "problem_started") - (event.kind == "sample_finished")
        most = max(most, at_work)
    assert most == 2


def test_each_sample_has_a_judge_of_its_own_where_there_are_such() -> None:
    class Judges(ExactAnswers):
        def __init__(self) -> None:
            self.given: list[ExactAnswers] = []

        def of_sample(self) -> ExactAnswers:
            self.given.append(ExactAnswers())
            return self.given[-1]

    async def main() -> int:
        judges = Judges()
        async with Runtime(parts(engines(), judges)) as runtime:
            await runtime.run(PROBLEMS, make_strategy("speculative"), repeats=2)
            await runtime.solve(PROBLEM, make_strategy("speculative"))
        return len(judges.given)

    assert run_virtual(main()) == 2 * len(PROBLEMS) + 1


def test_an_error_of_one_track_ends_that_track_alone() -> None:
    def target(request: Request, prompt: str) -> Reply:
        if operation(request)[1].endswith("2"):
            return Reply(error=RequestError("this one fails"))
        return by_step(STEPS)(request, prompt)

    played = play(make_strategy("parallel"), target=target)
    reasons = {event.track[-1]: (event.reason, event.error) for event in played.collector.of(TrackFinished)}
    assert reasons["2"] == ("error", "RequestError: this one fails")
    assert reasons["1"][0] == reasons["3"][0] == "answer"
    assert played.sample.outcome == "correct"


@pytest.mark.parametrize(("kind", "origin"), [("draft", "write"), ("score", "rewrite")])
def test_a_request_that_an_engine_refuses_costs_its_step_the_draft_and_not_the_track(kind: str, origin: str) -> None:
    def refusing(script: Script) -> Script:
        def answer(request: Request, prompt: str) -> Reply:
            if operation(request)[2:] == (1, kind):
                return Reply(error=RequestError("Token id 152059 is out of vocabulary"))
            return script(request, prompt)

        return answer

    target = by_step(STEPS, scores=[9] * len(STEPS))
    played = play(make_strategy("speculative", tracks=1), draft=refusing(by_step(STEPS)), target=refusing(target))
    committed = played.collector.of(StepCommitted)
    assert [event.origin for event in committed] == ["draft", origin, *["draft"] * (len(STEPS) - 2)]
    assert "".join(step.text for step in next(iter(played.sample.tracks.values())).steps) == "".join(STEPS)
    refused = [event for event in played.collector.of(OperationDropped) if event.reason == "error"]
    assert [(event.step, event.purpose) for event in refused] == [(1, kind)]
    assert refused[0].error == "RequestError: Token id 152059 is out of vocabulary"


def test_a_run_whose_tracks_mostly_fail_stops_with_the_reason() -> None:
    collector = Collector()

    async def main() -> None:
        broken = ScriptedEngine(lambda request, prompt: Reply(error=RequestError("no luck"), wait_s=1.0))
        async with Runtime(parts({Role.TARGET: broken})) as runtime:
            await runtime.run(
                [Problem(str(n), "x") for n in range(100)], make_strategy("baseline"), concurrency=4, sinks=[collector]
            )

    with pytest.raises(TooManyErrors, match="no luck"):
        run_virtual(main())
    assert len(collector.of(TrackFinished)) < 20
    assert collector.of(RunFinished)[-1].status == "failed"


@pytest.mark.parametrize(("allowed", "stops"), [(None, False), (2, False), (1, True), (0, True)])
def test_more_samples_with_errors_than_allowed_stop_the_run(allowed: int | None, stops: bool) -> None:
    """A few fail here and there: never so many that the run would stop without being asked to."""
    collector = Collector()

    def answer(request: Request, prompt: str) -> Reply:
        if request.id.split("/")[0] in ("3", "20"):
            return Reply(error=RequestError("no luck"), wait_s=0.05)
        return Reply("So it is \\boxed{4}.")

    async def main() -> None:
        async with Runtime(parts({Role.TARGET: ScriptedEngine(answer)})) as runtime:
            problems = [Problem(str(n), "x", "4") for n in range(30)]
            await runtime.run(problems, make_strategy("baseline"), concurrency=4, sinks=[collector], max_errors=allowed)

    if stops:
        with pytest.raises(TooManyErrors, match=f"--max-errors allows {allowed}.*no luck.*speclrm resume"):
            run_virtual(main())
    else:
        run_virtual(main())
    finished = collector.of(SampleFinished)
    failed = [event.problem for event in finished if event.outcome == "error"]
    assert failed == (["3", "20"] if allowed != 0 else ["3"])
    assert (len(finished) == 30) is not stops
    assert collector.of(RunFinished)[-1].status == ("failed" if stops else "finished")


def test_a_dead_engine_stops_the_run_and_closes_every_track() -> None:
    collector = Collector()

    def target(request: Request, prompt: str) -> Reply:
        if operation(request)[0] == "p2":
            return Reply(error=EngineDeadError("gone"), wait_s=0.05)
        return by_step(STEPS)(request, prompt)

    async def main() -> None:
        async with Runtime(parts({Role.TARGET: ScriptedEngine(target)})) as runtime:
            await runtime.run(PROBLEMS, make_strategy("baseline"), sinks=[collector])

    with pytest.raises(EngineDeadError, match="gone"):
        run_virtual(main())
    started = {e.problem for e in collector.events if e.kind == "track_started"}
    assert {e.problem for e in collector.of(TrackFinished)} == started


@pytest.mark.parametrize("name", ["baseline", "speculative"])
def test_tracks_on_an_engine_that_stands_still_end_with_that_error(name: str) -> None:
    played = play(
        make_strategy(name),
        draft=by_step(STEPS),
        target=lambda request, prompt: Reply("Two words.\n\nAnd more.", score=9, wait_s=1e9),
    )
    ends = played.collector.of(TrackFinished)
    assert {event.reason for event in ends} == {"error"}
    assert all("EngineStalledError" in (event.error or "") for event in ends)
    dropped = played.collector.of(OperationDropped)
    assert {(event.reason, event.operation.output_tokens) for event in dropped} == {("error", 0)}
    assert played.target is not None
    assert played.target.stats().running == 0


def test_a_write_that_waits_in_the_queue_is_reported_when_its_track_is_stopped() -> None:
    played = play(make_strategy("parallel", tracks=3, fast=1), target=by_step(STEPS), in_flight_max=1)
    dropped = {event.track: event for event in played.collector.of(OperationDropped)}
    assert [name[-1] for name in dropped] == ["2", "3"]
    for event in dropped.values():
        assert (event.reason, event.purpose) == ("stopped", "write")
        assert (event.operation.prompt_tokens, event.operation.output_tokens) == (0, 0)


@pytest.mark.parametrize("moment_s", [0.0, 0.005, 0.02, 0.13, 0.16, 0.3, 0.35, 0.5])
def test_cancelling_a_call_frees_the_engines_and_leaves_a_closed_trace(moment_s: float, tmp_path: Path) -> None:
    pair = engines()

    async def main() -> None:
        async with Runtime(parts(pair)) as runtime:
            call = asyncio.create_task(
                runtime.run(PROBLEMS, make_strategy("speculative"), concurrency=2, directory=tmp_path / "run")
            )
            await asyncio.sleep(moment_s)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert all(engine.stats().running == 0 for engine in pair.values())
            assert all(one.in_flight == 0 for lane in runtime.scheduler.stats().values() for one in lane)

    run_virtual(main())
    if moment_s:
        events = [EVENT.validate_json(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
        last = events[-1]
        assert isinstance(last, RunFinished)
        assert last.status == "cancelled"
        opened = [(e.problem, e.track) for e in events if e.kind == "track_started"]
        closed = [(e.problem, e.track) for e in events if isinstance(e, TrackFinished)]
        assert sorted(opened) == sorted(closed)


def test_cancelling_one_caller_leaves_the_others_alone() -> None:
    async def main() -> tuple[bool, str | None]:
        async with Runtime(parts(engines())) as runtime:
            one = asyncio.create_task(runtime.solve(PROBLEM, make_strategy("speculative")))
            two = asyncio.create_task(runtime.solve(PROBLEM, make_strategy("speculative")))
            await asyncio.sleep(0.1)
            one.cancel()
            state = await two
            await asyncio.gather(one, return_exceptions=True)
            return one.cancelled(), state.answer

    assert run_virtual(main()) == (True, "4")


def test_a_stream_gives_the_events_as_they_happen() -> None:
    async def main() -> list[tuple[str, float]]:
        async with Runtime(parts(engines())) as runtime:
            return [
                (event.kind, now_s()) async for event in runtime.stream(PROBLEM, make_strategy("speculative", tracks=1))
            ]

    seen = run_virtual(main())
    assert (seen[0][0], seen[-1][0]) == ("run_started", "run_finished")
    commits = [t for kind, t in seen if kind == "step_committed"]
    assert commits == sorted(set(commits))


def test_leaving_a_stream_ends_its_work() -> None:
    pair = engines()

    async def main() -> int:
        async with Runtime(parts(pair)) as runtime:
            stream = runtime.stream(PROBLEM, make_strategy("speculative"))
            async for event in stream:
                if isinstance(event, StepCommitted):
                    break
            await stream.aclose()
            return sum(engine.stats().running for engine in pair.values())

    assert run_virtual(main()) == 0


def test_a_stream_passes_on_the_error_that_ended_it() -> None:
    async def main() -> list[Event]:
        dead = ScriptedEngine(lambda request, prompt: Reply(error=EngineDeadError("gone")))
        async with Runtime(parts({Role.TARGET: dead})) as runtime:
            return [event async for event in runtime.stream(PROBLEM, make_strategy("baseline"))]

    with pytest.raises(EngineDeadError, match="gone"):
        run_virtual(main())


def test_a_failing_sink_does_not_touch_the_run() -> None:
    class Broken(Collector):
        def emit(self, event: Event) -> None:
            raise ZeroDivisionError

    collector = Collector()

    async def main() -> None:
        async with Runtime(parts(engines())) as runtime:
            await runtime.solve(PROBLEM, make_strategy("speculative"), sinks=[Broken(), collector])

    run_virtual(main())
    assert collector.of(SampleFinished)[0].outcome == "correct"


def test_a_folder_that_holds_something_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="already holds another run"):
        play(make_strategy("baseline"), target=by_step(STEPS), directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_run_json_says_what_was_asked_and_where(tmp_path: Path) -> None:
    play(make_strategy("baseline"), target=by_step(STEPS), directory=tmp_path / "run", seed=5)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["seed"] == 5
    assert {"python", "speclrm"} <= record["versions"].keys()
    assert record["machine"]["cores"] >= 1


def test_a_strategy_without_its_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs a draft model"):
        play(make_strategy("speculative"), target=by_step(STEPS))


def test_a_runtime_that_is_not_open_says_so() -> None:
    async def main() -> None:
        await Runtime(parts(engines())).solve(PROBLEM, make_strategy("baseline"))

    with pytest.raises(SettingsError, match="not open"):
        run_virtual(main())


def test_the_bound_on_requests_in_flight_holds_and_everything_still_ends() -> None:
    pair = engines()
    played = play(
        make_strategy("speculative", tracks=5),
        draft=by_step(STEPS),
        target=SCORES,
        problems=PROBLEMS,
        engines=pair,
        in_flight_max=1,
    )
    assert {s.outcome for s in played.samples} == {"correct"}


def most_started_at_once(samples: int, tracks: int) -> int:
    """The most events of samples that begin that come before anything else on the loop has its turn."""
    seen: list[int] = []

    class Starts(Collector):
        def emit(self, event: Event) -> None:
            seen.append(isinstance(event, ProblemStarted | TrackStarted))

    async def main() -> int:
        async with Runtime(parts(engines()), in_flight_max=2) as runtime:
            problems = [Problem(f"p{number}", "x", "4") for number in range(samples)]
            strategy = make_strategy("parallel", tracks=tracks)
            task = asyncio.create_task(runtime.run(problems, strategy, concurrency=samples, sinks=[Starts()]))
            most = 0
            while sum(seen) < samples * (1 + tracks):
                before = sum(seen)
                await asyncio.sleep(0)  # time stands still meanwhile
                most = max(most, sum(seen) - before)
            await task
            return most

    return run_virtual(main())


def test_thousands_of_samples_or_tracks_do_not_all_start_in_one_breath() -> None:
    """They would hold up everything else, and listeners would lose the first events of a run."""
    assert most_started_at_once(4 * STARTED_AT_ONCE, 1) <= 2 * STARTED_AT_ONCE
    assert most_started_at_once(1, 10 * MADE_AT_ONCE) <= MADE_AT_ONCE + 1


def test_an_attempt_looks_up_the_versions_of_packages_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    look_up = run_directory.metadata.version

    def version(name: str) -> str:
        asked.append(name)
        return look_up(name)

    monkeypatch.setattr(run_directory.metadata, "version", version)
    run_directory._versions.cache_clear()  # pyright: ignore[reportPrivateUsage]

    async def main() -> None:
        async with Runtime(parts(engines())) as runtime:
            for _ in range(3):
                await runtime.solve(PROBLEM, make_strategy("baseline"))

    run_virtual(main())
    assert len(asked) == len(set(asked)) > 0
    first, second = run_directory.new_record({}), run_directory.new_record({})
    first.versions["speclrm"] = "another"
    assert second.versions["speclrm"] != "another"


def test_a_caller_who_gives_up_twice_leaves_no_error_that_nobody_saw() -> None:
    class Failing(Collector):
        def emit(self, event: Event) -> None:
            if isinstance(event, RunFinished):
                raise ValueError("no room for the last event")

    told: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with Runtime(parts(engines())) as runtime:
            call = asyncio.create_task(
                runtime.run([PROBLEM], make_strategy("speculative"), required=[Failing()]), name="caller"
            )
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert call.cancelled()
        del call, runtime
        gc.collect()

    run_virtual(main())
    assert told == []
