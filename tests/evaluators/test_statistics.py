"""Intervals and tests: their values by scipy and by hand, and how often intervals hold the truth."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from speclrm.evaluators.intervals import intervals
from speclrm.evaluators.metrics import SampleRow
from speclrm.evaluators.statistics import (
    Interval,
    Part,
    difference_interval,
    mcnemar,
    mean_interval,
    problems_to_settle,
    ratio_interval,
    share_interval,
    sign_flips,
)

SCIPY: Any = import_module("scipy.stats")
TABLE = [(0, 0), (1, 0), (0, 5), (1, 9), (3, 3), (12, 4), (40, 61), (7, 0)]


def samples(*rights: str, **figures: Any) -> list[SampleRow]:
    """A row for each letter of each problem: r right, w wrong, - ungraded."""
    outcomes: dict[str, Any] = {"r": "correct", "w": "wrong", "-": "ungraded"}
    figures = {"seconds": 0.0, **figures}
    return [
        SampleRow(
            problem=str(number),
            repeat=repeat,
            answer="1",
            gold="1",
            outcome=outcomes[letter],
            winner=None,
            votes=(),
            tracks=(),
            tokens=0,
            **figures,
        )
        for number, letters in enumerate(rights)
        for repeat, letter in enumerate(letters)
    ]


def accuracy(*rights: str) -> tuple[float, float]:
    found = intervals(samples(*rights)).accuracy
    assert found is not None
    return found.low, found.high


# ---------------------------------------------------------------------------------------------------------------- p-values


@pytest.mark.parametrize(("one", "other"), TABLE)
def test_the_exact_test_is_scipys_binomial_one(one: int, other: int) -> None:
    wanted = SCIPY.binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(wanted, abs=1e-9)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_the_exact_test_is_that_of_the_textbook() -> None:
    # 10 pairs, one of them the other way: 2 (1 + 10) / 2^10.
    assert mcnemar(1, 9) == pytest.approx(22 / 1024, abs=1e-12)
    assert mcnemar(0, 5) == pytest.approx(2 / 32, abs=1e-12)


@pytest.mark.parametrize(("one", "other"), [pair for pair in TABLE if sum(pair) <= 13])
def test_flipping_the_signs_of_single_pairs_is_the_exact_test(one: int, other: int) -> None:
    signs = [-1.0] * one + [1.0] * other + [0.0] * 20
    assert sign_flips(signs) == pytest.approx(mcnemar(one, other), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_flipping_signs_is_scipys_permutation_test(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-3, 4, 12)

    def mean(one: Any, other: Any, axis: int) -> Any:
        return np.mean(one - other, axis=axis)

    found = SCIPY.permutation_test(
        (differences, np.zeros(12)), mean, permutation_type="samples", vectorized=True, n_resamples=5_000
    )
    assert sign_flips([float(one) for one in differences]) == pytest.approx(found.pvalue, abs=1e-9)


def test_a_problems_repeats_are_no_further_pairs() -> None:
    # Four problems that all went one way, three repeats each: 2 / 2^4, and not 2 / 2^12.
    assert sign_flips([3.0] * 4) == pytest.approx(1 / 8)
    assert mcnemar(0, 12) == pytest.approx(2 / 2**12)


# --------------------------------------------------------------------------------------------------------------- intervals


def test_single_samples_have_jeffreys_interval() -> None:
    wanted = SCIPY.beta(8.5, 2.5).interval(0.95)
    assert accuracy(*"rrrrrrrrww") == pytest.approx(wanted, abs=1e-9)
    assert accuracy(*"wwwww") == pytest.approx((0.0, SCIPY.beta(0.5, 5.5).ppf(0.975)), abs=1e-9)
    assert accuracy(*"rrrrr") == pytest.approx((SCIPY.beta(5.5, 0.5).ppf(0.025), 1.0), abs=1e-9)


def test_repeats_of_one_problem_are_no_further_problems() -> None:
    alone = accuracy(*"rrrrrrrrww")
    assert accuracy(*(["rrrr"] * 8 + ["wwww"] * 2)) == pytest.approx(alone)
    wide, narrow = accuracy("rrrr", "wwww"), accuracy(*["rrww"] * 8)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]
    assert intervals(samples("--")).accuracy is None
    low, high = accuracy("wwwww")
    assert low == 0
    assert high > 0.8  # one problem says little


def test_means_have_students_interval_of_the_logarithm_over_problems() -> None:
    seconds = [1.0, 2.0, 4.0, 8.0]
    rows = [row for number, one in enumerate(seconds) for row in samples(*["r"] * 4, seconds=one)[number : number + 1]]
    error = SCIPY.sem(seconds) / 3.75
    wanted = np.exp(SCIPY.t(3, loc=np.log(3.75), scale=error).interval(0.95))
    found = intervals(rows).seconds
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((3.75, *wanted), abs=1e-9)
    doubled = [row.model_copy(update={"repeat": repeat}) for row in rows for repeat in range(2)]
    again = intervals(doubled).seconds
    assert again is not None
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
    assert mean_interval([Part(3, 1)]) is None
    assert mean_interval([Part(3, 1), Part(6, 2)]) == Interval(value=3, low=3, high=3)
    assert mean_interval([Part(0, 1), Part(0, 1)]) == Interval(value=0, low=0, high=0)
    vast = mean_interval([Part(1e-9, 1), Part(1e9, 1)])
    assert vast is not None
    assert vast.low <= vast.value <= vast.high < float("inf")


def test_the_acceptance_is_of_drafts_and_the_tokens_of_all_models() -> None:
    rows = samples(*"rrr", accepted=3, rejected=1, generated={"draft": 8, "target": 4})
    found = intervals(rows)
    assert found.acceptance is not None
    assert (found.acceptance.value, found.tokens) == (0.75, Interval(value=12, low=12, high=12))
    assert intervals(samples(*"rrr")).tokens is None  # of a version that did not say


def test_where_nothing_differs_the_difference_still_has_an_interval() -> None:
    found = difference_interval([Part(0, 1)] * 30)
    assert found is not None
    assert found.value == 0
    assert found.low < -0.02
    assert found.high == pytest.approx(-found.low, abs=0.01)
    assert difference_interval([]) is None


def test_a_ratio_of_fewer_than_six_problems_has_none() -> None:
    assert ratio_interval([Part(1, 2)] * 5) is None
    assert ratio_interval([Part(1, 0)] * 6) is None
    found = ratio_interval([Part(1, 2), Part(2, 4), Part(4, 8)] * 2)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_so_many_problems_settle_a_difference() -> None:
    # Differences of +1 and -1 with a mean of 0.2: (1.96 + 0.84)^2 x variance / 0.04.
    parts = [Part(1, 1)] * 6 + [Part(-1, 1)] * 4
    wanted = (1.959964 + 0.841621) ** 2 * (10 * (1 - 0.04) / 9) / 0.04
    found = problems_to_settle(parts, 0.2)
    assert found is not None
    assert wanted <= found <= wanted + 1
    assert problems_to_settle([Part(2, 2)] * 6 + [Part(-2, 2)] * 4, 0.2) == found
    assert problems_to_settle(parts, 0.0) is None


# ---------------------------------------------------------------------------------------------------------------- coverage


def covered(kind: str, problems: int, repeats: int, draws: int, seed: int) -> float:
    """How often the interval holds the truth, in draws of a world whose truth is known."""
    random: Any = np.random.default_rng(seed)

    def chances(many: int) -> tuple[Any, Any]:
        hard = random.normal(0, 1.5, many) - 0.4
        return 1 / (1 + np.exp(hard)), 1 / (1 + np.exp(hard + random.normal(0, 0.7, many) - 0.3))

    ones, others = chances(4_000_000)
    truth = {"accuracy": float(ones.mean()), "difference": float((others - ones).mean()), "ratio": 0.7, "mean": 100.0}[
        kind
    ]
    held = 0
    for _ in range(draws):
        if kind in ("ratio", "mean"):
            # Lengths vary by half from problem to problem, and by a quarter from sample to sample.
            size = np.exp(random.normal(-0.125, 0.5, problems))[:, None]
            noise = np.exp(random.normal(-0.03125, 0.25, (2, problems, repeats)))
            below, above = (100 * size * noise[0]).sum(1), (70 * size * noise[1]).sum(1)
            found = (
                ratio_interval([Part(*pair) for pair in zip(above, below, strict=True)])
                if kind == "ratio"
                else mean_interval([Part(one, repeats) for one in below])
            )
        else:
            one, other = chances(problems)
            a: Any = random.binomial(repeats, one)
            b: Any = random.binomial(repeats, other)
            found = (
                difference_interval([Part(float(moved), repeats) for moved in b - a])
                if kind == "difference"
                else share_interval([Part(float(right), repeats) for right in a])
            )
        assert found is not None
        held += found.low <= truth <= found.high
    return held / draws


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("kind", ["accuracy", "difference", "ratio", "mean"])
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interval_holds_the_truth_in_95_of_100_draws(kind: str, repeats: int) -> None:
    assert covered(kind, 60, repeats, 2_000, seed=7) == pytest.approx(0.95, abs=0.015)


if __name__ == "__main__":
    for many in (20, 30, 60, 200):
        for which in ("accuracy", "difference", "ratio", "mean"):
            for each in (1, 3):
                print(f"{which:<11}{many:>5} x {each}  {covered(which, many, each, 2_000, 7):.1%}", flush=True)
