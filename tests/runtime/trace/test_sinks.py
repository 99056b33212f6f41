from __future__ import annotations

import asyncio
import threading
import time
from itertools import count, pairwise
from typing import TYPE_CHECKING

import pytest
from support import PROBLEM, Collector, make_strategy, parts

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.events import EngineFailed, RunFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace import sinks
from speclrm.runtime.trace.sinks import Subscriber

if TYPE_CHECKING:
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink

STEPS = ["First we add.\n\n", "Then we look.\n\n", "So it is \\boxed{4}."]


def event(number: int) -> EngineFailed:
    return EngineFailed(seq=number, engine="e", error="x")


def run(*listeners: Sink) -> tuple[float, Collector]:
    """A run with the listeners and one that keeps all events; how long it took in its own time."""
    collector = Collector()

    async def main() -> float:
        engines = {Role.TARGET: ScriptedEngine(by_step(STEPS))}
        async with Runtime(parts(engines)) as runtime:
            begun = now_s()
            await runtime.run([PROBLEM], make_strategy("parallel", tracks=3), sinks=[*listeners, collector])
            return now_s() - begun

    return run_virtual(main()), collector


class Slow(Collector):
    """Takes a second of the run's time for each event."""

    async def room(self) -> None:
        await asyncio.sleep(1)


class Stuck(Collector):
    async def room(self) -> None:
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        await asyncio.Event().wait()


class Failing(Collector):
    def emit(self, event: Event) -> None:
        super().emit(event)
        if len(self.events) == 3:
            raise ValueError("no more")


class Blocking(Collector):
    """Blocks the thread that calls it, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def emit(self, event: Event) -> None:
        super().emit(event)
        self.threads.add(threading.get_ident())
        if len(self.events) <= 2:
            time.sleep(sinks.BLOCKING_S * 1.2)


def test_a_sink_gets_every_event_in_order_and_is_closed() -> None:
    _, collector = run()
    assert [one.seq for one in collector.events] == list(range(len(collector.events)))
    assert isinstance(collector.events[-1], RunFinished)
    assert collector.closed


def test_a_slow_sink_does_not_slow_the_run_and_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    quick, _ = run()
    slow = Slow()
    took, collector = run(slow)
    ends = [one.t for one in collector.of(RunFinished)]
    assert ends == [one.t for one in run()[1].of(RunFinished)]
    assert took - quick <= 2 * sinks.SINK_CLOSE_S
    assert 0 < len(slow.events) < len(collector.events)
    assert "sink_missed_events" in capsys.readouterr().out


def test_a_stuck_sink_holds_up_neither_the_run_nor_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    stuck = Stuck()
    took, collector = run(stuck)
    assert took < 3 * sinks.SINK_CLOSE_S
    assert len(stuck.events) == 1
    assert collector.of(RunFinished)
    assert "sink_not_closed" in capsys.readouterr().out


def test_a_failing_sink_is_told_of_once_and_gets_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    failing = Failing()
    _, collector = run(failing)
    assert len(failing.events) == 3
    assert failing.closed
    told = capsys.readouterr().out
    assert told.count("sink_failed") == 1
    assert f"missed={len(collector.events) - 2}" in told


def test_a_sink_that_blocks_is_moved_to_another_thread(capsys: pytest.CaptureFixture[str]) -> None:
    blocking = Blocking()
    _, collector = run(blocking)
    assert [one.seq for one in blocking.events] == [one.seq for one in collector.events]
    assert len(blocking.threads) > 1
    assert capsys.readouterr().out.count("sink_blocks") == 1


def test_a_full_queue_loses_its_oldest_events(capsys: pytest.CaptureFixture[str]) -> None:
    collector = Collector()

    async def main() -> int:
        async with Subscriber(collector, events_max=10) as subscriber:
            for number in range(100):
                subscriber.emit(event(number))
            return subscriber.missed

    assert run_virtual(main()) == 90
    assert [one.seq for one in collector.events] == list(range(90, 100))
    told = capsys.readouterr().out
    assert told.count("sink_behind") == told.count("sink_missed_events") == 1


def test_what_waits_for_a_sink_is_brought_in_turns_with_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    clock = count()
    monkeypatch.setattr(sinks.time, "perf_counter", lambda: next(clock) * sinks.TURN_S / 10)
    got: list[int] = []

    async def main() -> None:
        async with Subscriber(collector) as subscriber:
            for number in range(1_000):
                subscriber.emit(event(number))
            while len(collector.events) < 1_000:
                await asyncio.sleep(0)
                got.append(len(collector.events))

    run_virtual(main())
    assert [one.seq for one in collector.events] == list(range(1_000))
    assert max(after - before for before, after in pairwise(got)) <= 12


def test_a_sink_is_closed_where_the_run_is_cancelled() -> None:
    collector = Collector()

    async def work() -> None:
        engines = {Role.TARGET: ScriptedEngine(by_step(STEPS))}
        async with Runtime(parts(engines)) as runtime:
            await runtime.run([PROBLEM], make_strategy("parallel", tracks=3), sinks=[collector])

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await work()

    run_virtual(main())
    assert collector.closed
    assert collector.of(RunFinished)[0].status == "cancelled"
