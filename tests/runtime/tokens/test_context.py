"""A track's ids: shared with the requests that carry them, and never changed under them."""

from __future__ import annotations

import tracemalloc
from itertools import product

import pytest

from speclrm.runtime.engines.scripted import ByteTokenizer
from speclrm.runtime.tokens.context import Context


def context(ids: list[int]) -> Context:
    return Context(ByteTokenizer(), ids)


def test_ids_are_those_of_the_moment_whatever_is_appended_later() -> None:
    track = context([1, 2, 3])
    ids = track.ids([7], [8, 9])
    track.append([4, 5])
    assert list(ids) == ids.tolist() == [1, 2, 3, 7, 8, 9]
    assert list(track.ids()) == [1, 2, 3, 4, 5]


BOUNDS = (None, 0, 2, 3, 4, 6, 9, -1, -3, -4, -9)


@pytest.mark.parametrize("key", [0, 2, 3, 5, -1, -6, slice(None, None, -1), slice(5, 0, -2), slice(1, None, 2)])
def test_ids_are_read_like_a_list(key: int | slice) -> None:
    ids = context([1, 2, 3]).ids([4], [5, 6])
    assert ids[key] == [1, 2, 3, 4, 5, 6][key]
    assert len(ids) == 6
    assert 5 in ids
    assert 9 not in ids


@pytest.mark.parametrize(("start", "stop"), list(product(BOUNDS, BOUNDS)))
def test_a_part_of_ids_is_read_like_that_of_a_list(start: int | None, stop: int | None) -> None:
    ids = context([1, 2, 3]).ids([4], [5, 6])
    assert ids[start:stop] == [1, 2, 3, 4, 5, 6][start:stop]


def test_the_end_of_a_long_context_is_read_without_a_copy_of_it() -> None:
    ids = context(list(range(100_000))).ids([1, 2])
    tracemalloc.start()
    assert ids[-3:] == [99_999, 1, 2]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000


@pytest.mark.parametrize("place", [3, -4])
def test_a_place_outside_is_refused(place: int) -> None:
    with pytest.raises(IndexError):
        context([1, 2]).ids([3])[place]


def test_a_request_holds_no_copy_of_its_context() -> None:
    track = context(list(range(100_000)))
    tracemalloc.start()
    held = [track.ids([1, 2]) for _ in range(100)]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held[0]) == 100_002
    assert used < 100_000
