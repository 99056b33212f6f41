from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engine import LOGPROB_MIN, Delta, EngineStats, Request
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.errors import EngineError, EngineStalledError, RequestError
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.engine_queue import RESERVE_S
from speclrm.runtime.scheduling.lanes import Lane
from speclrm.runtime.scheduling.requests import RequestState
from speclrm.runtime.scheduling.scheduler import priority
from speclrm.runtime.scheduling.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from speclrm.runtime.events import Operation


def request_state(name: str, *, urgency: int = 0) -> RequestState:
    return RequestState(Request(id=name, prompt_ids=[65], max_tokens=50, priority=urgency), "scripted")


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
        one = request_state("one")
        await lane.run(one)
        return one.queue_s, one.engine_s

    assert run_virtual(main()) == (0.0, 10.0)


@pytest.mark.parametrize("asked", [{"sampled_logprobs": True}, {"likelihood_from": 0}, {"logprob_ids": (1, 2)}])
def test_an_engine_that_leaves_out_what_was_asked_for_is_an_error_and_no_guess(asked: dict[str, Any]) -> None:
    silent = RequestState(Request(id="one", prompt_ids=[65], max_tokens=50, **asked), "silent")
    with pytest.raises(EngineError, match="Engine silent") as caught:
        silent.take(Delta((1, 2)))
    assert not isinstance(caught.value, RequestError)  # no other request to that engine would do better


def test_an_engine_that_writes_more_than_it_was_asked_for_is_not_believed() -> None:
    long = RequestState(Request(id="one", prompt_ids=[65], max_tokens=2), "long")
    long.take(Delta((1, 2)))
    with pytest.raises(EngineError, match="wrote more than the 2 tokens"):
        long.take(Delta((3,)))
    assert long.ids == [1, 2]


def test_an_engine_that_ends_for_an_unknown_reason_is_not_believed() -> None:
    odd = RequestState(Request(id="one", prompt_ids=[65], max_tokens=2), "odd")
    with pytest.raises(EngineError, match="Engine odd ended request one"):
        odd.take(Delta((1,), "eos"))  # type: ignore[arg-type]
    assert not odd.ids


@pytest.mark.parametrize(("said", "counted"), [(-5, 0), (0, 0), (1, 1), (1 << 40, 1)])
def test_no_engine_finds_more_of_a_prompt_than_there_is(said: int, counted: int) -> None:
    one = request_state("one")
    one.take(Delta((1,), cached_tokens=said))
    assert one.report().cached_tokens == counted


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_becomes_the_lowest_log_probability(value: float) -> None:
    one = RequestState(Request("one", [65], 5, sampled_logprobs=True, first_entropy=True, logprob_ids=(1,)), "odd")
    one.take(Delta((1,), logprobs={1: value}, sampled_logprobs=(value,), first_entropy=value))
    assert (one.logprobs, one.sampled_logprobs, one.first_entropy) == ({1: LOGPROB_MIN}, [LOGPROB_MIN], None)


def test_a_part_of_an_answer_is_not_taken_for_the_whole() -> None:
    class Quitting(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
            yield Delta((1,))

    async def main() -> None:
        lane = Lane(Role.TARGET, Quitting(ten_tokens, name="quitting"))
        one = request_state("one")
        with pytest.raises(RequestError, match="quitting ended request one without a reason"):
            await lane.run(one)
        assert (one.ids, one.finish, lane.queues[0].in_flight) == ([1], None, 0)

    run_virtual(main())


def test_no_more_than_the_bound_are_in_the_engine_and_the_most_urgent_goes_next() -> None:
    async def main() -> tuple[list[str], int]:
        lane, engine = lane_on(ten_tokens, in_flight_max=2)
        most = 0
        async with asyncio.TaskGroup() as group:
            for name, urgency in (("a", 5), ("b", 5), ("later", 9), ("urgent", 1), ("middle", 5)):
                group.create_task(lane.run(request_state(name, urgency=urgency)))
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
        first = asyncio.create_task(lane.run(request_state("first")))
        await asyncio.sleep(0)
        second = asyncio.create_task(lane.run(request_state("second")))
        third = asyncio.create_task(lane.run(request_state("third")))
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
        tasks = [asyncio.create_task(lane.run(request_state(name))) for name in ("first", "second", "third")]
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
        one = request_state("one")
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
                await lane.run(request_state(name))
        return lane.stats()[0].in_flight

    assert run_virtual(main()) == 0


def test_an_engine_without_any_progress_ends_its_operations() -> None:
    async def main() -> float:
        lane, _ = lane_on(lambda request, prompt: Reply("x", wait_s=1e9), stall_limit_s=100)
        watch = asyncio.create_task(lane.queues[0].watchdog.watch())
        with pytest.raises(EngineStalledError, match="no progress for 100 s"):
            await lane.run(request_state("one"))
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        assert lane.stats()[0].in_flight == 0
        return now_s()

    assert 100 <= run_virtual(main()) <= 130


def test_a_slow_engine_that_goes_on_is_left_alone() -> None:
    async def main() -> int:
        lane, _ = lane_on(lambda request, prompt: Reply("x" * 40, token_s=5.0), stall_limit_s=100)
        watch = asyncio.create_task(lane.queues[0].watchdog.watch())
        one = request_state("one")
        await lane.run(one)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        return len(one.ids)

    assert run_virtual(main()) == 40


def test_an_operation_that_never_reached_the_engine_cost_no_tokens() -> None:
    async def main() -> list[tuple[int, int, float]]:
        lane, _ = lane_on(ten_tokens, in_flight_max=1)
        request_states = [request_state("first"), request_state("second")]
        tasks = [asyncio.create_task(lane.run(one)) for one in request_states]
        await asyncio.sleep(5)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reports = [one.report() for one in request_states]
        return [(report.prompt_tokens, report.output_tokens, report.queue_s) for report in reports]

    assert run_virtual(main()) == [(1, 10, 0.0), (0, 0, 5.0)]


def test_the_number_of_those_who_wait_is_right_whoever_goes_away() -> None:
    async def main() -> list[int]:
        lane, _ = lane_on(ten_tokens, in_flight_max=1)
        tasks = [asyncio.create_task(lane.run(request_state(str(number), urgency=number % 3))) for number in range(20)]
        await asyncio.sleep(0)
        seen = [lane.stats()[0].waiting]
        for task in (*tasks[5:15], tasks[1]):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            seen.append(lane.stats()[0].waiting)
        await asyncio.gather(*tasks, return_exceptions=True)
        return [*seen, lane.stats()[0].waiting]

    assert run_virtual(main()) == [*range(19, 7, -1), 0]


def write(name: str, tokens: int = 50) -> RequestState:
    """One that brings step after step."""
    return RequestState(Request(id=name, prompt_ids=[65], max_tokens=tokens, priority=priority("write", 0)), "scripted")


def score(name: str) -> RequestState:
    return RequestState(Request(id=name, prompt_ids=[65], max_tokens=1, priority=priority("score", 9)), "scripted")


def paced(request: Request, prompt: str) -> Reply:
    """A token a second, as many as are asked for."""
    return Reply("x" * request.max_tokens, token_s=1.0)


class Places(ScriptedEngine):
    """Works on as many requests as it says, the others wait in it; of these the most urgent is next."""

    def __init__(self, places: int) -> None:
        super().__init__(paced, max_num_seqs=places, chunk_tokens=1)
        self._free = places
        self._queue: Waiting[asyncio.Future[None]] = Waiting()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.push(request.priority, turn)
        self._next()
        await turn
        try:
            async for delta in super().stream(request):
                yield delta
        finally:
            self._free += 1
            self._next()

    def _next(self) -> None:
        while self._free and self._queue:
            self._free -= 1
            self._queue.pop().set_result(None)


STEP_TOKENS = 10


async def writes(lane: Lane, name: str, tokens: int = 2_000) -> int:
    """Writes steps for as long as it has tokens to say. At each step's end it gives its place up where that is wanted, and
    asks for another. How often it did.
    """
    ended = 0
    while tokens > 0:
        one = write(name, tokens)
        async with lane.fly(one) as deltas:
            async for _ in deltas:
                if len(one.ids) % STEP_TOKENS == 0 and lane.wants_place(one):
                    ended += 1
                    break
        tokens -= len(one.ids)
    return ended


async def scores(lane: Lane, names: Sequence[str], every_s: float = 0.0) -> list[float]:
    """Asks for one after the other; how long each took."""
    took: list[float] = []
    for name in names:
        await asyncio.sleep(every_s)
        begun = now_s()
        await lane.run(score(name))
        took.append(now_s() - begun)
    return took


@pytest.mark.parametrize(("places", "writers"), [(1, 1), (1, 3), (4, 8), (4, 4), (16, 40)])
def test_a_score_waits_for_one_step_of_writers_that_give_their_places_up_and_those_after_it_not_at_all(
    places: int, writers: int
) -> None:
    async def main() -> list[float]:
        lane = Lane(Role.TARGET, Places(places))
        async with asyncio.TaskGroup() as group:
            for number in range(writers):
                group.create_task(writes(lane, f"w{number}"))
            await asyncio.sleep(25)
            return await scores(lane, "abcdef")

    first, *later = run_virtual(main())
    assert first <= STEP_TOKENS + 1
    # With one place there is none to keep free: each score waits for a step.
    assert max(later) <= (1 if places > 1 else STEP_TOKENS + 1)


def test_writes_leave_few_places_and_have_them_all_again_when_no_score_came_for_a_while() -> None:
    async def main() -> tuple[list[int], list[int]]:
        lane = Lane(Role.TARGET, Places(16), in_flight_max=16)
        queue = lane.queues[0]
        during: list[int] = []
        after: list[int] = []
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(writes(lane, f"w{number}", 200))
            await asyncio.sleep(25)
            for _ in range(40):
                await scores(lane, ["a"], every_s=1)
                during.append(queue.in_flight)
            for _ in range(60):
                await asyncio.sleep(1)
                after.append(queue.in_flight)
        return during[STEP_TOKENS:], after

    during, after = run_virtual(main())
    assert set(during) == {15}  # one in eight at most, and no more than there were scores at once
    assert after[int(2 * RESERVE_S) + 10] == 16


@pytest.mark.parametrize(("writers", "waits"), [(16, False), (17, True)])
def test_no_place_is_kept_free_in_an_engine_that_can_run_all_that_come(writers: int, waits: bool) -> None:
    """Short requests came, as at the end of another run, but those were of the same few tracks."""

    async def main() -> list[float]:
        lane = Lane(Role.TARGET, Places(16))
        await asyncio.gather(*(scores(lane, [f"s{number}"]) for number in range(writers)))
        all_writes = [write(f"w{number}", 20) for number in range(writers)]
        await asyncio.gather(*map(lane.run, all_writes))
        return [one.queue_s for one in all_writes]

    assert (max(run_virtual(main())) > 0) == waits


def test_many_scores_at_once_keep_an_eighth_of_the_places_and_one_score_keeps_one() -> None:
    async def main(at_once: int) -> int:
        lane = Lane(Role.TARGET, Places(32), in_flight_max=32)
        await asyncio.gather(*(lane.run(write(f"x{number}", 2)) for number in range(64)))  # more than it can run
        async with asyncio.TaskGroup() as group:
            for number in range(at_once):
                group.create_task(lane.run(score(f"s{number}")))
            await asyncio.sleep(2)
            tasks = [group.create_task(writes(lane, f"w{number}", 100)) for number in range(64)]
            await asyncio.sleep(1)
            held = lane.queues[0].in_flight
            for task in tasks:
                task.cancel()
        return held

    assert [run_virtual(main(at_once)) for at_once in (0, 1, 3, 20)] == [32, 31, 29, 28]


def test_a_place_is_wanted_only_by_what_is_more_urgent_and_only_from_what_lasts() -> None:
    async def main() -> dict[str, bool]:
        lane = Lane(Role.TARGET, Places(2), in_flight_max=2)
        wanted: dict[str, bool] = {}
        first, second = write("w1"), write("w2")
        async with lane.fly(first), asyncio.TaskGroup() as group:
            wanted["alone"] = lane.wants_place(first)
            async with lane.fly(second):
                another = group.create_task(lane.run(write("w3")))
                await asyncio.sleep(1)
                wanted["another write waits"] = lane.wants_place(first)
                ahead = group.create_task(lane.run(step("rewrite-ahead", ahead=True)))
                await asyncio.sleep(1)
                wanted["what is made ahead waits"] = lane.wants_place(first)
                rewrite = group.create_task(lane.run(step("rewrite")))
                await asyncio.sleep(1)
                wanted["a rewrite waits"] = lane.wants_place(first)
                wanted["from a score"] = lane.wants_place(score("s"))
            await asyncio.sleep(1)
            wanted["it has a place"] = lane.wants_place(first)
            for task in (another, ahead, rewrite):
                task.cancel()
        return wanted

    def step(name: str, *, ahead: bool = False) -> RequestState:
        urgency = priority("rewrite", 0, ahead=ahead)
        return RequestState(Request(name, [65], 50, stop_ids=(10,), priority=urgency), "scripted")

    assert run_virtual(main()) == {
        "alone": False,
        "another write waits": False,
        "what is made ahead waits": False,
        "a rewrite waits": True,
        "from a score": False,
        "it has a place": False,
    }


class Crowded(ScriptedEngine):
    """Runs two requests and lets all others wait inside, until told that it has room for all."""

    roomy = False

    def stats(self) -> EngineStats:
        stats = super().stats()
        running = stats.running if self.roomy else min(2, stats.running)
        return replace(stats, running=running, waiting=stats.running - running)


def test_the_bound_falls_where_the_engine_only_queues_and_grows_where_it_does_not() -> None:
    """And when it grows nobody goes on waiting for a place that is there."""

    async def main() -> list[tuple[int, int]]:
        engine = Crowded(ten_tokens, max_num_seqs=8)
        lane = Lane(Role.TARGET, engine)
        seen: list[tuple[int, int]] = []

        async def ask(names: str) -> None:
            for name in names:
                group.create_task(lane.run(request_state(name)))
            await asyncio.sleep(1)
            stats = lane.stats()[0]
            assert not stats.waiting or stats.in_flight >= stats.in_flight_max
            seen.append((stats.in_flight, stats.waiting))

        async with asyncio.TaskGroup() as group:
            await ask("abcdef")
            await ask("g")
            await ask("hi")
            engine.roomy = True
            for name in "jklm":
                await ask(name)
        return seen

    before, narrow, full, *wide = run_virtual(main())
    assert (before, narrow, full) == ((6, 0), (6, 1), (6, 3))
    assert [in_flight for in_flight, _ in wide] == [9, 10, 10, 10]


def test_busy_time_is_the_time_with_work_in_flight() -> None:
    async def main() -> float:
        lane, _ = lane_on(ten_tokens)
        await asyncio.gather(lane.run(request_state("a")), lane.run(request_state("b")))
        await asyncio.sleep(100)
        await lane.run(request_state("c"))
        return lane.stats()[0].busy_s

    assert run_virtual(main()) == 20.0


def test_the_reports_of_a_flight_add_up_to_its_cost() -> None:
    async def main() -> tuple[int, int, float]:
        lane, _ = lane_on(ten_tokens)
        one = request_state("one")
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


def test_those_that_an_engine_leaves_hanging_are_told_in_the_order_in_which_they_began() -> None:
    class Hanging(ScriptedEngine):
        async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
            await asyncio.get_running_loop().create_future()
            yield Delta((1,))

    ended: list[str] = []

    async def one(lane: Lane, name: str) -> None:
        with pytest.raises(EngineStalledError):
            await lane.run(request_state(name))
        ended.append(name)

    async def main() -> None:
        lane = Lane(Role.TARGET, Hanging(ten_tokens), in_flight_max=300, stall_limit_s=5)
        watches = [asyncio.create_task(watch) for watch in lane.watches()]
        await asyncio.gather(*(one(lane, f"{number:03}") for number in range(300)))
        for watch in watches:
            watch.cancel()

    run_virtual(main())
    assert ended == [f"{number:03}" for number in range(300)]
