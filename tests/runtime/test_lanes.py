from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.errors import EngineStalledError, RequestError
from speclrm.runtime.lanes import Flight, Lane
from speclrm.runtime.protocols import Delta, Request, Role
from speclrm.runtime.scheduler import priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.events import Operation


def flight(name: str, *, urgency: int = 0) -> Flight:
    return Flight(Request(id=name, prompt_ids=[65], max_tokens=50, priority=urgency), "scripted")


def lane_on(
    script: Callable[[Request, str], Reply], *, in_flight_max: int | None = None, stall_limit_s: float = 600.0
) -> tuple[Lane, ScriptedEngine]:
    engine = ScriptedEngine(script)
    return Lane(Role.TARGET, engine, in_flight_max=in_flight_max, stall_limit_s=stall_limit_s), engine


def ten_tokens(request: Request, prompt: str) -> Reply:
    return Reply("0123456789", token_s=1.0)


def test_an_operation_that_finds_room_starts_at_once() -> None:
    async def main() -> tuple[float, float]:
        lane, _ = lane_on(ten_tokens)
        one = flight("one")
        await lane.run(one)
        return one.queue_s, one.engine_s

    assert run_virtual(main()) == (0.0, 10.0)


@pytest.mark.parametrize("asked", [{"sampled_logprobs": True}, {"likelihood_from": 0}])
def test_an_engine_that_leaves_out_what_was_asked_for_is_an_error_and_no_guess(asked: dict[str, Any]) -> None:
    silent = Flight(Request(id="one", prompt_ids=[65], max_tokens=50, **asked), "silent")
    with pytest.raises(RequestError, match="Engine silent"):
        silent.take(Delta((1, 2)))


def test_no_more_than_the_bound_are_in_the_engine_and_the_most_urgent_goes_next() -> None:
    async def main() -> tuple[list[str], int]:
        lane, engine = lane_on(ten_tokens, in_flight_max=2)
        most = 0
        async with asyncio.TaskGroup() as group:
            for name, urgency in (("a", 5), ("b", 5), ("later", 9), ("urgent", 1), ("middle", 5)):
                group.create_task(lane.run(flight(name, urgency=urgency)))
                await asyncio.sleep(0)
                most = max(most, engine.stats().running)
            for _ in range(30):
                await asyncio.sleep(1)
                most = max(most, engine.stats().running)
        return [request.id for request in engine.requests], most

    assert run_virtual(main()) == (["a", "b", "urgent", "middle", "later"], 2)


def test_cancelling_one_that_waits_keeps_it_from_the_engine_and_frees_nothing() -> None:
    async def main() -> tuple[list[str], int, int]:
        lane, engine = lane_on(ten_tokens, in_flight_max=1)
        first = asyncio.create_task(lane.run(flight("first")))
        await asyncio.sleep(0)
        second = asyncio.create_task(lane.run(flight("second")))
        third = asyncio.create_task(lane.run(flight("third")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        stats = lane.stats()[0]
        return [request.id for request in engine.requests], stats.in_flight, stats.waiting

    assert run_virtual(main()) == (["first", "third"], 0, 0)


@pytest.mark.parametrize("moment", range(1, 40))
def test_a_place_is_never_lost_whenever_a_cancel_comes(moment: int) -> None:
    """Cancels the second of three after each of the first turns of the loop; the third must still be served."""

    async def main() -> int:
        lane, engine = lane_on(lambda request, prompt: Reply("ab", token_s=0.0), in_flight_max=1)
        tasks = [asyncio.create_task(lane.run(flight(name))) for name in ("first", "second", "third")]
        for _ in range(moment):
            await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(tasks[0], tasks[2])
        await asyncio.gather(tasks[1], return_exceptions=True)
        assert engine.stats().running == 0
        return lane.stats()[0].in_flight

    assert run_virtual(main()) == 0


def test_cancelling_one_in_the_engine_aborts_it_there_and_keeps_what_had_come() -> None:
    async def main() -> tuple[list[str], int, int]:
        lane, engine = lane_on(ten_tokens)
        one = flight("one")
        task = asyncio.create_task(lane.run(one))
        await asyncio.sleep(9)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return list(engine.aborted), engine.stats().running, len(one.ids)

    assert run_virtual(main()) == (["one"], 0, 8)


def test_an_error_of_one_request_reaches_its_caller_and_frees_the_place() -> None:
    async def main() -> int:
        lane, _ = lane_on(lambda request, prompt: Reply(error=RequestError("refused")), in_flight_max=1)
        for name in ("one", "two"):
            with pytest.raises(RequestError, match="refused"):
                await lane.run(flight(name))
        return lane.stats()[0].in_flight

    assert run_virtual(main()) == 0


def test_an_engine_without_any_progress_ends_its_operations() -> None:
    async def main() -> float:
        lane, _ = lane_on(lambda request, prompt: Reply("x", wait_s=1e9), stall_limit_s=100)
        watch = asyncio.create_task(lane.queues[0].watch())
        with pytest.raises(EngineStalledError, match="no progress for 100 s"):
            await lane.run(flight("one"))
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        assert lane.stats()[0].in_flight == 0
        return now_s()

    assert 100 <= run_virtual(main()) <= 130


def test_a_slow_engine_that_goes_on_is_left_alone() -> None:
    async def main() -> int:
        lane, _ = lane_on(lambda request, prompt: Reply("x" * 40, token_s=5.0), stall_limit_s=100)
        watch = asyncio.create_task(lane.queues[0].watch())
        one = flight("one")
        await lane.run(one)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        return len(one.ids)

    assert run_virtual(main()) == 40


def test_busy_time_is_the_time_with_work_in_flight() -> None:
    async def main() -> float:
        lane, _ = lane_on(ten_tokens)
        await asyncio.gather(lane.run(flight("a")), lane.run(flight("b")))
        await asyncio.sleep(100)
        await lane.run(flight("c"))
        return lane.stats()[0].busy_s

    assert run_virtual(main()) == 20.0


def test_the_reports_of_a_flight_add_up_to_its_cost() -> None:
    async def main() -> tuple[int, int, float]:
        lane, _ = lane_on(ten_tokens)
        one = flight("one")
        reports: list[Operation] = []
        async with lane.fly(one) as deltas:
            async for _ in deltas:
                reports.append(one.report(min(3, one.unreported_tokens)))
        reports.append(one.report())
        return (
            sum(report.prompt_tokens for report in reports),
            sum(report.output_tokens for report in reports),
            sum(report.engine_s for report in reports),
        )

    assert run_virtual(main()) == (1, 10, 10.0)


def test_scores_come_before_rewrites_before_drafts_and_older_samples_first() -> None:
    ranked = sorted(
        [("draft", 0), ("score", 9), ("rewrite", 3), ("score", 2), ("write", 0), ("draft", 1)],
        key=lambda item: priority(*item),  # type: ignore[arg-type]
    )
    assert [kind for kind, _ in ranked] == ["score", "score", "rewrite", "draft", "write", "draft"]
    assert ranked[0] == ("score", 2)
