"""A simulated world goes on where its context stands: it says each paragraph once, however steps, requests and runs are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from again import Setup, cut, simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_strategy
from workloads import EXAMPLES, by_chance, check_said_once

from speclrm.runtime.engine import Request
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.context import Context

if TYPE_CHECKING:
    from again import Fold

    from speclrm.runtime.engine import Engine

pytestmark = pytest.mark.timeout(60 + EXAMPLES)

CHAT = "<|user|>Step by step.\n\nProblem: is it so (for all) hm\n\nor not?<|end|><|assistant|>"
RAW = "\nSolve it, so (step by\n\n step): add them all\n\nTips: hm or so\n\nProblem: the sum of all\n\n"
PLACE = ("sim-1", "0", "A")


SHORT = WorldSettings((0.6,), steps=8.0, draft_step=12, target_step=14)


def one_world(**settings: Any) -> SimulatedWorld:
    return SimulatedWorld(replace(SHORT, **settings), 3)


def said(world: SimulatedWorld, context: Sequence[int], kind: str, step: int = 0) -> list[int]:
    return list(world.write(Request(f"sim-1/0/A/{step}/{kind}", context, 512)))


def paragraphs(world: SimulatedWorld, text: str) -> list[list[int]]:
    """All of a track that the target writes behind a prompt."""
    (blank,) = world.tokenizer.vocabulary.blank_line_ids
    found: list[list[int]] = [[]]
    for token in said(world, world.tokenizer.encode(text), "write"):
        found[-1].append(token)
        if token == blank:
            found.append([])
    return found


# ------------------------------------------------------------------------------------------------------ what is said next


@pytest.mark.parametrize("prompt", [CHAT, RAW, ""])
@pytest.mark.parametrize("kind", ["draft", "draft-ahead", "draft.3", "rewrite", "rewrite-ahead", "write"])
def test_the_next_paragraph_follows_from_those_in_the_context_and_not_from_the_steps_number(
    prompt: str, kind: str
) -> None:
    world = one_world()
    whole = paragraphs(world, prompt)
    context = world.tokenizer.encode(prompt)
    numbered: list[list[int]] = []
    for paragraph in whole:
        (one, *others) = [said(world, context, kind, step) for step in (0, 1, 7, 40)]
        numbered.append(one)
        # The mark that a draft begins with says what its step is worth, and that belongs to the step.
        assert all(other[2:] == one[2:] for other in others)
        context = [*context, *paragraph]
    assert len({tuple(one) for one in numbered}) == len(whole) > 3
    if kind == "write":
        assert numbered[0] == [token for paragraph in whole for token in paragraph]
    elif kind.startswith("rewrite"):
        assert numbered == whole


@pytest.mark.parametrize("prompt", [CHAT, RAW, ""])
@pytest.mark.parametrize("origin", ["draft", "rewrite"])
def test_a_paragraph_that_was_cut_anywhere_is_said_to_its_end_by_whoever_goes_on(prompt: str, origin: str) -> None:
    world = one_world()
    context = world.tokenizer.encode(prompt)
    whole = paragraphs(world, prompt)
    for step, paragraph in enumerate(whole):
        one = said(world, context, origin, step)
        for at in range(1, len(one)):
            track = Context(world.tokenizer, context)
            track.append(one[: at // 2])
            ids = track.ids(one[at // 2 : at])  # as a request has them
            assert ids.tolist() == [*context, *one[:at]]
            assert said(world, ids, origin, step + 1) == said(world, ids, f"{origin}.1", step) == one[at:]
            if at < 8:
                continue  # words that both models may begin with do not tell whose they are
            rest = [token for later in whole[step + 1 :] for token in later]
            assert said(world, ids, "draft", step + 1) == said(world, ids, "rewrite", step + 1) == one[at:]
            assert said(world, ids, "write", step + 1) == [*one[at:], *rest]
        context = [*context, *paragraph]


def test_a_text_that_is_all_said_goes_on_with_nothing() -> None:
    world = one_world()
    context = [*world.tokenizer.encode(CHAT), *(token for one in paragraphs(world, CHAT) for token in one)]
    assert "boxed" in world.tokenizer.decode(context[-20:])
    for kind in ("draft", "rewrite", "write"):
        assert said(world, context, kind, 9) == []


def test_an_answer_does_not_change_while_it_is_said() -> None:
    """A bad paragraph that is cut counts for what follows it, and not for itself."""
    world = one_world(harm=1.0, solved_alpha=1000.0, solved_beta=0.001)
    context = world.tokenizer.encode(CHAT)
    whole = paragraphs(world, CHAT)
    good = [token for one in whole[:-1] for token in one]
    step = next(number for number in range(99) if not world.good_draft(PLACE, number))
    bad = said(world, context, "draft", step)
    right, wrong = whole[-1], said(world, [*context, *bad, *good[len(whole[0]) :]], "draft", len(whole) - 1)
    assert world.truth("sim-1") in world.tokenizer.decode(right)
    assert world.truth("sim-1") not in world.tokenizer.decode(wrong)
    every = [*bad, *good[len(whole[0]) :], *wrong]
    for at in range(len(every) - len(wrong), len(every)):
        assert said(world, [*context, *every[:at]], "draft", 5) == every[at:]


def test_a_long_context_is_not_read_through_for_what_comes_next() -> None:
    world = one_world(steps=2000.0)
    counted: list[int] = []

    class Counting(Sequence[int]):
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

        def __len__(self) -> int:
            return len(self.ids)

        def __getitem__(self, key: Any) -> Any:
            places = range(len(self.ids))[key] if isinstance(key, slice) else [int(key)]
            counted.append(len(places))
            found = tuple(self.ids[place] for place in places)
            return found if isinstance(key, slice) else found[0]

    whole = paragraphs(world, CHAT)
    context = Counting([*world.tokenizer.encode(CHAT), *(token for one in whole[:1000] for token in one)])
    assert said(world, context, "rewrite", 1000) == whole[1000]
    assert sum(counted) < 500 < len(context) / 10


# ------------------------------------------------------------------------------------------------------------- whole runs


@dataclass(frozen=True)
class Story:
    """A run whose texts follow from its seed alone: no early stop, and drafts always or never."""

    name: str
    options: dict[str, Any]
    seed: int
    steps: float
    acceptance: float
    concurrency: int
    cuts: tuple[float, ...]
    """Where it is cut and gone on with, as shares of what its trace has then left."""

    @property
    def writes(self) -> bool:
        return self.options.get("speculate") != "always"

    @property
    def setup(self) -> Setup:
        world = SimulatedWorld(
            WorldSettings((self.acceptance,), steps=self.steps, draft_step=12, target_step=14), self.seed
        )

        def engines() -> dict[Role, Engine]:
            made = simulated(world)
            return made if self.name.startswith("spec") else {Role.TARGET: made[Role.TARGET]}

        strategy = make_strategy(self.name, tracks=2, closing_tokens=8, **self.options)
        return Setup(engines, strategy, world.problems(1), seed=self.seed, concurrency=self.concurrency)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    name = draw(
        st.sampled_from(["speculative", "speculative", "speculative-methods", "parallel", "parallel", "baseline"])
    )
    options: dict[str, Any] = {
        "max_step_tokens": draw(st.sampled_from([5, 20, 40, 512])),
        "token_budget": draw(st.sampled_from([60, 200, 2000])),
        "prompt_style": draw(st.sampled_from(["chat", "raw"])),
    }
    if name == "speculative" and draw(st.integers(0, 3)) == 0:
        options["fidelity"] = "original"
    else:
        options["min_step_tokens"] = min(options["max_step_tokens"], draw(st.sampled_from([0, 16, 40])))
    if name.startswith("spec"):
        options["speculate"] = (
            "always" if "fidelity" in options else draw(st.sampled_from(["always", "always", "never"]))
        )
        options["draft_ahead"] = options["rewrite_ahead"] = "never"
        if "fidelity" not in options and draw(st.booleans()):
            options |= {"scorer": "likelihood", "score_threshold": -0.3}
        if "fidelity" not in options and draw(st.booleans()):
            options |= {"gate_sure": -0.1, "gate_doubt": -0.4}
    return Story(
        name,
        options,
        seed=draw(st.integers(0, 10_000)),
        steps=draw(st.sampled_from([3.0, 12.0])),
        acceptance=draw(st.sampled_from([0.1, 0.5, 0.9])),
        concurrency=draw(st.sampled_from([1, 16])),
        cuts=tuple(draw(st.lists(st.floats(0, 0.99), min_size=1, max_size=2))),
    )


def told(fold: Fold, *, ends: bool) -> list[Any]:
    """``ends``: with the reasons and answers of tracks."""
    return [
        (sample.problem, sample.repeat, name, track.text, *((track.reason, track.answer) if ends else ()))
        for sample in fold.samples
        for name, track in sorted(sample.tracks.items())
    ]


def repeated(fold: Fold) -> list[str]:
    return [
        name for sample in fold.samples for name, track in sorted(sample.tracks.items()) if track.reason == "repeated"
    ]


@settings(by_chance, max_examples=EXAMPLES // 2)
@given(stories())
def test_a_run_that_is_cut_and_gone_on_with_tells_the_same_story_and_says_nothing_twice(story: Story) -> None:
    with TemporaryDirectory() as name:
        whole = story.setup.run(Path(name) / "whole")
        check_said_once(whole.samples)
        before = Path(name) / "whole"
        done = 0
        for number, share in enumerate(story.cuts):
            size = (before / "trace.jsonl").stat().st_size
            first = (before / "trace.jsonl").read_bytes().index(b"\n") + 1
            done = max(first, done) + int((size - max(first, done)) * share)
            folder = cut(before, Path(name) / str(number), size=done)
            other = replace(story, concurrency=17 - story.concurrency)
            again = (other if number % 2 == 0 else story).setup.resume(folder)
            # Where the limit cuts the steps of a write, and so perhaps an answer, depends on how its tokens come.
            assert told(again, ends=not story.writes) == told(whole, ends=not story.writes)
            assert repeated(again) == repeated(whole)
            before = folder


@pytest.mark.parametrize("kind", ["choose", "closing"])
def test_a_short_output_that_was_cut_is_said_to_its_end(kind: str) -> None:
    world = one_world()
    context = world.tokenizer.encode(f"{CHAT} so the answer is \\boxed{{")
    whole = said(world, context, kind, 3)
    assert len(whole) > 1
    for at in range(len(whole) + 1):
        assert said(world, [*context, *whole[:at]], kind, 3) == whole[at:]


def test_a_draft_without_a_word_is_scored_by_how_likely_the_target_would_end() -> None:
    world = one_world()
    ends = tuple(world.tokenizer.vocabulary.end_ids)
    (value,) = world.digits(Request("p/0/A1/3/score", [65], 1, logprob_ids=ends))
    assert -20 < value < 0
