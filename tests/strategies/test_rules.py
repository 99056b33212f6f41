"""The rules as tables: what to accept, when to stop, who wins, how tracks start."""

from __future__ import annotations

import itertools
import math
from types import MappingProxyType

import pytest
from support import boxed

from speclrm.runtime.engine import LOGPROB_MIN
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.protocols import Confidence, Problem, Score, StepPrompts
from speclrm.runtime.state import CommittedStep, SampleState, TrackState
from speclrm.strategies.acceptance import REWRITTEN_SCORES, Gate, accepts
from speclrm.strategies.catalog import defaults, strategy
from speclrm.strategies.methods import METHODS
from speclrm.strategies.plan import draw_methods, tracks_for
from speclrm.strategies.prompts import AUTO_LAYOUT, RAW_PROMPTS
from speclrm.strategies.scoring import read_score
from speclrm.strategies.stopping import end_of_track
from speclrm.strategies.voting import vote


def step(text: str = "x", *, tokens: int = 10, score: float | None = None, ended: bool = False) -> CommittedStep:
    return CommittedStep(text, "draft", tokens, score, ended)


def track(*steps: CommittedStep) -> TrackState:
    return TrackState("A1", steps=steps, tokens=sum(item.tokens for item in steps))


def digits(**probabilities: float) -> list[float]:
    return [math.log(probabilities.get(f"d{digit}", 1e-12)) for digit in range(10)]


@pytest.mark.parametrize(
    ("logprobs", "method", "value"),
    [
        (digits(d7=0.6, d8=0.4), "greedy", 7),
        (digits(d7=0.4, d8=0.6), "greedy", 8),
        (digits(d7=0.6, d8=0.4), "average", 7.4),
        (digits(d0=0.05, d9=0.05), "average", 4.5),  # nine tenths of the mass were not digits
        (digits(d3=0.2, d4=0.2), "greedy", 3),
        ([-1000.0] * 9 + [-999.0], "greedy", 9),  # nothing underflows
        ([-math.inf, *digits(d7=0.6, d8=0.4)[1:]], "average", 7.4),
        ([math.log(0.5), *[-math.inf] * 8, math.log(0.5)], "average", 4.5),
    ],
)
def test_a_score_is_the_best_digit_or_the_expected_one(logprobs: list[float], method: str, value: float) -> None:
    assert read_score(logprobs, method).value == pytest.approx(value, abs=1e-6)  # type: ignore[arg-type]


def test_the_mass_of_the_digits_tells_a_broken_judge() -> None:
    assert read_score(digits(d7=0.02, d8=0.01), "average").mass == pytest.approx(0.03)
    assert read_score([*[-math.inf] * 9, math.log(0.5)], "average").mass == pytest.approx(0.5)


@pytest.mark.parametrize("impossible", [-math.inf, LOGPROB_MIN])
@pytest.mark.parametrize("method", ["greedy", "average"])
def test_nothing_speaks_for_a_step_where_no_digit_is_possible(impossible: float, method: str) -> None:
    assert read_score([impossible] * 10, method) == Score(0.0, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("score", "kept"), [(7.0, True), (6.999, False), (9, True), (0, False)])
def test_a_step_at_the_threshold_is_kept(score: float, kept: bool) -> None:
    assert accepts(score, 7.0) is kept


@pytest.mark.parametrize(
    ("gate", "mean", "entropy", "tokens", "whole", "verdict"),
    [
        (Gate(), -9.0, 2.9, 50, True, None),
        (Gate(sure=-0.5), -0.5, None, 50, True, "sure"),
        (Gate(sure=-0.5), -0.6, None, 50, True, None),
        (Gate(sure=-0.5), -0.1, None, 50, False, None),  # what is not whole is not kept
        (Gate(doubt=-2), -2.1, None, 50, True, "doubtful"),
        (Gate(doubt=-2), -2.0, None, 50, True, None),
        (Gate(doubt=-2), -9.0, None, 50, False, None),  # judged at its end, unless told otherwise
        (Gate(doubt=-2, tokens=8), -9.0, None, 7, False, None),
        (Gate(doubt=-2, tokens=8), -9.0, None, 8, False, "doubtful"),
        (Gate(entropy=2), -0.1, 2.1, 1, False, "doubtful"),
        (Gate(entropy=2), -0.1, 2.0, 1, True, None),
        (Gate(entropy=2, sure=-1), -0.1, 2.1, 50, True, "doubtful"),  # doubt counts more
        (Gate(entropy=2, sure=-1), -0.1, None, 50, True, "sure"),  # not every engine can tell an entropy
        (Gate(sure=-0.5, doubt=-2), -1.0, None, 50, True, None),
    ],
)
def test_a_drafts_own_confidence_decides_or_leaves_it_to_the_scorer(
    gate: Gate, mean: float, entropy: float | None, tokens: int, whole: bool, verdict: str | None
) -> None:
    assert gate.verdict(Confidence(tokens, mean, entropy), whole=whole) == verdict


def test_specreason_is_one_track_without_a_method_and_takes_options_like_any_other() -> None:
    one = strategy("specreason", boxed)
    assert (one.name, one.recipe.tracks, one.recipe.plan) == ("speculative", 1, "plain")
    assert one.recipe == strategy("speculative", boxed, tracks=1, plan="plain").recipe
    assert strategy("specreason", boxed, tracks=4).recipe.tracks == 4
    assert strategy("ssr", boxed).recipe == strategy("speculative", boxed).recipe


def test_thresholds_have_the_scale_of_their_scorer() -> None:
    assert strategy("speculative", boxed).recipe.score_threshold == 7.0
    assert strategy("speculative", boxed, scorer="likelihood").recipe.score_threshold == -1.0
    assert strategy("speculative", boxed, scorer="likelihood", score_threshold=-0.25).recipe.score_threshold == -0.25


def test_the_judge_is_asked_in_the_layout_that_was_chosen() -> None:
    def prompts(**options: object) -> StepPrompts:
        return strategy("speculative", boxed, **options).prompts

    assert prompts() == prompts(judge=AUTO_LAYOUT)
    assert (prompts(judge="turn").raw, prompts(judge="turn").judge_ids_max) == (False, None)
    assert (prompts(judge="inline").raw, prompts(judge="inline").judge_ids_max) == (True, 16)
    assert prompts(prompt_style="raw").judge == prompts(fidelity="original").judge == RAW_PROMPTS.judge
    assert prompts(prompt_style="raw").judge_ids_max is None


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (track(), None),
        (track(step("a"), step("b")), None),
        (track(step("so \\boxed{3}")), "answer"),
        (track(step("a", ended=True)), "end_of_text"),
        (track(step("a\n\n"), step(" a")), "repeated"),
        (track(step("a"), step("b"), step("a")), None),
        (track(step("a", tokens=60), step("b", tokens=40)), "budget"),
        (track(step("a", tokens=60), step("b", tokens=39)), None),
        (track(step("a", tokens=60), step("\\boxed{3}", tokens=40, ended=True)), "answer"),
    ],
)
def test_a_track_ends_for_one_reason(state: TrackState, reason: str | None) -> None:
    assert end_of_track(state, token_budget=100, step_limit=None, answer=lambda text, _: boxed(text)) == reason


def test_steps_are_limited_only_where_asked() -> None:
    state = track(*(step(str(number), tokens=1) for number in range(3000)))
    assert end_of_track(state, token_budget=8192, step_limit=None, answer=lambda _, before: None) is None
    assert end_of_track(state, token_budget=8192, step_limit=3000, answer=lambda _, before: None) == "step_limit"


def sample(**means: float | None) -> SampleState:
    tracks = {name: TrackState(name, steps=(step(score=mean),)) for name, mean in means.items()}
    return SampleState("p", 0, tracks=MappingProxyType(tracks), finished_tracks=tuple(means))


@pytest.mark.parametrize(
    ("classes", "means", "winner"),
    [
        ([], {}, None),
        ([["a"]], {"a": 1.0}, "a"),
        ([["a"], ["b", "c"]], {"a": 9.0, "b": 1.0, "c": 2.0}, "c"),  # a majority beats a better score
        ([["a"], ["b"]], {"a": 7.0, "b": 8.0}, "b"),  # all differ: the best mean
        ([["a", "b"], ["c", "d"]], {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.0}, "c"),  # no unique majority
        ([["a", "b"], ["c", "d"], ["e"]], {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.0, "e": 9.0}, "e"),
        ([["a"], ["b"]], {"a": None, "b": None}, "a"),  # no scores, as many tokens: the first of the plan
        ([["a"], ["b"]], {"a": None, "b": -2.5}, "b"),  # likelihoods are under 0, and no score is none of them
    ],
)
def test_the_vote(classes: list[list[str]], means: dict[str, float | None], winner: str | None) -> None:
    assert vote(sample(**means), classes) == winner


def test_among_equals_the_chain_of_fewest_tokens_wins_whatever_the_order_of_their_ends() -> None:
    tracks = {
        name: TrackState(name, steps=(step(score=mean, tokens=tokens),), tokens=tokens)
        for name, mean, tokens in (("a", 7.0, 30), ("b", 7.0, 20), ("c", 7.0, 20), ("d", 6.0, 5))
    }
    for ends in itertools.permutations(tracks):
        state = SampleState("p", 0, tracks=MappingProxyType(tracks), finished_tracks=ends)
        assert vote(state, [[name] for name in ends]) == "b"
        assert vote(state, [["d"], [name for name in ends if name != "d"]]) == "b"
        assert vote(state, [[name] for name in ends], "first") == next(name for name in ends if name != "d")


def test_a_rewritten_step_counts_as_the_best_of_its_scorers_scale_in_the_vote() -> None:
    assert REWRITTEN_SCORES == {"judge": 9.0, "likelihood": 0.0}


def test_there_are_twelve_methods_in_one_sentence_each() -> None:
    assert sorted(METHODS) == list("ABCDEFGHIJKL")
    assert len(set(METHODS.values())) == 12


def test_methods_are_drawn_by_problem_and_seed_and_none_comes_twice_before_all_came() -> None:
    assert draw_methods(12, 0, "p", 0) == draw_methods(12, 0, "p", 0) != draw_methods(12, 0, "q", 0)
    assert sorted(draw_methods(12, 1, "p", 0)) == sorted(METHODS)
    assert sorted(draw_methods(24, 1, "p", 0)) == sorted([*METHODS, *METHODS])


def test_each_track_is_told_its_own_method_and_the_problem() -> None:
    plans = tracks_for(Problem("p", "How many?"), ("E", "M", "E"))
    assert [plan.track for plan in plans] == ["E1", "M2", "E3"]
    assert METHODS["E"] in plans[0].messages[0]["content"]
    assert not any(hint in plans[1].messages[0]["content"] for hint in METHODS.values())
    assert all("How many?" in plan.messages[0]["content"] for plan in plans)


def test_the_defaults_are_those_of_the_original_experiments() -> None:
    recipe = defaults("speculative")
    assert (recipe.score_threshold, recipe.score_method) == (7.0, "greedy")
    assert (recipe.token_budget, recipe.max_step_tokens, recipe.step_limit) == (8192, 512, None)
    assert (recipe.temperature, recipe.top_p) == (0.6, 0.95)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "spekulative",
            {},
            "no strategy called 'spekulative'. There are: baseline, parallel, speculative, speculative-methods",
        ),
        ("speculative", {"score_threshold": 9.5}, "score_threshold = 9.5"),
        ("speculative", {"score_threshold": -1}, "score_threshold = -1"),
        ("speculative", {"score_threshold": float("nan")}, "score_threshold"),
        (
            "speculative",
            {"scorer": "likelihood", "score_threshold": 7.0},
            "with scorer likelihood it is from -100 to 0",
        ),
        ("speculative", {"scorer": "likelihood", "judge": "inline"}, "scorer likelihood asks no judge"),
        ("speculative", {"judge": "inline", "prompt_style": "raw"}, "raw prompts have a layout of their own"),
        ("speculative", {"judge": "turn", "fidelity": "original"}, "raw prompts have a layout of their own"),
        ("speculative", {"fidelity": "original", "scorer": "likelihood"}, "fidelity original has no scorer"),
        ("speculative", {"fidelity": "original", "gate_sure": -1}, "fidelity original has no gate_sure"),
        ("speculative", {"fidelity": "original", "min_step_tokens": 8}, "fidelity original has no min_step_tokens"),
        ("speculative", {"gate_tokens": 8}, "give gate_doubt, too"),
        ("speculative", {"gate_sure": -2, "gate_doubt": -1}, "gate_sure = -2 is under gate_doubt = -1"),
        ("speculative", {"gate_sure": 0.5}, "gate_sure = 0.5"),
        ("speculative", {"gate_entropy": 3.1}, "gate_entropy = 3.1"),
        ("speculative", {"min_step_tokens": 513}, "min_step_tokens = 513 is more than max_step_tokens = 512"),
        ("speculative", {"methods": ("A", "Z")}, "no method is called Z"),
        ("speculative", {"tracks": 0}, "tracks = 0"),
        ("baseline", {"token_budget": 0}, "token_budget = 0"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        strategy(name, boxed, **options)
    assert message in str(caught.value)
