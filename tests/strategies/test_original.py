"""``fidelity="original"`` takes the decisions of SSR's code on the same completions.

The reference below is that code's loop in our words, lock-step rounds and all, fed with texts instead of models. Tables
hold the corners that we know of; random completions look for those that we do not.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import operation, play

from speclrm.api import strategy
from speclrm.runtime.engines.scripted import ByteTokenizer, Reply, ScriptedEngine
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.protocols import Problem, Role
from speclrm.strategies.method_choice import ask_for_methods, read_methods

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speclrm.runtime.engine import Request

TOKENIZER = ByteTokenizer(thinking=True)
MARKS = ("boxed", "Answer:", "ANSWER:")
CHOICE = Problem("p", "Which?", "B", "choice", "{}")
MATH = Problem("p", "How many?", "4")


@dataclass(frozen=True)
class Turn:
    """What the models say about one step: the draft, the judge's token, and the rewrite if it comes to that."""

    draft: str
    said: str = "9"
    rewrite: str = "again\n\n"


@dataclass
class RefTrack:
    steps: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])
    rewritten: list[bool] = field(default_factory=list[bool])
    tokens: int = 0
    reason: str = ""
    answer: str | None = None


def generate(text: str, max_tokens: int = 512) -> tuple[str, int]:
    """The completion up to the stop text, and its number of tokens with the stop in it."""
    ids = TOKENIZER.encode_marked(text)[:max_tokens]
    said, stop, _ = TOKENIZER.decode(ids).partition("\n\n")
    ended = not stop and len(ids) < max_tokens  # the mark that ends a text is a token too
    return said, len(TOKENIZER.encode_marked(said + stop)) + ended


def reference(
    turns: Mapping[str, list[Turn]], problem: Problem, threshold: float, budget: int
) -> tuple[dict[str, RefTrack], str | None]:
    tracks = {name: RefTrack() for name in turns}
    while active := [name for name, track in tracks.items() if not track.reason]:
        for name in active:
            track = tracks[name]
            turn = turns[name][min(len(track.steps), len(turns[name]) - 1)]
            text, tokens = generate(turn.draft)
            score = int(turn.said) if turn.said.isdigit() else 0
            rewritten = score < threshold
            if rewritten:
                text, tokens = generate(turn.rewrite)
            finished = any(mark in text for mark in MARKS)
            if "</think>" in text and not finished:
                text = text.replace("</think>", "")
            track.steps.append(text)
            track.tokens += tokens
            track.rewritten.append(rewritten)
            track.scores.append(9.0 if rewritten else score)
            if finished:
                track.reason = "answer"
            elif len(track.steps) > 2 and track.steps[-1] == track.steps[-2]:
                track.reason = "repeated"
            elif track.tokens >= budget:
                track.reason = "budget"
    voters: dict[str, RefTrack] = {}
    for name, track in tracks.items():
        if track.reason == "answer":
            track.answer = extract("\n\n".join(track.steps), problem)
        if track.answer is not None:
            voters[name] = track
    if not voters:
        return tracks, None
    counts = Counter(track.answer for track in voters.values())
    best, most = counts.most_common(1)[0]
    if most > 1 and list(counts.values()).count(most) == 1:
        return tracks, max((n for n in voters if voters[n].answer == best), key=lambda n: voters[n].tokens)
    return tracks, max(voters, key=lambda n: sum(voters[n].scores) / len(voters[n].scores))


def extract(text: str, problem: Problem) -> str | None:
    """The last box, where the original's fault would take the first."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if not found:
        letter = re.search(r"[Aa]nswer:\s*([A-D])", text)
        return letter[1] if letter and problem.grader == "choice" else None
    answer = found[-1].strip()
    if problem.grader == "choice":
        letter = re.match(r"[A-D]", answer)
        return letter[0] if letter else None
    try:
        return str(int(answer))
    except ValueError:
        return answer


def check(
    turns: Mapping[str, list[Turn]], problem: Problem = MATH, threshold: float = 7.0, budget: int = 200
) -> str | None:
    def turn(request: Request) -> tuple[Turn, str]:
        _, name, step, kind = operation(request)
        return turns[name][min(step, len(turns[name]) - 1)], kind

    def draft(request: Request, prompt: str) -> Reply:
        return Reply(turn(request)[0].draft)

    def target(request: Request, prompt: str) -> Reply:
        said, kind = turn(request)
        return Reply(said.said if kind == "score" else said.rewrite)

    chosen = strategy(
        "speculative",
        fidelity="original",
        tracks=len(turns),
        methods=tuple(name[0] for name in turns),
        score_threshold=threshold,
        token_budget=budget,
    )
    engines = {
        Role.DRAFT: ScriptedEngine(draft, tokenizer=TOKENIZER),
        Role.TARGET: ScriptedEngine(target, tokenizer=TOKENIZER),
    }
    sample = play(chosen, target=target, problems=[problem], engines=engines).sample
    tracks, winner = reference(turns, problem, threshold, budget)
    for name, expected in tracks.items():
        track = sample.tracks[name]
        assert [step.text.partition("\n\n")[0] for step in track.steps] == expected.steps
        assert [step.origin == "rewrite" for step in track.steps] == expected.rewritten
        assert [step.score for step in track.steps] == expected.scores
        assert (track.reason, track.answer) == (expected.reason, expected.answer)
    assert sample.winner == winner
    return winner


def one(*turns: Turn) -> dict[str, list[Turn]]:
    return {"A1": list(turns)}


BOX4 = Turn("so \\boxed{4}")

TABLE: dict[str, tuple[dict[str, list[Turn]], str | None]] = {
    "accepted at the threshold": (one(Turn("a\n\n", "7"), BOX4), "A1"),
    "rewritten under it": (one(Turn("a\n\n", "6", "b\n\n"), BOX4), "A1"),
    "no digit counts as nothing": (one(Turn("a\n\n", "x", "b\n\n"), BOX4), "A1"),
    "a space is no digit": (one(Turn("a\n\n", " ", "b\n\n"), BOX4), "A1"),
    "a rewrite may end the track": (one(Turn("a\n\n", "1", "\\boxed{5}")), "A1"),
    "a rejected answer does not": (one(Turn("\\boxed{5}", "1", "no\n\n"), BOX4), "A1"),
    "two equal steps at the start do not end it": (one(Turn("a\n\n"), Turn("a\n\n"), Turn("b\n\n"), BOX4), "A1"),
    "two equal steps later do": (one(Turn("b\n\n"), Turn("a\n\n"), Turn("a\n\n"), BOX4), None),
    "equal but for a space are different": (one(Turn("b\n\n"), Turn("a\n\n"), Turn("a \n\n"), BOX4), "A1"),
    "an empty step is a step": (one(Turn("\n\nhidden"), Turn("a\n\n"), BOX4), "A1"),
    "three empty steps are a repetition": (one(Turn("a\n\n"), Turn("\n\n"), Turn("\n\n"), BOX4), None),
    "the end of a text ends nothing": (one(Turn("a"), Turn("b"), BOX4), "A1"),
    "the word boxed ends the track without an answer": (one(Turn("it is boxed now\n\n"), BOX4), None),
    "so does Answer:": (one(Turn("Answer: who knows"), BOX4), None),
    "a closed thought is taken out": (one(Turn("a</think>b\n\n"), Turn("ab\n\n"), BOX4), "A1"),
    "but not from the end": (one(Turn("x</think> \\boxed{4}")), "A1"),
    "the budget ends without a vote": (one(*[Turn(f"{'y' * 60}{n}\n\n") for n in range(9)]), None),
    "a step may run over the budget": (one(Turn("y" * 150 + "\n\n"), Turn("z" * 300 + "\n\n")), None),
    "a step is cut at 512 tokens": (one(Turn("y" * 600 + "\n\n")), None),
    "a majority wins by its longest": (
        {"A1": [BOX4], "B2": [Turn("well\n\n"), BOX4], "C3": [Turn("\\boxed{9}", "9")]},
        "B2",
    ),
    "all different: the best mean, rewritten as 9": (
        {"A1": [Turn("\\boxed{1}", "7")], "B2": [Turn("a", "2", "\\boxed{2}")], "C3": [Turn("\\boxed{3}", "8")]},
        "B2",
    ),
    "a tie of two pairs goes by the mean": (
        {
            "A1": [Turn("\\boxed{1}", "7")],
            "B2": [Turn("\\boxed{1}", "7")],
            "C3": [Turn("\\boxed{2}", "8")],
            "D4": [Turn("\\boxed{2}", "9")],
        },
        "D4",
    ),
    "equal means: the first": ({"A1": [Turn("\\boxed{1}", "8")], "B2": [Turn("\\boxed{2}", "8")]}, "A1"),
    "texts are compared, not meanings": (
        {"A1": [Turn("\\boxed{1/2}", "7")], "B2": [Turn("\\boxed{0.5}", "7")], "C3": [Turn("\\boxed{3}", "9")]},
        "C3",
    ),
    "but whole numbers are numbers": (
        {"A1": [Turn("\\boxed{04}", "7")], "B2": [Turn("\\boxed{4}", "7")], "C3": [Turn("\\boxed{3}", "9")]},
        "A1",
    ),
    "tracks without an answer have no vote": ({"A1": [Turn("boxed")], "B2": [Turn("\\boxed{2}", "7")]}, "B2"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name: str) -> None:
    turns, winner = TABLE[name]
    assert check(turns) == winner


def test_a_choice_is_its_letter() -> None:
    turns = {"A1": [Turn("\\boxed{B) two}", "7")], "B2": [Turn("\\boxed{B}", "7")], "C3": [Turn("\\boxed{two}", "9")]}
    assert check(turns, CHOICE) == "A1"
    assert check(one(Turn("Answer: B, I think")), CHOICE) == "A1"


# A closed thought between two newlines would leave a blank line inside a step: the one corner in which the text that we
# keep, with the blank line that ended it, says less than the original's.
PIECES = st.sampled_from(
    [
        "a",
        "b",
        "",
        " ",
        "\n",
        "\n\n",
        "\n\n\n",
        "</think>b",
        "boxed",
        "Answer:",
        "\\boxed{4}",
        "\\boxed{ 04 }",
        "\\boxed{x}",
        "long " * 9,
    ]
)
TEXTS = st.lists(PIECES, max_size=4).map("".join)
TURNS = st.builds(Turn, TEXTS, st.sampled_from([*"0123456789", "x", " ", "²"]), TEXTS)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.lists(TURNS, min_size=1, max_size=5), min_size=1, max_size=4),
    threshold=st.sampled_from([0.0, 3.0, 7.0, 9.0]),
    budget=st.integers(1, 120),
)
def test_any_completions(turns: list[list[Turn]], threshold: float, budget: int) -> None:
    named = {f"{'ABCD'[place]}{place + 1}": texts for place, texts in enumerate(turns)}
    check(
        {
            name: [Turn(t.draft, "0" if t.said == "²" else t.said, t.rewrite) for t in texts]
            for name, texts in named.items()
        },
        threshold=threshold,
        budget=budget,
    )


@pytest.mark.parametrize(
    ("reply", "count", "codes", "padded"),
    [
        ("B,E,F", 3, "BEF", 0),
        ("B, E,", 3, "BEM", 1),
        ("Invariants", 3, "IMM", 2),  # any capital letter counts
        ("ABCDE", 3, "ABC", 0),
        ("B,B,B", 3, "BBB", 0),
        ("I think B", 2, "IB", 0),
    ],
)
def test_methods_are_read_as_the_original_did(reply: str, count: int, codes: str, padded: int) -> None:
    read = read_methods(reply, count, duplicates=True, original=True)
    assert read == (tuple(codes), padded)


@pytest.mark.parametrize(("count", "tokens"), [(1, 1), (3, 5), (5, 9)])
def test_the_reply_has_room_for_codes_and_commas(count: int, tokens: int) -> None:
    question = ask_for_methods(MATH, count, raw=True, original=True)
    assert question.max_tokens == tokens
    assert question.opening == "\n<think></think>"


def test_fidelity_brings_raw_prompts_and_no_closing_unless_told() -> None:
    recipe = strategy("speculative-methods", fidelity="original").recipe
    assert (recipe.prompt_style, recipe.closing) == ("raw", False)
    options: dict[str, Any] = {"fidelity": "original", "prompt_style": "chat"}
    assert strategy("speculative", **options).recipe.prompt_style == "chat"


@pytest.mark.parametrize("name", ["baseline", "parallel"])
def test_it_is_for_speculation_alone(name: str) -> None:
    with pytest.raises(SettingsError, match="fidelity original"):
        strategy(name, fidelity="original")
