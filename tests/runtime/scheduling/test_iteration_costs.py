"""Costs of iterations, found again from looks at a made-up engine whose costs are known."""

from __future__ import annotations

import random
from dataclasses import astuple
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speclrm.runtime.engine import EngineCosts
from speclrm.runtime.scheduling.iteration_costs import SLOWDOWN_MAX, CostFit, CounterDelta

if TYPE_CHECKING:
    from collections.abc import Sequence


def look(
    costs: EngineCosts, batch: float, context: float, *, iterations: float = 50.0, both: float = 0.0
) -> CounterDelta:
    """``batch`` sequences of ``context`` tokens each, a new token each an iteration; ``both``: the share of the time in
    which another engine worked, too.
    """
    alone_s = costs.w + costs.p * batch + costs.k * batch * context
    busy_s = iterations * alone_s * (1 + both * costs.slowdown)
    return CounterDelta(busy_s, iterations, iterations * batch, iterations * batch * context, both * busy_s)


def fitted(looks: Sequence[CounterDelta]) -> EngineCosts:
    fit = CostFit()
    for one in looks:
        fit.add(one)
    assert fit.costs is not None
    return fit.costs


def predicted_s(costs: EngineCosts, batch: float, context: float, both: float) -> float:
    return look(costs, batch, context, iterations=1.0, both=both).busy_s


@pytest.mark.parametrize(
    "costs",
    [
        EngineCosts(0.016, 1.3e-4, 5.5e-8),
        EngineCosts(0.0036, 6e-6, 6e-9),
        EngineCosts(0.05, 0.001, 4e-7),
        EngineCosts(0.016, 1.3e-4, 5.5e-8, 0.6),
    ],
)
def test_phases_with_different_batches_tell_the_costs_apart(costs: EngineCosts) -> None:
    draw = random.Random(1)
    looks: list[CounterDelta] = []
    for batch in (1, 64, 8, 200, 24, 120):
        for both in (0.0, 1.0, 0.5):
            looks += [
                look(costs, batch * draw.uniform(0.8, 1.2), draw.uniform(500, 6000), both=both) for _ in range(20)
            ]
    found = fitted(looks)
    assert found.w == pytest.approx(costs.w, rel=0.15)
    assert found.slowdown == pytest.approx(costs.slowdown, abs=0.1)
    for batch, context, both in ((1, 1000, 0.0), (64, 3000, 1.0), (200, 5000, 0.0)):
        # The parts may be given to each other where they go together; what they come to may not.
        assert predicted_s(found, batch, context, both) == pytest.approx(
            predicted_s(costs, batch, context, both), rel=0.1
        )


def test_before_the_first_look_there_is_no_estimate_and_an_empty_look_makes_none() -> None:
    fit = CostFit()
    assert fit.costs is None
    fit.add(CounterDelta(0.0, 0.0, 0.0, 0.0, 0.0))
    fit.add(CounterDelta(1.0, 0.0, 0.0, 0.0, 0.0))
    assert fit.costs is None


def test_one_look_is_taken_for_a_cost_of_the_iteration_alone() -> None:
    costs = fitted([CounterDelta(1.0, 50.0, 400.0, 400_000.0, 0.0)])
    assert costs.w == pytest.approx(0.02, rel=0.2)
    assert costs.w + costs.p * 8 + costs.k * 8000 == pytest.approx(0.02, rel=0.05)


def test_an_engine_that_never_worked_alone_is_taken_for_a_slow_one() -> None:
    costs = fitted([look(EngineCosts(0.01, slowdown=1.0), 8, 1000, both=1.0) for _ in range(100)])
    assert predicted_s(costs, 8, 1000, 1.0) == pytest.approx(0.02, rel=0.05)
    assert costs.slowdown < 0.3
    assert costs.w + costs.p * 8 + costs.k * 8000 > 0.015


def test_costs_that_were_measured_before_keep_their_proportions_and_learn_how_much_dearer_they_are_now() -> None:
    known = EngineCosts(0.018, 9e-5, 1.4e-7, 1.2, 0.006)
    fit = CostFit(known)
    assert fit.costs == known
    now = EngineCosts(known.w * 1.3, known.p * 1.3, known.k * 1.3, known.slowdown)
    for _ in range(200):
        fit.add(look(now, 20, 1000, both=1.0))
    assert fit.costs is not None
    assert fit.costs.w == pytest.approx(now.w, rel=0.03)
    assert fit.costs.p / fit.costs.w == pytest.approx(known.p / known.w)
    assert fit.costs.k / fit.costs.w == pytest.approx(known.k / known.w)
    assert (fit.costs.slowdown, fit.costs.request_s) == (known.slowdown, known.request_s)


def test_what_is_new_counts_more_than_what_is_old() -> None:
    slow, fast = EngineCosts(0.04), EngineCosts(0.01)
    found = fitted(
        [look(slow, batch, 1000) for batch in (1, 8, 64) * 30] + [look(fast, batch, 1000) for batch in (1, 8, 64) * 70]
    )
    assert predicted_s(found, 8, 1000, 0.0) == pytest.approx(0.01, rel=0.1)


def counts(least: float, most: float) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), st.floats(least, most))


any_look = st.builds(
    CounterDelta, counts(1e-6, 1e4), counts(0.01, 1e6), counts(1, 1e7), counts(1, 1e11), counts(1e-6, 1e4)
)


@settings(deadline=None, derandomize=True)
@given(st.lists(any_look, min_size=1, max_size=40))
@example([CounterDelta(2.1, 22.0, 235, 0.0, 1.06), CounterDelta(29.1, 43.9, 324, 0.0, 18.2)])  # all seemed slowdown
def test_no_cost_is_ever_negative_or_without_a_bound_and_an_iteration_never_free(looks: list[CounterDelta]) -> None:
    fit = CostFit()
    for one in looks:
        fit.add(one)
        if (costs := fit.costs) is not None:
            assert min(costs.w, costs.p, costs.k, costs.slowdown) >= 0
            assert costs.slowdown <= SLOWDOWN_MAX
            assert 0 < max(costs.w, costs.p, costs.k) < float("inf")


@settings(deadline=None, derandomize=True)
@given(
    w=st.floats(1e-3, 0.1),
    p=st.floats(0, 1e-3),
    k=st.floats(0, 1e-6),
    batch=st.floats(1, 300),
    context=st.floats(100, 8000),
)
def test_a_constant_load_is_predicted_as_it_is(w: float, p: float, k: float, batch: float, context: float) -> None:
    """One batch size tells the parts from each other in no way; their sum it does tell."""
    costs = EngineCosts(w, p, k)
    found = fitted([look(costs, batch, context) for _ in range(60)])
    assert predicted_s(found, batch, context, 0.0) == pytest.approx(predicted_s(costs, batch, context, 0.0), rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_a_few_looks_lay_next_to_nothing_to_the_context(seed: int) -> None:
    """An engine on which it costs nothing, and whose requests take a moment on their way: there are more of them the more
    sequences there are, as there is more context. A forecast asks for twenty sequences of thousands of tokens.
    """
    draw, costs = random.Random(seed), EngineCosts(0.0024, 2.6e-5)
    looks: list[CounterDelta] = []
    for _ in range(8):
        batch = draw.choice((1, 1, 2, 3, 5))
        plain = look(costs, batch, draw.uniform(300, 700), iterations=draw.uniform(20, 90))
        looks.append(CounterDelta(plain.busy_s + draw.uniform(0, 0.01) * batch, *list(astuple(plain))[1:]))
    found = fitted(looks)
    assert predicted_s(found, 20, 1500, 0.0) < 4 * predicted_s(costs, 20, 1500, 0.0)
