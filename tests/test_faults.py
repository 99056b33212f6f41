"""The faults of the original experiments' code must not come back.

Each has a check here, and each check is run a second time with the fault switched on, where it must fail: a check that
passes either way would guard nothing.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support import make_strategy, operation, parts, play

from speclrm.evaluators import answers
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime import sample, track
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine, by_step
from speclrm.runtime.events import StepDrafted, TrackFinished
from speclrm.runtime.protocols import Problem, Request, Role
from speclrm.runtime.runtime import Runtime
from speclrm.strategies import family, scoring, stopping
from speclrm.strategies.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]

Patch = pytest.MonkeyPatch


# ------------------------------------------------------------------------------------ tracks wait for each other in rounds


def no_rounds() -> None:
    def draft(request: Request, prompt: str) -> Reply:
        slow = operation(request)[1].endswith("1")
        return Reply(by_step(STEPS)(request, prompt).text, token_s=10.0 if slow else 0.01)

    played = play(make_strategy("speculative"), draft=draft, target=by_step(STEPS, scores=[9, 9, 9]))
    ends = {event.track[-1]: event.t for event in played.collector.of(TrackFinished)}
    assert max(ends["2"], ends["3"]) < 5


def rounds(patch: Patch) -> None:
    barrier: dict[str, asyncio.Barrier] = {}
    original = track.RuntimeTrack.score

    async def score(self: track.RuntimeTrack, step: Any) -> Any:
        await barrier.setdefault("round", asyncio.Barrier(3)).wait()
        return await original(self, step)

    patch.setattr(track.RuntimeTrack, "score", score)


# ----------------------------------------------------------------------------- another track's method in the scoring prompt


def own_method() -> None:
    played = play(make_strategy("speculative"), draft=by_step(STEPS), target=by_step(STEPS, scores=[9, 2, 9]))
    assert played.target is not None
    for request in played.target.requests:
        code = operation(request)[1][0]
        prompt = played.target.tokenizer.decode(request.prompt_ids)
        assert [name for name, hint in METHODS.items() if hint in prompt] == [code]


def last_tracks_method(patch: Patch) -> None:
    seen: list[Any] = []
    original = sample.prompt_ids

    def prompt_ids(tokenizers: Any, plan: Any) -> Any:
        prompts = original(tokenizers, plan)
        seen.append(prompts[Role.TARGET])
        prompts[Role.TARGET] = seen[0]  # whatever track comes, the target sees another one's
        return prompts

    patch.setattr(sample, "prompt_ids", prompt_ids)


# ---------------------------------------------------------------------------------- the first box instead of the last


def last_box() -> None:
    assert answers.find_answer("Perhaps \\boxed{1}. No: \\boxed{2}.") == "2"


def first_box(patch: Patch) -> None:
    def first(text: str) -> str | None:
        found = re.search(r"\\boxed\{(.*?)\}", text)
        return found[1] if found else None

    patch.setattr(answers, "last_boxed", first)


# ----------------------------------------------------------------------- average scoring takes in what is no digit, or dies


def average_over_digits() -> None:
    def target(request: Request, prompt: str) -> Reply:
        return Reply(score=8.0, mass=0.1) if operation(request)[3] == "score" else by_step(STEPS)(request, prompt)

    played = play(make_strategy("speculative", tracks=1, score_method="average"), draft=by_step(STEPS), target=target)
    first = next(iter(played.sample.tracks.values())).steps[0]
    assert first.score == pytest.approx(8.0, abs=1e-3)


def average_over_everything(patch: Patch) -> None:
    import math

    def read_score(digits: Any, method: Any) -> Any:
        return scoring.Score(sum(digit * math.exp(value) for digit, value in enumerate(digits)), 1.0)

    patch.setattr(family, "read_score", read_score)


# ------------------------------------------------------------------------------------------------- grading by digits only


def exact_grading() -> None:
    verdict = asyncio.run(ExactEquivalence().grade("-12", Problem("p", "", "\\frac{1}{2}")))
    assert verdict == "wrong"


def digits_only(patch: Patch) -> None:
    from speclrm.evaluators import grading

    def digits(text: str) -> str:
        return re.sub(r"\D", "", text)

    patch.setattr(grading, "normalised", digits)


# ------------------------------------------------------------------------------------------- a step cap ends tracks early


def no_step_cap() -> None:
    steps = [f"Step {number}.\n\n" for number in range(150)] + ["\\boxed{4}"]
    played = play(make_strategy("speculative", tracks=1), draft=by_step(steps), target=by_step(steps, scores=[9] * 151))
    only = next(iter(played.sample.tracks.values()))
    assert (only.reason, len(only.steps)) == ("answer", 151)


def step_cap(patch: Patch) -> None:
    original = stopping.end_of_track

    def capped(state: Any, *, token_budget: int, step_limit: int | None, has_answer: Any) -> Any:
        return original(state, token_budget=token_budget, step_limit=token_budget // 512, has_answer=has_answer)

    patch.setattr(family, "end_of_track", capped)


# --------------------------------------------------------------------------------------- one answer counted twice in the vote


def one_track_one_vote() -> None:
    played = play(make_strategy("speculative"), draft=by_step(STEPS), target=by_step(STEPS, scores=[9, 9, 9]))
    (members,) = played.sample.classes
    assert len(members) == len(set(members)) == 3


def counted_twice(patch: Patch) -> None:
    original = sample.Sample._count_vote  # pyright: ignore[reportPrivateUsage]

    async def twice(self: sample.Sample, name: str) -> None:
        await original(self, name)
        await original(self, name)

    patch.setattr(sample.Sample, "_count_vote", twice)


# --------------------------------------------------------------------------------------------------------------- no seeds


def seeded() -> None:
    played = play(make_strategy("speculative"), draft=by_step(STEPS), target=by_step(STEPS, scores=[9, 9, 9]))
    seeds = [op.seed for event in played.collector.of(StepDrafted) for op in event.operations]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds)


def unseeded(patch: Patch) -> None:
    def no_seed(*names: object) -> None:
        return None

    patch.setattr(track, "derive_seed", no_seed)


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


def votes_by_text(patch: Patch) -> None:
    async def same(self: ExactEquivalence, one: str, other: str) -> bool:
        return one == other

    patch.setattr(ExactEquivalence, "same", same)


FAULTS: dict[str, tuple[Callable[[], None], Callable[[Patch], None]]] = {
    "rounds": (no_rounds, rounds),
    "another-tracks-method": (own_method, last_tracks_method),
    "first-box": (last_box, first_box),
    "average-over-non-digits": (average_over_digits, average_over_everything),
    "digits-only-grading": (exact_grading, digits_only),
    "step-cap": (no_step_cap, step_cap),
    "counted-twice": (one_track_one_vote, counted_twice),
    "no-seeds": (seeded, unseeded),
    "string-votes": (votes_by_meaning, votes_by_text),
}


@contextmanager
def switched_on(fault: Callable[[Patch], None]) -> Generator[None, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        yield


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_absent(name: str) -> None:
    FAULTS[name][0]()


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_fails_where_the_fault_is_switched_on(name: str) -> None:
    check, fault = FAULTS[name]
    with switched_on(fault), pytest.raises((AssertionError, RuntimeError, ExceptionGroup)):
        check()


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
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.api import strategy
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Parts, Runtime
steps = [f"Step {{n}}.\\n\\n" for n in range(10_000)]
async def parts(stack):
    return Parts({{Role.TARGET: ScriptedEngine(by_step(steps), token_s=0.002)}}, ExactEquivalence())
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

    root = Path(__file__).parent.parent
    for folder in ("runtime", "strategies", "evaluators"):
        for path in (root / folder).rglob("*.py"):
            assert "import pickle" not in path.read_text(), path
