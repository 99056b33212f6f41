from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import Collector, make_strategy, operation, parts, play

from speclrm.app import trace_check
from speclrm.evaluators.metrics import summarize
from speclrm.evaluators.report import write_reports
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine, by_step
from speclrm.runtime.engines.simulated.engine import DELTA_TOKENS, SPAN_MAX
from speclrm.runtime.engines.simulated.presets import simulated_engines
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld
from speclrm.runtime.events import (
    EngineFacts,
    EngineReport,
    Event,
    MethodsChosen,
    ModeChanged,
    Operation,
    OperationDropped,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCommitted,
    StepDrafted,
    StepGated,
    StepScored,
    StepWritten,
    TrackFinished,
)
from speclrm.runtime.ledger import Ledger, TokenCounts
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speclrm.runtime.engine import Request

TRACES = Path(__file__).parent.parent / "traces"


def ledger(events: Iterable[Event]) -> Ledger:
    fold = Ledger()
    for event in events:
        fold.add(event)
    return fold


def fates(counts: TokenCounts) -> int:
    return counts.kept + counts.rejected + counts.dropped + counts.useless + counts.judge + counts.choice


# ---------------------------------------------------------------------------------------------------- by hand


def spent(output: int, prompt: int = 0, cached: int = 0, queue_s: float = 0.0, engine_s: float = 0.0) -> Operation:
    return Operation(
        id="p/0/A/0/x",
        engine="e",
        seed=None,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        queue_s=queue_s,
        engine_s=engine_s,
    )


def at(track: str, step: int) -> Any:
    return {"problem": "p", "repeat": 0, "track": track, "step": step}


def drafted(track: str, step: int, operation: Operation, **more: Any) -> StepDrafted:
    return StepDrafted(**at(track, step), text="", ids=(), ended=False, operations=(operation,), **more)


def scored(track: str, step: int, operation: Operation) -> StepScored:
    return StepScored(**at(track, step), value=5, mass=1, digits=(), operations=(operation,))


def written(track: str, step: int, kind: Any, operation: Operation) -> StepWritten:
    return StepWritten(**at(track, step), write_kind=kind, text="", ids=(), ended=False, operations=(operation,))


def committed(track: str, step: int, origin: Any, tokens: int) -> StepCommitted:
    return StepCommitted(**at(track, step), origin=origin, tokens=tokens, score=None)


def dropped(track: str, step: int, purpose: Any, reason: Any, operation: Operation) -> OperationDropped:
    role = "draft" if purpose == "draft" else "target"
    return OperationDropped(**at(track, step), role=role, purpose=purpose, reason=reason, operation=operation)


def ended(track: str, reason: Any, answer: str | None = None) -> TrackFinished:
    return TrackFinished(problem="p", repeat=0, track=track, reason=reason, answer=answer, tokens=0)


def doubted(track: str, step: int) -> StepGated:
    return StepGated(**at(track, step), verdict="doubtful", mean_logprob=-3, first_entropy=None, tokens=4)


STARTED = RunStarted(
    run="r",
    started="",
    config={},
    versions={},
    machine={},
    engines={
        "draft": EngineFacts(name="d", parameters=10, max_num_seqs=4),
        "target": EngineFacts(name="t", parameters=100, kv_tokens=1000, max_num_seqs=4, replicas=2),
    },
)
FINISHED = RunFinished(
    status="finished",
    seconds=10.0,
    busy_s={"draft": 4.0, "target": 9.5},
    engines={
        "draft": EngineReport(idle_ready_s=0.5, iterations=20, batched=30, preemptions=0, operations=6, waited_s=0.25),
        "target": EngineReport(idle_ready_s=0.0, iterations=0, batched=0, preemptions=3, operations=9, waited_s=1.0),
    },
    deferred=2,
)
RUN: list[Event] = [
    STARTED,
    MethodsChosen(problem="p", repeat=0, codes=("A",), chosen_by="target", operations=(spent(12, 100),)),
    # Accepted, and one token came behind the step's end.
    drafted("A", 0, spent(8, 20, engine_s=2.0)),
    scored("A", 0, spent(1, 30, 16)),
    committed("A", 0, "draft", 7),
    # Rewritten. The next draft had been begun meanwhile.
    drafted("A", 1, spent(6, 28, 24, queue_s=0.5, engine_s=1.0)),
    scored("A", 1, spent(1, 38, 32)),
    dropped("A", 2, "draft", "useless", spent(5, 50, 48)),
    written("A", 1, "rewrite", spent(10, 28, 16)),
    committed("A", 1, "rewrite", 10),
    # Left as doubtful. The rewrite that had been made ahead of another step's score was not needed.
    drafted("A", 2, spent(3, 40, 32), left=True),
    doubted("A", 2),
    written("A", 2, "rewrite", spent(4, 40, 32)),
    committed("A", 2, "rewrite", 4),
    dropped("A", 3, "rewrite", "useless", spent(2, 40, 32)),
    # Of nine tokens four were put there to ask for the answer.
    written("A", 3, "closing", spent(5, 60, 48)),
    committed("A", 3, "closing", 9),
    ended("A", "budget", "4"),
    # Left as doubtful, and cancelled while the target wrote the step anew.
    drafted("B", 0, spent(4, 20, 20)),
    doubted("B", 0),
    dropped("B", 0, "rewrite", "cancelled", spent(2, 24, 16)),
    ended("B", "cancelled"),
    # Cancelled while its score waited for a place: the engine never saw that request.
    drafted("C", 0, spent(2, 20)),
    dropped("C", 0, "score", "stopped", spent(0)),
    ended("C", "stopped"),
    FINISHED,
]


def test_each_token_is_booked_by_model_and_fate() -> None:
    tokens = ledger(RUN).tokens()
    assert tokens["draft"] == TokenCounts(
        generated=28, kept=7, rejected=6 + 3 + 4, dropped=1 + 2, useless=5, prompt=178, cached=124
    )
    assert tokens["target"] == TokenCounts(
        generated=37, kept=10 + 4 + 5, dropped=2, useless=2, judge=2, choice=12, prompt=360, cached=192, forced=4
    )
    assert all(fates(counts) == counts.generated for counts in tokens.values())
    assert tokens["draft"].discarded == pytest.approx(21 / 28)
    assert tokens["draft"].cache_hit == pytest.approx(124 / 178)


def test_steps_and_phases_are_counted_by_what_they_were_for() -> None:
    fold = ledger(RUN)
    steps = fold.steps()
    assert (steps.drafted, steps.accepted, steps.rejected, steps.rewritten, steps.closings) == (5, 1, 3, 2, 1)
    assert (steps.acceptance, steps.token_acceptance) == (1 / 4, 8 / 21)
    phases = fold.phases()
    assert {name: phase.requests for name, phase in phases.items()} == {
        "choose": 1,
        "closing": 1,
        "draft": 6,
        "rewrite": 4,
        "score": 2,
    }
    assert (phases["draft"].queue_s, phases["draft"].engine_s, phases["draft"].mean_s) == (0.5, 3.0, 0.5)


def test_a_chain_is_what_was_generated_and_kept_of_a_track_with_an_answer() -> None:
    fold = ledger(RUN)
    assert (fold.chains, fold.chain_length) == (1, 7 + 10 + 4 + 5)


def test_operations_are_two_for_each_parameter_and_token() -> None:
    fold = ledger(RUN)
    flops = fold.flops()
    assert (flops["draft"].decode, flops["target"].decode) == (2 * 10 * 28, 2 * 100 * 37)
    assert (flops["draft"].all, flops["target"].all) == (2 * 10 * (28 + 54), 2 * 100 * (37 + 168))
    both = fold.all_flops()
    assert both is not None
    assert (both.decode, both.all) == (7_960, 42_640)


def test_no_sum_of_operations_is_made_up_for_a_model_of_unknown_size() -> None:
    engines = {**STARTED.engines, "draft": EngineFacts(name="d", max_num_seqs=4)}
    fold = ledger([STARTED.model_copy(update={"engines": engines}), *RUN[1:]])
    assert fold.flops().keys() == {"target"}
    assert fold.all_flops() is None


def test_engines_are_told_by_what_they_did_not_do() -> None:
    fold = ledger(RUN)
    draft, target = fold.engines()["draft"], fold.engines()["target"]
    assert (draft.idle, draft.idle_ready, draft.batch, draft.operations, draft.waited_s) == (0.6, 0.05, 1.5, 6, 0.25)
    assert (target.idle, target.idle_ready, target.batch, target.preemptions) == (0.05, 0.0, None, 3)
    assert target.facts == STARTED.engines["target"]
    assert fold.deferred == 2
    before_the_end = ledger(RUN[:-1]).engines()["draft"]
    assert (before_the_end.idle, before_the_end.idle_ready, before_the_end.batch) == (None, None, None)


def test_shares_of_a_resumed_run_are_of_the_attempts_that_told_of_their_engines() -> None:
    """An attempt of 70 s that was killed told nothing. Its engine was not idle for that."""

    def scored(t: float) -> StepScored:
        one = Operation(id="p/0/M1/0/score", engine="t", seed=0, prompt_tokens=50, output_tokens=1)
        where: Any = {"problem": "p", "repeat": 0, "track": "M1", "step": 0}
        return StepScored(**where, t=t, value=9.0, mass=1.0, digits=(), operations=(one,))

    report = EngineReport(
        idle_ready_s=0.3, iterations=10, batched=20, preemptions=0, operations=1, waited_s=0, output_tokens=1
    )
    fold = ledger(
        [
            RunStarted(t=0.0, run="r", started="", config={}, versions={}, machine={}),
            scored(70.0),
            RunResumed(t=70.0, started="", config={}, versions={}, machine={}),
            scored(80.0),
            RunFinished(t=100.0, status="finished", seconds=100.0, busy_s={"target": 27.0}, engines={"target": report}),
        ]
    )
    use = fold.engines()["target"]
    assert (use.idle, use.idle_ready) == (pytest.approx(0.1), pytest.approx(0.01))
    assert (use.operations, use.output_tokens) == (2, 2)
    assert fold.seconds == 100.0


def test_a_run_that_breaks_off_loses_the_steps_it_was_on() -> None:
    fold = ledger([STARTED, drafted("A", 0, spent(8, 20)), written("B", 0, "write", spent(5, 20))])
    assert fold.tokens()["draft"].dropped == 0
    fold.add(FINISHED)
    assert (fold.tokens()["draft"].dropped, fold.tokens()["target"].dropped) == (8, 5)


# ------------------------------------------------------------------------------------------- runs and their traces


@pytest.mark.parametrize("name", ["v1-scripted", "v1-simulated"])
def test_traces_of_the_first_form_are_summarised(name: str) -> None:
    path = TRACES / f"{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    operations = [(line, op) for line in lines for op in (*line.get("operations", ()), line.get("operation")) if op]
    summary = summarize(read_trace(path))
    assert summary.status == "finished"
    assert sum(counts.generated for counts in summary.tokens.values()) == sum(
        op["output_tokens"] for _, op in operations
    )
    assert sum(counts.prompt for counts in summary.tokens.values()) == sum(op["prompt_tokens"] for _, op in operations)
    assert all(fates(counts) == counts.generated for counts in summary.tokens.values())
    assert (summary.flops, summary.decode_flops, summary.all_flops) == ({}, None, None)
    for role, busy_s in lines[-1]["busy_s"].items():
        assert summary.engines[role].idle == pytest.approx(1 - busy_s / lines[-1]["seconds"], abs=1e-6)
        assert (summary.engines[role].facts, summary.engines[role].idle_ready) == (None, None)
    # What is kept of a track with an answer is what its steps hold, less the words that ask for it.
    answered = [line for line in lines if line["kind"] == "track_finished" and line["answer"] is not None]
    assert summary.chains == len(answered) > 0
    assert summary.chain_length == pytest.approx(
        (sum(line["tokens"] for line in answered) - sum(counts.forced for counts in summary.tokens.values()))
        / len(answered)
    )


def test_the_ledger_says_what_the_engines_count(tmp_path: Path) -> None:
    """Simulated engines count for themselves what the events only tell of."""
    world = SimulatedWorld(MIXES["a70"])
    engines = simulated_engines({Role.DRAFT: "sim/r1-1.5b", Role.TARGET: "sim/qwq-32b"}, world, shared_device=False)
    for engine in engines.values():
        engine.cost = replace(engine.cost, request_s=0.0)  # on its way to an engine a request keeps nobody busy
    live = Collector()

    async def main() -> None:
        async with Runtime(parts(engines)) as runtime:
            strategy = make_strategy("speculative", tracks=3, token_budget=2000)
            await runtime.run(world.problems(3), strategy, directory=tmp_path / "run", sinks=[live])
            for role, (stats,) in runtime.scheduler.stats().items():
                use = summary(role)
                assert (use.operations, use.waited_s) == (stats.operations, pytest.approx(stats.waited_s, abs=1e-5))
                assert use.batch == pytest.approx(stats.batch)

    def summary(role: Role) -> Any:
        return summarize(live.events).engines[role.value]

    run_virtual(main())
    told = summarize(live.events)
    assert told == summarize(read_trace(tmp_path / "run" / "trace.jsonl"))
    assert told.decode_flops is not None
    for role, engine in engines.items():
        counts, use = told.tokens[role.value], told.engines[role.value]
        assert (counts.generated, counts.prompt - counts.cached) == (engine.output_tokens, engine.prefilled)
        assert counts.cached == engine.cached_tokens
        assert engine.preemptions == use.preemptions == 0
        assert engine.output_tokens == use.output_tokens
        assert use.idle == pytest.approx(1 - engine.busy_s / told.seconds, abs=1e-3)
        assert use.facts == EngineFacts(
            name=engine.name, parameters=engine.parameters, kv_tokens=engine.kv_tokens, max_num_seqs=256
        )
        assert engine.parameters is not None
        assert told.flops[role.value].decode == 2 * engine.parameters * engine.output_tokens


def test_what_aborted_requests_had_made_and_never_told_is_in_the_engines_own_count() -> None:
    world = SimulatedWorld(MIXES["a70"])
    engines = simulated_engines({Role.DRAFT: "sim/r1-1.5b", Role.TARGET: "sim/qwq-32b"}, world, shared_device=False)
    live = Collector()

    async def main() -> None:
        async with Runtime(parts(engines)) as runtime:
            strategy = make_strategy("speculative", tracks=5, fast=1, speculate="auto")
            await runtime.run(world.problems(2), strategy, sinks=[live])

    run_virtual(main())
    told = summarize(live.events)
    aborts = len(live.of(OperationDropped))
    for role, engine in engines.items():
        lost = told.engines[role.value].output_tokens - told.tokens[role.value].generated
        assert told.engines[role.value].output_tokens == engine.output_tokens
        assert 0 < lost <= (SPAN_MAX + DELTA_TOKENS) * aborts


def test_steps_are_counted_by_what_the_controller_made_of_them() -> None:
    world = SimulatedWorld(MIXES["aime-mix"])
    engines = simulated_engines({Role.DRAFT: "sim/r1-1.5b", Role.TARGET: "sim/qwq-32b"}, world, shared_device=False)
    live = Collector()

    async def main() -> None:
        async with Runtime(parts(engines)) as runtime:
            strategy = make_strategy("speculative", tracks=3, token_budget=1000, speculate="auto")
            await runtime.run(world.problems(3), strategy, sinks=[live])

    run_virtual(main())
    summary = summarize(live.events)
    modes: dict[tuple[str, str], str] = {}
    counted: Counter[str] = Counter()
    for event in live.events:
        if isinstance(event, ModeChanged):
            modes[event.problem, event.track] = event.mode
            counted["changes"] += 1
        elif isinstance(event, StepCommitted):
            mode = modes.get((event.problem, event.track), "speculate")
            counted["closing" if event.origin == "closing" else mode] += 1
    told = summary.modes
    assert (told.changes, told.written) == (counted["changes"], counted["write"])
    assert (told.speculated, told.eager) == (counted["speculate"] + counted["eager"], counted["eager"])
    assert told.changes > 0
    assert told.written > 0
    # Of what an engine had made when a request was left, the last few tokens may not have come.
    for role, engine in engines.items():
        lost = engine.output_tokens - summary.tokens[role.value].generated
        assert 0 <= lost < DELTA_TOKENS * (told.changes + len(live.of(OperationDropped)))


def test_a_report_is_of_its_own_run_and_not_of_those_before_it() -> None:
    engine = ScriptedEngine(by_step(["It is \\boxed{4}."]))
    runs = [Collector(), Collector()]

    async def main() -> None:
        async with Runtime(parts({Role.TARGET: engine})) as runtime:
            for collector in runs:
                await runtime.run([Problem("p", "?", "4")], make_strategy("baseline"), sinks=[collector])

    run_virtual(main())
    first, second = (summarize(collector.events).engines["target"] for collector in runs)
    assert first.operations == second.operations == 1
    assert (first.idle, second.idle) == (0.0, 0.0)
    assert first.facts == EngineFacts(name="scripted", max_num_seqs=256)


def test_a_request_that_was_given_up_before_it_was_answered_costs_no_prompt() -> None:
    def target(request: Request, prompt: str) -> Reply:
        return Reply(score=9, wait_s=0.1)

    draft = by_step(["It is \\boxed{4}."])
    played = play(make_strategy("speculative", tracks=4, fast=1), target=target, draft=draft, in_flight_max=1)
    assert played.draft is not None
    # One draft was at work when the first track ended the sample, and had said something; two had not had their turn.
    dropped = played.collector.of(OperationDropped)
    assert sorted((one.operation.output_tokens > 0, one.operation.prompt_tokens > 0) for one in dropped) == [
        (False, False),
        (False, False),
        (True, True),
    ]
    summary = summarize(played.collector.events)
    assert summary.tokens["draft"].prompt == played.draft.stats().prompt_tokens
    assert summary.phases["draft"].requests == len(played.draft.requests) == 2


@pytest.mark.parametrize("seed", range(6))
def test_work_ahead_that_was_not_wanted_is_useless_and_nothing_else_is(seed: int) -> None:
    dice = random.Random(seed)
    steps = [f"Step {number} of them.\n\n" for number in range(4)] + ["It is \\boxed{4}."]
    scores = {(track, step): dice.choice([2, 9]) for track in range(9) for step in range(5)}

    def target(request: Request, prompt: str) -> Reply:
        _, track, step, kind = operation(request)
        if kind == "score":
            return Reply(score=scores[int(track[-1]), step], wait_s=dice.choice([0.0, 0.4]))
        return Reply(steps[step], wait_s=dice.choice([0.0, 0.1]))

    played = play(
        make_strategy("speculative", tracks=3, fast=1, draft_ahead="always", rewrite_ahead="always"),
        draft=by_step(steps),
        target=target,
    )
    told = summarize(played.collector.events).tokens
    useless: Counter[str] = Counter()
    for event in played.collector.of(OperationDropped):
        if event.reason == "useless":
            assert event.operation.id.endswith("-ahead")
            useless[event.role] += event.operation.output_tokens
    assert {role: counts.useless for role, counts in told.items()} == {role: useless[role] for role in told}
    assert useless.total() > 0
    for role, engine in (("draft", played.draft), ("target", played.target)):
        assert engine is not None
        assert told[role].generated == engine.stats().output_tokens == fates(told[role])


@pytest.mark.parametrize("options", [{}, {"draft_ahead": "always", "rewrite_ahead": "always"}, {"gate_doubt": -2.0}])
@pytest.mark.parametrize("seed", range(4))
def test_the_checker_that_counts_for_itself_agrees(seed: int, options: dict[str, Any], tmp_path: Path) -> None:
    dice = random.Random(seed)

    def target(request: Request, prompt: str) -> Reply:
        _, _, step, kind = operation(request)
        if kind == "score":
            return Reply(score=dice.choice([2, 9]), wait_s=dice.choice([0.0, 0.4]))
        return Reply("It is \\boxed{4}." if step > 3 else f"Step {step} anew.\n\n", wait_s=dice.choice([0.0, 0.1]))

    def draft(request: Request, prompt: str) -> Reply:
        step = operation(request)[2]
        text = "It is \\boxed{4}." if step > 3 else f"Step {step} of them, and on.\n\n"
        return Reply(text, logprobs=(dice.choice([-0.1, -3.0]),))

    folder = tmp_path / "run"
    chosen = make_strategy("speculative", tracks=3, fast=1, **options)
    config: dict[str, Any] = {"recipe": chosen.recipe.model_dump(mode="json")}  # type: ignore[attr-defined]
    played = play(chosen, draft=draft, target=target, directory=folder, config=config)
    summary = summarize(played.collector.events)
    write_reports(folder, summary)
    assert trace_check.check(folder).violations == ()
    assert summary.tokens["draft"].discarded
    assert (summary.doubtful > 0) is ("gate_doubt" in options)
