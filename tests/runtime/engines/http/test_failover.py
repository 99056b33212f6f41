"""Runs on several servers of a role: one fails and comes back, and no track notices more than a pause."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from mock_server import MockServer, says
from support import Collector, ExactAnswers, make_strategy

from speclrm.runtime.engines.http.client import Client
from speclrm.runtime.engines.http.probing import Server, probe
from speclrm.runtime.engines.scripted import ByteTokenizer
from speclrm.runtime.errors import EngineDeadError
from speclrm.runtime.events import (
    EngineFailed,
    EngineRecovered,
    OperationDropped,
    RunFinished,
    StepDrafted,
    TrackFinished,
)
from speclrm.runtime.ledger import Ledger
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.check import Checker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

TOKENIZER = ByteTokenizer()
TEXT = "".join(f"We look at part {number} of it.\n\n" for number in range(12)) + "So it is \\boxed{4}."
PROBLEMS = [Problem(f"p{number}", "What is two and two?", "4") for number in range(6)]


def server(wait_s: float = 0.02) -> MockServer:
    return MockServer(TOKENIZER, write=says(TEXT), wait_s=wait_s, piece=8)


@asynccontextmanager
async def running(
    targets: list[MockServer], draft: MockServer, *, stall_limit_s: float = 30.0
) -> AsyncGenerator[tuple[Runtime, Collector, AsyncExitStack]]:
    """A runtime on these servers, which have been started on the stack in the order of the list."""
    async with AsyncExitStack() as stack:

        async def open_components(inner: AsyncExitStack) -> Components:
            engines: dict[Role, list[Any]] = {Role.TARGET: [], Role.DRAFT: []}
            for role, several in ((Role.TARGET, targets), (Role.DRAFT, [draft])):
                for one in several:
                    client = Client(one.url)
                    inner.push_async_callback(client.aclose)
                    engines[role].append(await probe(Server("http/m", role.value, TOKENIZER), client))
            return Components(engines, ExactAnswers(), stall_limit_s=stall_limit_s)

        yield await stack.enter_async_context(Runtime(open_components)), Collector(), stack


def checked(collector: Collector) -> None:
    checker = Checker()
    for line, event in enumerate(collector.events):
        checker.add("trace", line, event)
    assert checker.report().violations == ()


def strategy() -> Any:
    return make_strategy("speculative", tracks=3, token_budget=2000, max_step_tokens=64)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_work_of_a_server_that_dies_goes_on_at_the_other_and_comes_back_to_it() -> None:
    one, other, draft = server(), server(), server()
    async with AsyncExitStack() as servers:
        await servers.enter_async_context(other.started())
        await servers.enter_async_context(draft.started())
        dies = await servers.enter_async_context(AsyncExitStack())
        await dies.enter_async_context(one.started())
        async with running([one, other], draft) as (runtime, collector, _):
            call = asyncio.create_task(runtime.run(PROBLEMS, strategy(), sinks=[collector]))
            await until(lambda: one.running and other.running)
            await dies.aclose()
            await until(lambda: collector.of(EngineFailed))
            asked = len(one.bodies)
            await until(lambda: len(other.bodies) > 40)
            await servers.enter_async_context(one.started(one.port))
            await until(lambda: collector.of(EngineRecovered))
            await until(lambda: len(one.bodies) > asked)
            await call
    reasons = {event.reason for event in collector.of(TrackFinished)}
    assert reasons == {"answer"}
    assert not [event for event in collector.of(OperationDropped) if event.reason == "error"]
    (failure,), (back,) = collector.of(EngineFailed), collector.of(EngineRecovered)
    assert (failure.engine, failure.role, failure.reason) == (back.engine, "target", "died")
    assert failure.requests >= 1
    assert 0 < back.down_s < 20
    checked(collector)
    ledger = Ledger()
    for event in collector.events:
        ledger.add(event)
    use = ledger.engines()["target"]
    assert (use.failures, use.down_s) == (1, pytest.approx(back.down_s, abs=0.05))


async def test_a_lost_request_is_sent_again_with_its_id_its_seed_and_what_had_come() -> None:
    target, one = server(), server(wait_s=0.1)
    async with AsyncExitStack() as servers:
        await servers.enter_async_context(target.started())
        dies = await servers.enter_async_context(AsyncExitStack())
        await dies.enter_async_context(one.started())
        async with running([target], one) as (runtime, collector, _):
            call = asyncio.create_task(runtime.run(PROBLEMS[:1], strategy(), sinks=[collector]))
            await until(lambda: one.running == 3 and len(one.bodies) > 12)
            before = [body for body in one.bodies if "probe" not in body["request_id"]]
            await asyncio.sleep(0.15)
            await dies.aclose()
            await asyncio.sleep(0.1)
            await servers.enter_async_context(one.started(one.port))
            await call
    seeds = {body["request_id"].partition("#")[0]: body["seed"] for body in before}
    first = {body["request_id"].partition("#")[0]: len(body["prompt"]) for body in before}
    after = [body for body in one.bodies if "probe" not in body["request_id"]][len(before) :]
    again = [body for body in after if body["request_id"].partition("#")[0] in seeds]
    assert again
    for body in again:
        name = body["request_id"].partition("#")[0]
        assert body["seed"] == seeds[name]
        assert len(body["prompt"]) >= first[name]
    drafts = [event.text for event in collector.of(StepDrafted) if event.step == 2]
    assert set(drafts) == {"We look at part 2 of it.\n\n"}
    checked(collector)


async def test_a_run_whose_last_server_does_not_come_back_ends_and_says_so() -> None:
    target, draft = server(), server()
    async with AsyncExitStack() as servers:
        await servers.enter_async_context(draft.started())
        dies = await servers.enter_async_context(AsyncExitStack())
        await dies.enter_async_context(target.started())
        async with running([target], draft, stall_limit_s=1.0) as (runtime, collector, _):
            call = asyncio.create_task(runtime.run(PROBLEMS, strategy(), sinks=[collector]))
            await until(lambda: target.running)
            await dies.aclose()
            with pytest.raises(EngineDeadError, match="--target-url"):
                await call
    assert collector.of(RunFinished)[-1].status == "failed"
    checked(collector)


async def test_a_server_that_hangs_is_told_from_one_that_died() -> None:
    one, other, draft = server(), server(), server()
    async with AsyncExitStack() as servers:
        for each in (one, other, draft):
            await servers.enter_async_context(each.started())
        async with running([one, other], draft, stall_limit_s=1.0) as (runtime, collector, _):
            call = asyncio.create_task(runtime.run(PROBLEMS, strategy(), sinks=[collector]))
            await until(lambda: one.running)
            one.wait_s = 1000.0
            one.healthy = False
            await until(lambda: collector.of(EngineFailed))
            await call
    assert {event.reason for event in collector.of(EngineFailed)} == {"hung"}
    assert {event.reason for event in collector.of(TrackFinished)} == {"answer"}
    checked(collector)


async def test_a_track_stays_with_its_server_and_new_ones_go_where_there_is_room() -> None:
    one, other, draft = server(), server(), server()
    async with AsyncExitStack() as servers:
        for each in (one, other, draft):
            await servers.enter_async_context(each.started())
        async with running([one, other], draft) as (runtime, collector, _):
            await runtime.run(PROBLEMS, strategy(), sinks=[collector])
    tracks = [
        {body["request_id"].rsplit("/", 2)[0] for body in each.bodies if "probe" not in body["request_id"]}
        for each in (one, other)
    ]
    assert tracks[0].isdisjoint(tracks[1])
    assert sorted(map(len, tracks)) == [9, 9]
