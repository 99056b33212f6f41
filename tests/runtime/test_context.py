"""A track's ids: shared with the requests that carry them, and never changed under them."""

from __future__ import annotations

import tracemalloc

import pytest

from speclrm.runtime.context import Context
from speclrm.runtime.engines.scripted import ByteTokenizer


def context(ids: list[int]) -> Context:
    return Context(ByteTokenizer(), ids)


def test_ids_are_those_of_the_moment_whatever_is_appended_later() -> None:
    track = context([1, 2, 3])
    ids = track.ids([7], [8, 9])
    track.append([4, 5])
    assert list(ids) == ids.tolist() == [1, 2, 3, 7, 8, 9]
    assert list(track.ids()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("key", [0, 2, 3, 5, -1, -6, slice(None), slice(2, 4), slice(-2, None), slice(None, None, -1)])
def test_ids_are_read_like_a_list(key: int | slice) -> None:
    ids = context([1, 2, 3]).ids([4], [5, 6])
    assert ids[key] == [1, 2, 3, 4, 5, 6][key]
    assert len(ids) == 6
    assert 5 in ids
    assert 9 not in ids


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
