"""Two runs, pair by pair: who is right, what a sample costs, which problems differ."""

from __future__ import annotations

from typing import Any

import pytest

from speclrm.evaluators.metrics import SampleRow
from speclrm.evaluators.paired import paired
from speclrm.evaluators.statistics import mcnemar


def rows(rights: str, *, repeats: int = 1, **figures: Any) -> list[SampleRow]:
    """A row for each letter, ``repeats`` of them a problem: r right, w wrong, - ungraded."""
    outcomes: dict[str, Any] = {"r": "correct", "w": "wrong", "-": "ungraded"}
    return [
        SampleRow(
            problem=f"p{number // repeats}",
            repeat=number % repeats,
            answer={"r": "4", "w": "5", "-": None}[letter],
            gold="4",
            outcome=outcomes[letter],
            winner=None,
            votes=(),
            tracks=(),
            tokens=0,
            seconds=1.0 + number,
            **figures,
        )
        for number, letter in enumerate(rights)
    ]


def compare(base: str, other: str, repeats: int = 1, **options: Any) -> Any:
    return paired(list(zip(rows(base, repeats=repeats), rows(other, repeats=repeats), strict=True)), **options)


def test_pairs_are_counted_by_who_is_right() -> None:
    found = compare("rrrrrwwww-", "rrrwwrwwwr").accuracy
    assert (found.both, found.only_base, found.only_other, found.neither) == (3, 2, 1, 3)
    assert (found.pairs, found.base, found.other) == (9, 5 / 9, 4 / 9)
    assert found.difference.value == pytest.approx(-1 / 9)
    assert found.difference.low < -1 / 9 < found.difference.high
    assert found.p == found.mcnemar == mcnemar(2, 1)


def test_repeats_are_weighed_by_problem() -> None:
    found = compare("rrrwwwwww", "rrrrrrrrr", repeats=3).accuracy
    assert (found.problems, found.pairs) == (3, 9)
    assert found.mcnemar == mcnemar(0, 6)
    assert found.p == pytest.approx(0.5)  # two problems that went one way
    assert found.settle is not None


def test_the_problems_that_differ_come_with_their_answers() -> None:
    found = compare("rrwwrw", "rwrrrw", repeats=2)
    assert [one.problem for one in found.differing] == ["p1", "p0"]
    first = found.differing[1]
    assert (first.base_right, first.other_right, first.pairs) == (2, 1, 2)
    assert (first.base_answers, first.other_answers) == (("4", "4"), ("4", "5"))


def test_costs_are_ratios_of_sums_over_the_same_samples() -> None:
    base = rows("rrrrrr", generated={"target": 100}, decode_flops=1000, all_flops=1100)
    other = rows("rrrrrr", generated={"target": 20, "draft": 130}, decode_flops=500, all_flops=2200)
    found = {one.cost: one for one in paired(list(zip(base, other, strict=True))).costs}
    assert {name: one.ratio and one.ratio.value for name, one in found.items()} == {
        "tokens": 1.5,
        "target_tokens": 0.2,
        "decode_flops": 0.5,
        "all_flops": 2.0,
        "seconds": 1.0,
    }
    assert found["tokens"].base == 100
    # Every problem has the same ratio.
    assert (found["tokens"].ratio.low, found["tokens"].ratio.high) == pytest.approx((1.5, 1.5))  # type: ignore[union-attr]


def test_costs_that_a_run_does_not_tell_are_left_out() -> None:
    pairs = list(zip(rows("rr"), rows("rr", generated={"target": 1}, decode_flops=1), strict=True))
    assert [one.cost for one in paired(pairs).costs] == ["seconds"]
    assert not paired(pairs, times=False).costs
    assert compare("--", "rr").accuracy is None
