from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclrm.runtime.scheduling.waiting import Waiting


def drain(waiting: Waiting[str]) -> list[str]:
    return [waiting.pop() for _ in range(len(waiting))]


def test_the_most_urgent_comes_first_and_of_equals_the_one_that_came_first() -> None:
    waiting: Waiting[str] = Waiting()
    for order, name in ((5, "a"), (1, "b"), (5, "c"), (1, "d")):
        waiting.push(order, name)
    assert waiting.first() == (1, "b")
    assert drain(waiting) == ["b", "d", "a", "c"]
    with pytest.raises(IndexError):
        waiting.first()


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["push", "pop", "remove"])), max_size=60))
def test_it_is_a_list_that_is_sorted_and_whose_length_is_the_number_of_those_who_wait(
    moves: list[tuple[int, str]],
) -> None:
    waiting: Waiting[int] = Waiting()
    plain: list[tuple[int, int]] = []
    numbers: list[int] = []
    for order, move in moves:
        if move == "push":
            numbers.append(waiting.push(order, len(numbers)))
            plain.append((order, len(numbers) - 1))
        elif move == "pop" and plain:
            item = waiting.pop()
            assert item == min(plain)[1]
            plain.remove(min(plain))
        elif move == "remove" and numbers:
            gone = (7 * order + 3) % len(numbers)
            waiting.remove(numbers[gone])  # also one that has gone already
            plain = [entry for entry in plain if entry[1] != gone]
        assert len(waiting) == len(plain)
        assert bool(waiting) == bool(plain)
    assert [waiting.pop() for _ in plain] == [item for _, item in sorted(plain)]


class Counted:
    """An order that counts how often it is compared."""

    compared = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def __lt__(self, other: Counted) -> bool:
        Counted.compared += 1
        return self.value < other.value

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return isinstance(other, Counted) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


def compared_a_removal(size: int) -> float:
    dice = random.Random(size)
    waiting: Waiting[int] = Waiting()
    numbers = [waiting.push(Counted(dice.randrange(size)), number) for number in range(size)]
    dice.shuffle(numbers)
    Counted.compared = 0
    for number in numbers:
        waiting.remove(number)
    assert not waiting
    return Counted.compared / size


def test_who_goes_away_before_his_turn_costs_the_same_in_a_long_queue_as_in_a_short_one() -> None:
    assert compared_a_removal(4_000) <= 1.5 * compared_a_removal(250) + 1


def test_what_is_kept_is_at_most_twice_what_waits() -> None:
    waiting: Waiting[int] = Waiting()
    for number in [waiting.push(0, 0) for _ in range(1_000)]:
        waiting.remove(number)
        assert len(waiting._heap) <= 2 * len(waiting)  # pyright: ignore[reportPrivateUsage]
