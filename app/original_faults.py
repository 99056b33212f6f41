"""Reproduces faults of the original experiments' code by name, for comparisons (``--reproduce-fault NAME``).

Each is a patch of the part that it spoils, undone at the end of the block. Only ``app/resolve.py`` and the benchmarks
enter such a block. The tests of the same names fail while a fault is on. Sources: SSR's code
(github.com/YuanlinChu/SSR-Spec_Scale_Reasoning) and SpecReason's (github.com/ruipeterpan/specreason), read, not run.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speclrm.app.lock_step import Barrier, LockStepTrack
from speclrm.evaluators import answers, benchmarks, grading, report
from speclrm.runtime import sample
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.events import RunFinished, SampleFinished
from speclrm.runtime.files import write_whole
from speclrm.runtime.protocols import Role, Strategy, Track, TrackPlan
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.tokens.prompts import open_prompt
from speclrm.runtime.trace.journal import Journal
from speclrm.runtime.track import method_choice, requests
from speclrm.strategies import catalog, family, original, stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

# The patches reach into private parts on purpose; that is what this module is for.
# pyright: reportPrivateUsage=false


@dataclass(frozen=True, slots=True)
class Fault:
    """``what``: one sentence for the user. ``switch``: puts its patches on the stack."""

    what: str
    switch: Callable[[ExitStack], None]


@contextmanager
def reproduced(names: Iterable[str]) -> Generator[None, None, None]:
    """Turns the faults on inside the block, in the whole process. Raises SettingsError for an unknown name."""
    with ExitStack() as stack:
        for name in names:
            check(name)
            FAULTS[name].switch(stack)
        yield


def check(name: str) -> None:
    """Raises SettingsError for an unknown name."""
    if name not in FAULTS:
        raise SettingsError(f"There is no fault called {name!r}. There are: {', '.join(FAULTS)}.")


def _put(stack: ExitStack, owner: Any, name: str, new: Any) -> Any:
    """Replaces an attribute by ``new`` until the stack ends, and returns its value before."""
    old = getattr(owner, name)
    stack.callback(setattr, owner, name, old)
    setattr(owner, name, new)
    return old


# ---------------------------------------------------------------------------------------------------------------- rounds


def _rounds(stack: ExitStack) -> None:
    barriers: defaultdict[tuple[str, int], Barrier] = defaultdict(Barrier)

    def in_lock_step(run_track: Callable[..., Any]) -> Callable[..., Any]:
        async def run(self: Strategy, track: Track) -> Any:
            barrier = barriers[track.problem.id, track.repeat]
            with barrier.member():
                return await run_track(self, LockStepTrack(track, barrier))

        return run

    for kind in {kind for kind, _ in catalog.STRATEGIES.values()}:
        _put(stack, kind, "run_track", in_lock_step(kind.run_track))


# ------------------------------------------------------------------------------------------------------ prompts and scores


def _another_tracks_method(stack: ExitStack) -> None:
    last: dict[int, TrackPlan] = {}

    async def plan(self: sample.Sample) -> Any:
        plan = await old_plan(self)
        last.update({id(one): plan.tracks[-1] for one in plan.tracks})
        return plan

    def prompt_ids(tokenizers: Any, plan: TrackPlan) -> Any:
        prompts = old_prompts(tokenizers, plan)
        prompts[Role.TARGET] = open_prompt(tokenizers[Role.TARGET], last[id(plan)])
        return prompts

    old_plan = _put(stack, sample.Sample, "_plan", plan)
    old_prompts = _put(stack, sample, "prompt_ids", prompt_ids)


def _average_over_non_digits(stack: ExitStack) -> None:
    def read_score(digits: Any, method: Any) -> Any:
        score = old(digits, method)
        if method == "average" and score.mass < 1 - 1e-6:
            raise ValueError("invalid literal for int() with base 10: a token that is no digit")
        return score

    old = _put(stack, family, "read_score", read_score)


def _no_seeds(stack: ExitStack) -> None:
    def derive_seed(*names: object) -> None:
        return None

    _put(stack, requests, "derive_seed", derive_seed)
    _put(stack, method_choice, "derive_seed", derive_seed)


# ------------------------------------------------------------------------------------------------------ answers and votes


def _first_box(stack: ExitStack) -> None:
    def spoil(owner: Any, name: str) -> None:
        def first(text: str) -> Any:
            second = text.find("\\boxed{", text.find("\\boxed{") + 1)
            return old(text if second < 0 else text[:second])

        old = _put(stack, owner, name, first)

    spoil(answers, "last_boxes")
    spoil(original, "find_box")


def _gold_always_a(stack: ExitStack) -> None:
    def in_order(options: Any, seed: int, problem: str) -> list[Any]:
        return list(options)

    _put(stack, benchmarks, "shuffled", in_order)


def _digits_only_grading(stack: ExitStack) -> None:
    def plainly_same(one: str, other: str) -> bool | None:
        digits = [re.sub(r"[^\d]", "", text) for text in (one, other)]
        return True if all(digits) and int(digits[0]) == int(digits[1]) else old(one, other)

    old = _put(stack, grading, "plainly_same", plainly_same)


def _string_votes(stack: ExitStack) -> None:
    def same(self: family.Family, one: str, other: str, problem: Any) -> bool:
        return one == other

    _put(stack, family.Family, "same", same)


def _fast_2_counts_twice(stack: ExitStack) -> None:
    def enough(state: Any, fast: stopping.Fast | None) -> bool:
        # Each later round added the finished track's answer to the list again, so that it soon equalled itself.
        return bool(fast and state.classes)

    _put(stack, family, "enough", enough)


def _step_cap(stack: ExitStack) -> None:
    def end_of_track(state: Any, **rules: Any) -> Any:
        return old(state, **{**rules, "step_limit": max(1, rules["token_budget"] // 512)})

    old = _put(stack, family, "end_of_track", end_of_track)


# ------------------------------------------------------------------------------------------------------- loops and files


def _two_loops(stack: ExitStack) -> None:
    def check_loop(self: Runtime) -> None:
        pass

    _put(stack, Runtime, "check_loop", check_loop)


def _pickles(stack: ExitStack) -> None:
    def write_reports(directory: Path, summary: Any) -> None:
        import pickle

        old(directory, summary)
        write_whole(directory / "results.pickle", pickle.dumps(summary.model_dump()))

    old = _put(stack, report, "write_reports", write_reports)


def _lost_problems(stack: ExitStack) -> None:
    held: dict[int, list[Any]] = {}

    def emit(self: Journal, event: Any) -> None:
        waiting = held.setdefault(id(self), [])
        waiting.append(event)
        if isinstance(event, SampleFinished | RunFinished):
            for one in waiting:
                old(self, one)
            waiting.clear()

    old = _put(stack, Journal, "emit", emit)


FAULTS: dict[str, Fault] = {
    "rounds": Fault("Tracks of a sample wait for each other after every phase of a step.", _rounds),
    "another-tracks-method": Fault(
        "The target scores and rewrites every track under the last track's method.", _another_tracks_method
    ),
    "average-over-non-digits": Fault(
        "Average scores fail where the judge thinks of a token that is no digit.", _average_over_non_digits
    ),
    "no-seeds": Fault("Operations have no seeds.", _no_seeds),
    "gold-always-a": Fault("The right option of every GPQA question is A.", _gold_always_a),
    "first-box": Fault(r"The first \boxed of a text is its answer.", _first_box),
    "digits-only-grading": Fault("Answers with the same digits are the same.", _digits_only_grading),
    "string-votes": Fault("Answers vote together only where their texts are equal.", _string_votes),
    "fast-2-counts-twice": Fault("--fast 2 takes one answer for two.", _fast_2_counts_twice),
    "step-cap": Fault("A track ends after token_budget / 512 steps.", _step_cap),
    "two-loops": Fault("A runtime may be used on another event loop than its engines.", _two_loops),
    "pickles": Fault("Results are written as a pickle too.", _pickles),
    "lost-problems": Fault("Nothing of a sample is written before its end.", _lost_problems),
}
"""By the names that ``--reproduce-fault`` takes."""
