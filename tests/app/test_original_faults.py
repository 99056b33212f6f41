"""The faults of the original experiments' code must not come back.

Each has a check here, and each check is run a second time with the fault switched on by its name, where it must fail: a
check that passes either way would guard nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from support import make_strategy, operation, parts, play

from speclrm.app import original_faults
from speclrm.evaluators import answers, grading, report
from speclrm.evaluators.benchmarks import BENCHMARKS
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.evaluators.metrics import RunSummary
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine, by_step
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.events import StepDrafted, TrackFinished
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.strategies.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.engine import Request

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]


# ------------------------------------------------------------------------------------ tracks wait for each other in rounds


def no_rounds() -> None:
    def draft(request: Request, prompt: str) -> Reply:
        slow = operation(request)[1].endswith("1")
        return Reply(by_step(STEPS)(request, prompt).text, token_s=10.0 if slow else 0.01)

    played = play(make_strategy("speculative"), draft=draft, target=by_step(STEPS, scores=[9, 9, 9]))
    ends = {event.track[-1]: event.t for event in played.collector.of(TrackFinished)}
    assert max(ends["2"], ends["3"]) < 5


# ----------------------------------------------------------------------------- another track's method in the scoring prompt


def own_method() -> None:
    played = play(make_strategy("speculative"), draft=by_step(STEPS), target=by_step(STEPS, scores=[9, 2, 9]))
    assert played.target is not None
    for request in played.target.requests:
        code = operation(request)[1][0]
        prompt = played.target.tokenizer.decode(request.prompt_ids)
        assert [name for name, hint in METHODS.items() if hint in prompt] == [code]


# ---------------------------------------------------------------------------------- the first box instead of the last


def last_box() -> None:
    assert answers.find_answer("Perhaps \\boxed{1}. No: \\boxed{2}.") == "2"


# ----------------------------------------------------------------------- average scoring takes in what is no digit, or dies


def average_over_digits() -> None:
    def target(request: Request, prompt: str) -> Reply:
        return Reply(score=8.0, mass=0.1) if operation(request)[3] == "score" else by_step(STEPS)(request, prompt)

    played = play(make_strategy("speculative", tracks=1, score_method="average"), draft=by_step(STEPS), target=target)
    only = next(iter(played.sample.tracks.values()))
    assert only.reason == "answer"
    first = only.steps[0]
    assert first.score == pytest.approx(8.0, abs=1e-3)


# ------------------------------------------------------------------------------------------------- grading by digits only


def exact_grading() -> None:
    assert not grading.plainly_same("-12", "\\frac{1}{2}")


# ------------------------------------------------------------------------------------------- a step cap ends tracks early


def no_step_cap() -> None:
    steps = [f"Step {number}.\n\n" for number in range(150)] + ["\\boxed{4}"]
    played = play(make_strategy("speculative", tracks=1), draft=by_step(steps), target=by_step(steps, scores=[9] * 151))
    only = next(iter(played.sample.tracks.values()))
    assert (only.reason, len(only.steps)) == ("answer", 151)


# --------------------------------------------------------------------------------------- one answer counted twice in the vote


def test_one_track_has_one_vote() -> None:
    played = play(make_strategy("speculative"), draft=by_step(STEPS), target=by_step(STEPS, scores=[9, 9, 9]))
    (members,) = played.sample.classes
    assert len(members) == len(set(members)) == 3


# --------------------------------------------------------------------------------------------------------------- no seeds


def seeded() -> None:
    played = play(make_strategy("speculative"), draft=by_step(STEPS), target=by_step(STEPS, scores=[9, 9, 9]))
    seeds = [op.seed for event in played.collector.of(StepDrafted) for op in event.operations]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds)


# ---------------------------------------------------------------------------------------- answers compared as strings


def votes_by_meaning() -> None:
    def draft(request: Request, prompt: str) -> Reply:
        return Reply({"1": "\\boxed{4}", "2": "\\boxed{04}", "3": "\\boxed{9}"}[operation(request)[1][-1]])

    scripted = {Role.DRAFT: ScriptedEngine(draft), Role.TARGET: ScriptedEngine(by_step(STEPS, scores=[9]))}

    async def main() -> str | None:
        async with Runtime(parts(scripted, ExactEquivalence())) as runtime:
            return (await runtime.solve(Problem("p", "", "4"), make_strategy("speculative"))).answer

    assert run_virtual(main()) in ("4", "04")
    assert len(run_virtual_classes(scripted)) == 2


def run_virtual_classes(scripted: dict[Role, ScriptedEngine]) -> tuple[tuple[str, ...], ...]:
    async def main() -> tuple[tuple[str, ...], ...]:
        async with Runtime(parts(scripted, ExactEquivalence())) as runtime:
            return (await runtime.solve(Problem("p", "", "4"), make_strategy("speculative"))).classes

    return run_virtual(main())


# ------------------------------------------------------------------------------------- fast 2 on one answer counted twice


def fast_2_takes_two_tracks() -> None:
    def draft(request: Request, prompt: str) -> Reply:
        place = operation(request)[1][-1]
        return Reply(f"\\boxed{{{place}}}", wait_s=float(place))

    played = play(make_strategy("speculative", fast=2), draft=draft, target=by_step(STEPS, scores=[9]))
    assert [track.reason for track in played.sample.tracks.values()] == ["answer"] * 3


# ------------------------------------------------------------------------------------------------ the right option is A


def gold_moves() -> None:
    row = {"Question": "Which?", "Correct Answer": "w", **{f"Incorrect Answer {n}": f"x{n}" for n in (1, 2, 3)}}
    assert {BENCHMARKS["gpqa"].make(row, number, "", 0).answer for number in range(40)} == set("ABCD")


# ------------------------------------------------------------------------------------------- an engine used on two loops


def one_loop() -> None:
    runtime = Runtime(parts({Role.TARGET: ScriptedEngine(by_step(STEPS), token_s=0.0)}))
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(runtime.__aenter__())
        with pytest.raises(SettingsError, match="another event loop"):
            asyncio.run(runtime.solve(Problem("p", "", "4"), make_strategy("baseline")))
    finally:
        first.run_until_complete(runtime.__aexit__(None, None, None))
        first.close()


# ------------------------------------------------------------------------------------------------- pickles, lost problems


def no_pickles() -> None:
    with TemporaryDirectory() as folder:
        report.write_reports(Path(folder), RunSummary())
        assert sorted(path.name for path in Path(folder).iterdir()) == ["results.jsonl", "summary.json"]


def steps_are_written_as_they_come() -> None:
    with TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        seen: list[int] = []
        steps = [f"Step {number}.\n\n" for number in range(20)] + ["\\boxed{4}"]

        def draft(request: Request, prompt: str) -> Reply:
            if operation(request)[2] == 20:
                seen.append((directory / "trace.jsonl").read_text().count("step_committed"))
            return by_step(steps)(request, prompt)

        target = by_step(steps, scores=[9] * 21)
        play(make_strategy("speculative", tracks=1), draft=draft, target=target, directory=directory)
        assert seen[0] >= 18  # what is younger than the writer's delay may be missing


CHECKS: dict[str, Callable[[], None]] = {
    "rounds": no_rounds,
    "another-tracks-method": own_method,
    "first-box": last_box,
    "average-over-non-digits": average_over_digits,
    "digits-only-grading": exact_grading,
    "gold-always-a": gold_moves,
    "step-cap": no_step_cap,
    "fast-2-counts-twice": fast_2_takes_two_tracks,
    "two-loops": one_loop,
    "no-seeds": seeded,
    "string-votes": votes_by_meaning,
    "pickles": no_pickles,
    "lost-problems": steps_are_written_as_they_come,
}


def test_each_fault_has_a_check() -> None:
    assert sorted(CHECKS) == sorted(original_faults.FAULTS)


@pytest.mark.parametrize("name", CHECKS)
def test_the_fault_is_absent(name: str) -> None:
    CHECKS[name]()


@pytest.mark.parametrize("name", CHECKS)
def test_the_check_fails_where_the_fault_is_switched_on(name: str) -> None:
    failed = (AssertionError, pytest.fail.Exception)
    with original_faults.reproduced([name]), pytest.raises(failed):
        CHECKS[name]()
    CHECKS[name]()  # and it is gone with the block


def test_an_unknown_fault_is_named_with_those_there_are() -> None:
    with (
        pytest.raises(SettingsError, match="no fault called 'round'"),
        original_faults.reproduced(["round"]),
    ):
        pass


def test_under_rounds_tracks_still_end_and_give_the_same_answers() -> None:
    with original_faults.reproduced(["rounds"]):
        played = play(make_strategy("speculative"), draft=by_step(STEPS), target=by_step(STEPS, scores=[9, 2, 9]))
    assert {track.answer for track in played.sample.tracks.values()} == {"4"}


def test_a_killed_process_loses_no_committed_step(tmp_path: Path) -> None:
    """The original lost the whole problem: here every committed step is in the file within the promised time."""
    import subprocess
    import sys
    import time

    code = f"""
import asyncio, sys
sys.path.insert(0, {str(tmp_path.parent)!r})
from pathlib import Path
from contextlib import AsyncExitStack
from speclrm.evaluators.benchmarks import BENCHMARKS
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.api import strategy
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.run_parts import Components
steps = [f"Step {{n}}.\\n\\n" for n in range(10_000)]
async def parts(stack):
    return Components({{Role.TARGET: ScriptedEngine(by_step(steps), token_s=0.002)}}, ExactEquivalence())
async def main():
    async with Runtime(parts) as runtime:
        endless = strategy("baseline", token_budget=100_000)
        await runtime.run([Problem("p", "x")], endless, directory=Path({str(tmp_path / "run")!r}))
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    trace = tmp_path / "run" / "trace.jsonl"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (trace.exists() and trace.read_text().count("step_committed") > 20):
        time.sleep(0.05)
    process.kill()
    process.wait()
    lines = trace.read_text().splitlines()
    assert sum("step_committed" in line for line in lines) > 20


def test_no_part_of_the_package_uses_pickle() -> None:
    from pathlib import Path

    root = Path(__file__).parents[2]
    for folder in ("runtime", "strategies", "evaluators"):
        for path in (root / folder).rglob("*.py"):
            assert "import pickle" not in path.read_text(), path
