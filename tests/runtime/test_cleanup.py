from __future__ import annotations

import asyncio
from contextlib import suppress

from speclrm.runtime.cleanup import OrderedTaskGroup
from speclrm.runtime.clock import run_virtual


async def _order(failing: bool) -> list[int]:
    ended: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append(number)

    async def fail() -> None:
        await asyncio.sleep(1)
        raise ValueError

    async def main() -> None:
        async with OrderedTaskGroup() as group:
            for number in range(200):
                group.create_task(wait(number))
            if failing:
                group.create_task(fail())

    task = asyncio.create_task(main())
    await asyncio.sleep(2)
    task.cancel()
    with suppress(asyncio.CancelledError, ExceptionGroup):
        await task
    return ended


def test_tasks_that_are_cancelled_together_end_in_the_order_in_which_they_began() -> None:
    assert run_virtual(_order(failing=False)) == list(range(200))


def test_so_do_those_that_end_since_another_failed() -> None:
    assert run_virtual(_order(failing=True)) == list(range(200))
