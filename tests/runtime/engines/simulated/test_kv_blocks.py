"""The room of a simulated engine, against a plain model of the same rules."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from speclrm.runtime.engines.simulated.kv_blocks import BlockKeys, Blocks

SIZE = 4
CONTEXTS = st.lists(st.integers(0, 2), min_size=0, max_size=24)


@given(st.lists(CONTEXTS, max_size=12))
def test_keys_kept_from_before_are_those_hashed_anew(contexts: list[list[int]]) -> None:
    kept = BlockKeys(SIZE)
    for ids in contexts:
        assert kept.of("track", ids) == BlockKeys(SIZE).of("other", ids)


def test_a_block_is_named_by_all_before_it() -> None:
    keys = BlockKeys(SIZE)
    one, other = keys.of("a", [1, 2, 3, 4, 5, 6, 7, 8, 9]), keys.of("b", [0, 2, 3, 4, 5, 6, 7, 8])
    assert len(one) == len(other) == 2
    assert not set(one) & set(other)
    assert keys.of("c", [1, 2, 3, 4, 9, 9, 9, 9])[0] == one[0]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), CONTEXTS), max_size=60))
def test_what_is_known_is_a_beginning_and_no_room_is_lost(actions: list[tuple[int, list[int]]]) -> None:
    """Six sequences come and go in a room of ten blocks."""
    blocks, names = Blocks(10), BlockKeys(SIZE)
    held: dict[int, list[int]] = {}
    for sequence, ids in actions:
        if sequence in held:
            blocks.release(held.pop(sequence), 0)
        keys = names.of(str(sequence), ids)
        found = keys[: blocks.known(keys)]
        one_by_one = next((index for index in range(len(keys)) if not blocks.known(keys[index : index + 1])), len(keys))
        assert len(found) == one_by_one
        room = blocks.room
        if len(keys) - len(found) + blocks.idle(found) > room:
            continue
        blocks.hold(found)
        assert blocks.take(len(keys) - len(found))
        for key in keys[len(found) :]:
            blocks.publish(key)
        held[sequence] = keys
        assert blocks.used == len({key for one in held.values() for key in one})
    for keys in held.values():
        blocks.release(keys, 0)
    assert blocks.room == blocks.total


def test_the_end_of_the_oldest_context_goes_first() -> None:
    blocks, names = Blocks(6), BlockKeys(SIZE)
    old, new = names.of("a", [1] * 12), names.of("b", [2] * 12)
    for keys in (old, new):
        assert blocks.take(3)
        for key in keys:
            blocks.publish(key)
        blocks.release(keys, 0)
    assert blocks.take(2)
    assert (blocks.known(old), blocks.known(new)) == (1, 3)
    assert not blocks.take(5)
    assert blocks.room == 4
