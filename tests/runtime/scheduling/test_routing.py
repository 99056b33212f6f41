from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclrm.runtime.scheduling.routing import Place, least_loaded


@pytest.mark.parametrize(
    ("places", "chosen"),
    [
        ([Place(0, 0)], 0),
        ([Place(10, 0), Place(5, 9), Place(7, 0)], 1),
        ([Place(5, 2), Place(5, 1), Place(5, 3)], 1),
        ([Place(5, 1), Place(5, 1)], 0),
        ([Place(0, 0, alive=False), Place(900, 9)], 1),
        ([Place(9, 0, alive=False), Place(3, 0, alive=False)], 1),
    ],
)
def test_the_fewest_tokens_then_the_fewest_requests_then_the_first(places: list[Place], chosen: int) -> None:
    assert least_loaded(places) == chosen


@given(st.lists(st.builds(Place, st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=6))
def test_a_dead_engine_is_chosen_only_where_none_lives(places: list[Place]) -> None:
    chosen = places[least_loaded(places)]
    assert chosen.alive or not any(place.alive for place in places)
    assert all(chosen.tokens <= place.tokens for place in places if place.alive == chosen.alive)


def test_tracks_that_come_one_by_one_spread_evenly() -> None:
    tokens = [0, 0, 0]
    for _ in range(30):
        tokens[least_loaded([Place(held, 0) for held in tokens])] += 100
    assert tokens == [1000] * 3
