"""The four families on scripted engines: how their tracks start, what the target is asked first, who ends whom."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from support import ExactAnswers, make_strategy, operation, parts, play

from speclrm.evaluators.answers import find_answer, finished_answer
from speclrm.evaluators.metrics import summarize
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import ByteTokenizer, Reply, ScriptedEngine, by_step
from speclrm.runtime.errors import RequestError, SettingsError
from speclrm.runtime.events import EVENT, MethodsChosen, OperationDropped, TrackFinished, TrackStarted
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.strategies.catalog import strategy
from speclrm.strategies.method_choice import read_methods
from speclrm.strategies.methods import METHODS
from speclrm.strategies.roles import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.engine import Request

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]


def chooser(reply: Reply) -> Callable[[Request, str], Reply]:
    """A target that answers the question with ``reply`` and judges every step with a 9."""
    steps = by_step(STEPS, scores=[9] * 3)

    def target(request: Request, prompt: str) -> Reply:
        return reply if operation(request)[3] == "choose" else steps(request, prompt)

    return target


def test_parallel_is_the_target_on_many_tracks_without_hints() -> None:
    played = play(make_strategy("parallel"), target=by_step(STEPS))
    assert list(played.sample.tracks) == ["M1", "M2", "M3"]
    assert played.sample.answer == "4"
    assert played.target is not None
    prompts = [played.target.tokenizer.decode(request.prompt_ids) for request in played.target.requests]
    assert not any(hint in prompt for prompt in prompts for hint in (*METHODS.values(), *ROLES.values()))


def test_each_of_four_tracks_has_a_role_of_its_own_until_the_roles_are_used_up() -> None:
    played = play(make_strategy("parallel", plan="roles", tracks=4), target=by_step(STEPS))
    assert list(played.sample.tracks) == ["R1.1", "R2.2", "R3.3", "R1.4"]
    for started in played.collector.of(TrackStarted):
        prompt = ByteTokenizer().decode(started.prompt_ids["target"])
        assert [code for code, text in ROLES.items() if text in prompt] == [started.track[:2]]


@pytest.mark.parametrize("name", ["parallel", "speculative-methods"])
def test_the_target_chooses_the_methods_and_the_choice_is_recorded(name: str) -> None:
    chosen = make_strategy(name, plan="chosen", tracks=3)
    played = play(chosen, draft=by_step(STEPS), target=chooser(Reply("B, E, B")))
    (event,) = played.collector.of(MethodsChosen)
    assert (event.codes, event.chosen_by, event.text, event.padded) == (("B", "E", "B"), "target", "B, E, B", 0)
    assert [operation.id for operation in event.operations] == ["p/0/plan/0/choose"]
    assert list(played.sample.tracks) == ["B1", "E2", "B3"]
    assert [started.hint for started in played.collector.of(TrackStarted)] == [METHODS[code] for code in "BEB"]
    summary = summarize(played.collector.events)
    counts = summary.tokens["target"]
    assert counts.choice == len("B, E, B")
    assert (
        counts.generated
        == counts.kept + counts.rejected + counts.dropped + counts.useless + counts.judge + counts.choice
    )


@pytest.mark.parametrize(
    ("reply", "count", "duplicates", "codes", "padded"),
    [
        ("B, E, F", 3, True, "BEF", 0),
        ("B,E", 3, True, "BEM", 1),
        ("", 2, True, "MM", 2),
        ("B B C", 3, True, "BBC", 0),
        ("B B C", 3, False, "BCM", 1),
        ("A, B, C, D", 2, True, "AB", 0),
        ("Z, N and 7", 2, True, "MM", 2),
        ("Invariants (I), then Casework: K", 2, True, "IK", 0),
        ("M, M, M", 3, True, "MMM", 0),
    ],
)
def test_a_reply_is_read_and_filled_up(reply: str, count: int, duplicates: bool, codes: str, padded: int) -> None:
    read = read_methods(reply, count, duplicates=duplicates, original=False)
    assert read == (tuple(codes), padded)


def test_a_choice_that_fails_is_a_choice_of_nothing_and_is_told() -> None:
    failing = chooser(Reply(error=RequestError("refused")))
    played = play(make_strategy("speculative-methods"), draft=by_step(STEPS), target=failing)
    (event,) = played.collector.of(MethodsChosen)
    assert (event.codes, event.padded, event.text) == (("M", "M", "M"), 3, None)
    assert event.error == "RequestError: refused"
    assert [dropped.purpose for dropped in played.collector.of(OperationDropped)] == ["choose"]
    assert played.sample.outcome == "correct"


def test_given_methods_are_taken_without_asking() -> None:
    played = play(
        make_strategy("speculative-methods", methods=("C", "A")),
        draft=by_step(STEPS),
        target=chooser(Reply(error=ValueError())),
    )
    assert played.sample.codes == ("C", "A", "C")


def test_roles_and_methods_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        make_strategy("parallel", plan="roles", methods=("A",))


def test_cancelling_while_the_target_chooses_frees_the_engine() -> None:
    engine = ScriptedEngine(chooser(Reply("A, B, C", wait_s=10.0)))
    engines = {Role.TARGET: engine, Role.DRAFT: ScriptedEngine(by_step(STEPS))}

    async def main() -> None:
        async with Runtime(parts(engines, ExactAnswers())) as runtime:
            task = asyncio.create_task(runtime.solve(Problem("p", "x", "4"), make_strategy("speculative-methods")))
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_virtual(main())
    assert engine.aborted == ["p/0/plan/0/choose"]


# ------------------------------------------------------------------------------------------------------------ early stops


def answers_after(seconds: dict[str, float], answers: dict[str, str]) -> Callable[[Request, str], Reply]:
    """Drafts one step with a track's answer, as late as told."""

    def draft(request: Request, prompt: str) -> Reply:
        place = operation(request)[1][-1]
        return Reply(f"\\boxed{{{answers[place]}}}", wait_s=seconds[place], token_s=0.0)

    return draft


@pytest.mark.parametrize(
    ("fast", "answers", "reasons", "answer"),
    [
        (None, "478", ("answer", "answer", "answer"), None),
        (1, "478", ("answer", "stopped", "stopped"), "4"),
        (2, "448", ("answer", "answer", "stopped"), "4"),
        (2, "484", ("answer", "answer", "answer"), "4"),
        (2, "478", ("answer", "answer", "answer"), None),
    ],
)
def test_fast_ends_the_others(fast: int | None, answers: str, reasons: tuple[str, ...], answer: str | None) -> None:
    draft = answers_after({"1": 1.0, "2": 2.0, "3": 3.0}, dict(zip("123", answers, strict=True)))
    chosen = make_strategy("speculative", fast=fast)
    played = play(chosen, draft=draft, target=by_step(STEPS, scores=[9]))
    assert tuple(track.reason for track in played.sample.tracks.values()) == reasons
    if answer is not None:
        assert played.sample.answer == answer
    stopped = [event for event in played.collector.of(TrackFinished) if event.reason == "stopped"]
    assert all(event.answer is None for event in stopped)
    assert played.draft is not None
    assert len(played.draft.aborted) == len(stopped)


# ------------------------------------------------------------------------------------------------------------ raw prompts


def test_raw_prompts_have_the_layout_of_the_original() -> None:
    played = play(
        make_strategy("speculative", tracks=1, methods=("A",), prompt_style="raw"),
        draft=by_step(STEPS),
        target=by_step(STEPS, scores=[9, 2, 9]),
    )
    assert played.draft is not None
    assert played.target is not None
    decode = ByteTokenizer().decode
    prompts = {request.id.partition("p/0/A1/")[2]: decode(request.prompt_ids) for request in played.draft.requests}
    prompts |= {request.id.partition("p/0/A1/")[2]: decode(request.prompt_ids) for request in played.target.requests}
    begin = prompts["0/draft"]
    assert f"Tips: {METHODS['A']}\n\nProblem: What is two and two?\n" in begin
    assert "<|" not in begin
    assert "<think>" not in begin
    # Every later request sees the opened thought between the prompt and the steps, the first step's own judge too.
    assert prompts["0/score"].startswith(f"{begin}\n<think>{STEPS[0]}\nJudge the last step alone")
    assert prompts["0/score"].rstrip().endswith("<think>I think the quality score is:")
    assert prompts["1/draft"] == prompts["1/rewrite"] == f"{begin}\n<think>{STEPS[0]}"
    assert prompts["2/draft"] == f"{begin}\n<think>{STEPS[0]}{STEPS[1]}"


def test_a_raw_plan_without_a_method_says_none() -> None:
    played = play(make_strategy("baseline", prompt_style="raw"), target=by_step(STEPS))
    assert played.target is not None
    prompt = ByteTokenizer().decode(played.target.requests[0].prompt_ids)
    assert "Tips: None" in prompt
    assert "<think>" not in prompt


def test_a_problem_with_choices_asks_for_a_letter() -> None:
    problem = Problem("p", "Which?\n\nChoices:\n(A) one\n(B) two", "B", "choice", json.dumps({"A": "one", "B": "two"}))
    played = play(make_strategy("baseline"), target=by_step(["\\boxed{B}"]), problems=[problem])
    assert played.target is not None
    assert "letter of the right choice" in ByteTokenizer().decode(played.target.requests[0].prompt_ids)


def test_the_events_of_a_choice_read_back_as_they_were() -> None:
    played = play(make_strategy("speculative-methods"), draft=by_step(STEPS), target=chooser(Reply("A, B, C")))
    for event in played.collector.events:
        assert EVENT.validate_json(event.model_dump_json()) == event


@pytest.mark.parametrize(
    ("steps", "answer", "count"),
    [
        (["Two and two make four.\n\n", "The final answer is:\n\n", "\\[\\boxed{4}\\]\n\n", "More.\n\n"], "4", 3),
        (["**Final Answer**\n\n", "$4$\n\n", "More.\n\n"], "4", 2),
        (["The answer is supposed to be even.\n\n", "So the answer is 4.\n\n", "More.\n\n"], "4", 2),
        (["Perhaps \\boxed{5}?\n\n", "No: \\boxed{4}.\n\n", "More.\n\n"], "4", 2),
    ],
)
def test_a_step_that_only_speaks_of_the_answer_does_not_end_its_track(
    steps: list[str], answer: str, count: int
) -> None:
    for name in ("baseline", "speculative"):
        chosen = strategy(name, find_answer, finished_answer, tracks=1, speculate="always")
        played = play(chosen, draft=by_step(steps, scores=[9] * 9), target=by_step(steps, scores=[9] * 9))
        (track,) = played.sample.tracks.values()
        assert (track.reason, track.answer, len(track.steps)) == ("answer", answer, count)


def test_a_track_at_its_limit_is_asked_for_the_answer_that_it_only_spoke_of() -> None:
    script = by_step(["The answer is supposed to be even.\n\n", "It is not 5.\n\n"], closing="4}")
    played = play(strategy("baseline", find_answer, finished_answer, step_limit=2), target=script)
    (track,) = played.sample.tracks.values()
    assert (track.reason, track.answer) == ("step_limit", "4")
