"""Seats by the room for keys and values, one case at a time; random ones are in test_scheduler_properties."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support import enter

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.admission import GROWTH_TOKENS, ROOM_SHARE, SPARE_TOKENS, Admission, Reservation
from speclrm.runtime.scheduling.lanes import Lane

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from speclrm.runtime.engine import EngineStats

KV_TOKENS = 1000
ROOM = int(KV_TOKENS * ROOM_SHARE)
TARGET = Role.TARGET


class Roomy(ScriptedEngine):
    def __init__(self, kv_tokens: int | None = KV_TOKENS) -> None:
        super().__init__(lambda request, prompt: Reply())
        self.kv_tokens = kv_tokens

    def stats(self) -> EngineStats:
        return replace(super().stats(), kv_tokens=self.kv_tokens)


def seats_on(*engines: Roomy, draft: Sequence[Roomy] = ()) -> Admission:
    lanes = {TARGET: Lane(TARGET, *(engines or [Roomy()]))}
    return Admission(lanes | ({Role.DRAFT: Lane(Role.DRAFT, *draft)} if draft else {}))


class Waiting:
    """Those who asked for room, by name, in a task of their own."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.tasks: dict[str, asyncio.Task[Reservation | None]] = {}

    async def ask(self, name: str, reservation: Coroutine[Any, Any, Reservation | None]) -> None:
        self.tasks[name] = asyncio.create_task(reservation)
        await settle()

    @property
    def admitted(self) -> list[str]:
        return [name for name, task in self.tasks.items() if task.done()]

    def reservation(self, name: str) -> Reservation:
        reservation = self.tasks[name].result()
        assert reservation is not None
        return reservation

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_track_that_finds_room_sits_down_at_once_and_the_next_waits_until_there_is_some() -> None:
    async def main() -> None:
        admission = seats_on()
        first = await enter(admission, 0, {TARGET: 600})
        waiting = Waiting(admission)
        await waiting.ask("second", enter(admission, 1, {TARGET: 400}))
        assert (waiting.admitted, admission.admitted, admission.waiting) == ([], 1, 1)
        admission.leave(first)
        await settle()
        assert (waiting.admitted, admission.admitted, admission.waiting) == (["second"], 1, 0)

    run_virtual(main())


def test_an_engine_that_names_no_room_seats_everybody() -> None:
    async def main() -> int:
        admission = seats_on(Roomy(None))
        for order in range(50):
            await enter(admission, order, {TARGET: 100_000})
        return admission.admitted

    assert run_virtual(main()) == 50


@pytest.mark.parametrize(("room", "sits"), [(0, True), (1, False)])
def test_whoever_sits_down_leaves_two_steps_of_room_to_each_that_sits_already(room: int, sits: bool) -> None:
    """So that nobody is deferred again at once."""

    async def main() -> None:
        admission = seats_on()
        await enter(admission, 0, {TARGET: 300})
        need = ROOM - (300 + SPARE_TOKENS) - SPARE_TOKENS - GROWTH_TOKENS + room
        waiting = Waiting(admission)
        await waiting.ask("next", enter(admission, 1, {TARGET: need}))
        assert waiting.admitted == (["next"] if sits else [])

    run_virtual(main())


def test_the_youngest_stands_up_at_its_next_step_and_sits_down_again_when_there_is_room() -> None:
    async def main() -> None:
        admission = seats_on()
        old, young = [await enter(admission, order, {TARGET: 300}) for order in range(2)]
        await admission.hold(young)  # nobody asked: goes on at once
        admission.resize(old, TARGET, 500)
        assert (old.asked, young.asked) == (False, True)
        waiting = Waiting(admission)

        async def hold() -> None:
            await admission.hold(young)

        await waiting.ask("young", hold())
        assert (waiting.admitted, admission.admitted, admission.deferred) == ([], 1, 1)
        admission.leave(old)
        await settle()
        assert waiting.admitted == ["young"]
        assert (young.admitted, young.asked) == (True, False)

    run_virtual(main())


def test_who_was_deferred_waits_for_more_room_than_it_lacked() -> None:
    """Hysteresis: the room by which it was over does not do; two steps for each that sits must be there beside it."""

    async def main() -> None:
        admission = seats_on()
        first, second, third = [await enter(admission, order, {TARGET: 150}) for order in range(3)]
        admission.resize(first, TARGET, ROOM - 2 * (150 + SPARE_TOKENS) - SPARE_TOKENS + 1)
        assert [reservation.asked for reservation in (first, second, third)] == [False, False, True]
        waiting = Waiting(admission)

        async def hold() -> None:
            await admission.hold(third)

        await waiting.ask("third", hold())
        admission.resize(first, TARGET, first.tokens[TARGET] - 2)  # the token that was too much, and one more
        await settle()
        assert waiting.admitted == []
        admission.resize(first, TARGET, first.tokens[TARGET] - 2 * GROWTH_TOKENS)
        await settle()
        assert waiting.admitted == ["third"]

    run_virtual(main())


def test_older_samples_sit_down_first_and_nobody_passes_one_who_does_not_fit() -> None:
    async def main() -> None:
        admission = seats_on()
        holder = await enter(admission, 0, {TARGET: 700})
        waiting = Waiting(admission)
        await waiting.ask("young", enter(admission, 9, {TARGET: 10}))
        await waiting.ask("old and large", enter(admission, 1, {TARGET: 750}))
        await waiting.ask("middle", enter(admission, 5, {TARGET: 10}))
        admission.resize(holder, TARGET, 400)  # room for the small ones, not for the large one
        await settle()
        assert waiting.admitted == []
        admission.leave(holder)
        await settle()
        assert waiting.admitted == ["old and large"]  # and beside it there is no room
        admission.resize(waiting.reservation("old and large"), TARGET, 560)
        await settle()
        assert sorted(waiting.admitted) == ["middle", "old and large"]

    run_virtual(main())


def test_a_track_larger_than_the_room_runs_alone() -> None:
    async def main() -> None:
        admission = seats_on()
        large = await enter(admission, 3, {TARGET: 5 * KV_TOKENS})
        waiting = Waiting(admission)
        await waiting.ask("small", enter(admission, 0, {TARGET: 10}))
        admission.resize(large, TARGET, 6 * KV_TOKENS)
        await admission.hold(large)  # nobody to make room for
        assert (waiting.admitted, large.asked) == ([], False)
        admission.leave(large)
        await settle()
        assert waiting.admitted == ["small"]

    run_virtual(main())


def test_one_that_grows_over_the_room_gets_all_of_it() -> None:
    async def main() -> None:
        admission = seats_on()
        reservations = [await enter(admission, order, {TARGET: 100}) for order in range(3)]
        admission.resize(reservations[0], TARGET, 2 * KV_TOKENS)
        assert [reservation.asked for reservation in reservations] == [False, True, True]

    run_virtual(main())


def test_cancelling_one_that_waits_lets_those_behind_it_sit_down() -> None:
    async def main() -> None:
        admission = seats_on()
        await enter(admission, 0, {TARGET: 500})
        waiting = Waiting(admission)
        await waiting.ask("large", enter(admission, 1, {TARGET: 900}))
        await waiting.ask("small", enter(admission, 2, {TARGET: 50}))
        assert waiting.admitted == []
        await waiting.cancel("large")
        assert waiting.tasks["large"].cancelled()
        assert waiting.reservation("small").admitted
        assert (admission.admitted, admission.waiting) == (2, 0)

    run_virtual(main())


def test_one_that_is_cancelled_in_the_moment_in_which_it_is_seated_gives_its_seat_on() -> None:
    async def main() -> None:
        admission = seats_on()
        holder = await enter(admission, 0, {TARGET: 900})
        waiting = Waiting(admission)
        await waiting.ask("one", enter(admission, 1, {TARGET: 700}))
        await waiting.ask("other", enter(admission, 2, {TARGET: 700}))
        admission.leave(holder)  # admits the one, whose task has not heard of it yet
        await waiting.cancel("one")
        assert waiting.tasks["one"].cancelled()
        assert waiting.reservation("other").admitted
        assert (admission.admitted, admission.waiting) == (1, 0)

    run_virtual(main())


def test_leaving_twice_is_leaving_once() -> None:
    async def main() -> None:
        admission = seats_on()
        one, other = [await enter(admission, order, {TARGET: 200}) for order in range(2)]
        admission.leave(one)
        admission.leave(one)
        admission.resize(one, TARGET, 900)  # of no account any more
        assert (admission.admitted, other.asked) == (1, False)

    run_virtual(main())


def test_each_engine_of_each_role_needs_room() -> None:
    async def main() -> None:
        admission = seats_on(Roomy(100_000), draft=[Roomy(500)])
        await enter(admission, 0, {TARGET: 300, Role.DRAFT: 300})
        waiting = Waiting(admission)
        await waiting.ask("next", enter(admission, 1, {TARGET: 300, Role.DRAFT: 300}))
        await waiting.ask("without a draft", enter(admission, 2, {TARGET: 300}))
        assert waiting.admitted == []  # the first of them does not fit, and nobody passes it

    run_virtual(main())


def test_a_track_without_drafts_leaves_the_drafts_room_to_others() -> None:
    async def main() -> None:
        admission = seats_on(Roomy(100_000), draft=[Roomy(800)])
        first = await enter(admission, 0, {TARGET: 400, Role.DRAFT: 400})
        waiting = Waiting(admission)
        await waiting.ask("next", enter(admission, 1, {TARGET: 300, Role.DRAFT: 300}))
        assert waiting.admitted == []
        admission.resize(first, Role.DRAFT, 0)
        await settle()
        assert waiting.admitted == ["next"]

    run_virtual(main())


# ------------------------------------------------------------------------------------------------------ several engines a role


def test_newcomers_go_where_the_fewest_tokens_are_and_stay_there() -> None:
    async def main() -> list[int]:
        admission = seats_on(Roomy(10_000), Roomy(10_000))
        reservations = [
            await enter(admission, order, {TARGET: tokens}) for order, tokens in enumerate((900, 100, 100, 100))
        ]
        admission.resize(reservations[1], TARGET, 5000)
        await admission.hold(reservations[1])
        return [reservation.places[TARGET] for reservation in reservations]

    assert run_virtual(main()) == [0, 1, 1, 1]


def test_those_who_waited_for_room_spread_over_the_engines_as_it_comes() -> None:
    async def main() -> list[int]:
        admission = seats_on(Roomy(), Roomy())
        holders = [await enter(admission, 0, {TARGET: 800}) for _ in range(2)]
        waiting = Waiting(admission)
        for number in range(4):
            await waiting.ask(str(number), enter(admission, 1, {TARGET: 200}))
        assert waiting.admitted == []
        for holder in holders:
            admission.leave(holder)
        await settle()
        return sorted(waiting.reservation(name).places[TARGET] for name in waiting.admitted)

    assert run_virtual(main()) == [0, 0, 1, 1]


def test_a_dead_engine_gets_no_newcomers() -> None:
    async def main() -> list[int]:
        engines = Roomy(), Roomy()
        admission = seats_on(*engines)
        await engines[0].aclose()
        return [(await enter(admission, 0, {TARGET: 100})).places[TARGET] for _ in range(3)]

    assert run_virtual(main()) == [1, 1, 1]
