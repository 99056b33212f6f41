from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from speclrm.runtime.clock import VirtualTimeLoop, now_s, run_virtual

if TYPE_CHECKING:
    from pathlib import Path


def test_hours_pass_in_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(36_000)
        return now_s()

    started = time.monotonic()
    assert run_virtual(main()) == 36_000
    assert time.monotonic() - started < 5


def test_a_wait_too_short_for_the_clocks_numbers_passes_all_the_same() -> None:
    """Otherwise a loop that waits for what is left of a second, a rounding error, would wait for ever in no time."""

    async def main() -> int:
        await asyncio.sleep(16.458873999999994)
        end, rounds = now_s() + 1e-20, 0
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        before = now_s()
        while now_s() <= max(before, end):
            loop.advance(1e-20)
            rounds += 1
        return rounds

    assert run_virtual(main()) == 1


def test_timers_fire_in_the_order_of_their_times() -> None:
    order: list[int] = []

    async def wait(seconds: int) -> None:
        await asyncio.sleep(seconds)
        order.append(seconds)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for seconds in (30, 10, 20):
                group.create_task(wait(seconds))

    run_virtual(main())
    assert order == [10, 20, 30]


def test_a_wait_on_nothing_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(main())


def test_the_clock_stands_still_while_a_thread_works() -> None:
    async def main() -> tuple[float, bool]:
        timer = asyncio.create_task(asyncio.sleep(0.001))
        await asyncio.to_thread(time.sleep, 0.2)
        passed = now_s()
        timer_fired = timer.done()
        await timer
        return passed, timer_fired

    assert run_virtual(main()) == (0.0, False)


def test_results_of_threads_arrive_in_the_order_of_the_calls(tmp_path: Path) -> None:
    order: list[str] = []

    async def call(name: str, seconds: float) -> None:
        await asyncio.to_thread(time.sleep, seconds)
        order.append(name)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(call("slow", 0.2))
            group.create_task(call("quick", 0.0))

    run_virtual(main())
    assert order == ["slow", "quick"]


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fail() -> None:
        raise ValueError("in the thread")

    async def main() -> None:
        await asyncio.to_thread(fail)

    with pytest.raises(ValueError, match="in the thread"):
        run_virtual(main())
