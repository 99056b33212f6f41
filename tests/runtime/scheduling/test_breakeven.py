"""The prediction of rates against the sequential rule and against common sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speclrm.runtime.engine import EngineCosts
from speclrm.runtime.scheduling.breakeven import Group, StepShape, lateness, predict

EQUAL = StepShape(drafted=32, lost=32, written=32, read_draft=0, read_score=0, read_rewrite=0)
QWQ = EngineCosts(16.1e-3, 0.13e-3, 5.5e-8)
R1 = EngineCosts(3.6e-3, 0.006e-3, 0.6e-8)


def ratio(acceptance: float, c: float) -> float:
    """The gain for one track alone, where the draft takes ``c`` of a target's step and nothing costs but iterations."""
    target, draft = EngineCosts(0.01), EngineCosts(0.01 * c)
    alone = predict([Group(1, None)], EQUAL, target, None)
    return predict([Group(1, acceptance)], EQUAL, target, draft).rate / alone.rate


@pytest.mark.parametrize("c", [0.02, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.8, 1.0])
def test_one_track_alone_gains_as_the_sequential_rule_says(acceptance: float, c: float) -> None:
    """1 / (c + s + 1 - a), with s of one and a half iterations of a step of 32 tokens."""
    assert ratio(acceptance, c) == pytest.approx(1 / (c + 1.5 / 32 + 1 - acceptance), rel=0.03)


def test_one_track_alone_breaks_even_where_acceptance_is_draft_and_score() -> None:
    assert ratio(0.1 + 1.5 / 32 + 0.03, 0.1) > 1 > ratio(0.1 + 1.5 / 32 - 0.01, 0.1)


def test_the_target_alone_writes_a_token_of_each_track_an_iteration() -> None:
    found = predict([Group(10, None)], StepShape(context=1000), QWQ, None)
    seconds = QWQ.w + 10 * QWQ.p + 10 * 1000 * QWQ.k
    assert found.rate == pytest.approx(10 / seconds, rel=1e-3)
    assert found.target_load == 10


def test_no_track_makes_no_rate_and_a_draft_of_unknown_cost_no_prediction() -> None:
    assert predict([], EQUAL, QWQ, R1).rate == 0
    with pytest.raises(ValueError, match="what the draft costs is not known"):
        predict([Group(1, 0.5)], EQUAL, QWQ, None)


def test_what_a_request_takes_on_its_way_counts_for_drafts_and_scores_and_not_for_the_target_alone() -> None:
    target, draft = EngineCosts(0.01, request_s=0.02), EngineCosts(0.001, request_s=0.03)
    bare = predict([Group(1, 1.0)], EQUAL, EngineCosts(0.01), EngineCosts(0.001))
    found = predict([Group(1, 1.0)], EQUAL, target, draft)
    assert EQUAL.drafted / found.rate == pytest.approx(EQUAL.drafted / bare.rate + 0.02 + 0.03)
    alone = [predict([Group(1, None)], EQUAL, one, None).rate for one in (target, EngineCosts(0.01))]
    assert alone[0] == alone[1]


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 1.0])
def test_work_ahead_saves_one_track_the_wait_for_its_score(acceptance: float) -> None:
    """The next draft or the rewrite, whichever is needed, began when the score was requested."""
    target, draft = EngineCosts(0.01, request_s=0.02), EngineCosts(0.001, request_s=0.03)
    steps_s = [
        EQUAL.drafted / predict([Group(1, acceptance)], EQUAL, target, draft, ahead=ahead).rate
        for ahead in (False, True)
    ]
    assert steps_s[0] - steps_s[1] == pytest.approx(1.5 * 0.01 + 0.02)


@pytest.mark.parametrize(("slowdown", "least", "most"), [(0.0, 1.04, 1.5), (1.0, 0.9, 1.05)])
def test_work_ahead_of_one_track_slows_its_own_score_on_a_shared_device(
    slowdown: float, least: float, most: float
) -> None:
    target, draft = EngineCosts(0.01, slowdown=slowdown), EngineCosts(0.001, slowdown=slowdown)
    for accepted in (0.0, 0.5, 1.0):
        groups = [Group(1, accepted)]
        in_turn, ahead = (predict(groups, EQUAL, target, draft, ahead=one).rate for one in (False, True))
        assert least < ahead / in_turn < most


def test_work_ahead_costs_where_engines_are_full_and_changes_nothing_without_a_score() -> None:
    def gain(tracks: int, shape: StepShape = EQUAL) -> float:
        groups = [Group(tracks, 0.7)]
        return predict(groups, shape, QWQ, R1, ahead=True).rate / predict(groups, shape, QWQ, R1).rate

    assert gain(5) > gain(20) > 1.03
    assert gain(200) < 1
    assert gain(5, replace(EQUAL, scores=0.0)) == 1


def test_the_slowest_of_many_tracks_is_later_and_least_where_they_are_uneven_already() -> None:
    assert lateness(1, 0.5, 0.0, 24) == lateness(20, 0.5, 0.0, 0) == lateness(20, 0.0, 0.0, 24) == 0
    # Of 20 normal values the greatest is 1.87 standard deviations above the mean.
    assert lateness(20, 0.5, 0.0, 25) == pytest.approx(1.87 * 0.5 / 5, rel=0.01)
    assert lateness(5, 0.5, 0.0, 25) < lateness(20, 0.5, 0.0, 25) < lateness(20, 0.5, 0.0, 9)
    assert lateness(20, 0.5, 25, 25) < 0.5 * lateness(20, 0.5, 0.0, 25)


tracks = st.integers(1, 100)
shares = st.floats(0, 1)
steady = settings(deadline=None, derandomize=True, max_examples=60)


@steady
@given(tracks, shares, shares, st.floats(0, 1))
def test_the_more_is_accepted_the_better(count: int, one: float, other: float, slowdown: float) -> None:
    low, high = sorted((one, other))
    target, draft = EngineCosts(QWQ.w, QWQ.p, QWQ.k, slowdown), EngineCosts(R1.w, R1.p, R1.k, slowdown)
    rates = [predict([Group(count, accepted)], EQUAL, target, draft).rate for accepted in (low, high)]
    assert rates[0] <= rates[1] * 1.001


@steady
@given(tracks, shares, st.floats(1, 20), st.sampled_from(["w", "p", "k", "slowdown"]))
def test_a_slower_draft_never_helps(count: int, accepted: float, times: float, which: str) -> None:
    slow = {name: getattr(R1, name) for name in ("w", "p", "k", "slowdown")}
    slow[which] = slow[which] * times if which != "slowdown" else times - 1
    groups = [Group(count, accepted)]
    slower = predict(groups, EQUAL, QWQ, EngineCosts(**slow)).rate
    assert slower <= predict(groups, EQUAL, QWQ, R1).rate * 1.001


@steady
@given(tracks, shares, st.integers(1, 100), shares)
def test_it_matters_not_whether_equal_tracks_are_counted_in_one_group_or_in_two(
    count: int, accepted: float, more: int, other: float
) -> None:
    together = predict([Group(count + more, accepted), Group(3, other)], EQUAL, QWQ, R1)
    apart = predict([Group(count, accepted), Group(3, other), Group(more, accepted)], EQUAL, QWQ, R1)
    assert apart.rate == pytest.approx(together.rate)


# ------------------------------------------------------------------------------------------------------------- the threshold


accepted_or_not = st.one_of(st.none(), st.integers(0, 20).map(lambda twentieths: twentieths / 20))
some_groups = st.lists(st.builds(Group, st.integers(1, 30), accepted_or_not), min_size=1, max_size=6)
