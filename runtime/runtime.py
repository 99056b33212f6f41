"""The runtime: problems in, events and results out. Any number of callers share its engines on one loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from speclrm.runtime.bus import EventBus
from speclrm.runtime.errors import SettingsError, SpecLRMError, TooManyErrors
from speclrm.runtime.events import Event, RunFinished, RunStarted, TrackFinished
from speclrm.runtime.journal import TRACE_FILE, Journal, TraceOptions
from speclrm.runtime.meter import Meter
from speclrm.runtime.run_directory import RunRecord, create, new_record
from speclrm.runtime.sample import Sample
from speclrm.runtime.scheduler import Scheduler
from speclrm.runtime.sinks import Subscriber

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pydantic import JsonValue

    from speclrm.runtime.protocols import Engine, Equivalence, Problem, Role, Sink, Strategy
    from speclrm.runtime.state import SampleState

CONCURRENCY = 16
"""Samples at work at the same time, unless told otherwise."""

ERRORS_MIN = 8
ERROR_SHARE_MAX = 0.5
"""A run stops when at least this many tracks failed and they are more than this share of all that ended: something
is wrong with the whole, and going on would only burn time."""

STREAM_EVENTS_MAX = 1_000
"""Events that a caller of ``stream`` may be behind before its tracks wait for it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a runtime works with. ``engines``: one of each role, or several with the same model."""

    engines: Mapping[Role, Engine | Sequence[Engine]]
    equivalence: Equivalence


@dataclass(frozen=True, slots=True)
class RunResult:
    """``samples``: in the order of problems, then repeats. ``directory``: None for a run kept in memory."""

    run: str
    samples: tuple[SampleState, ...]
    directory: Path | None


class Runtime:
    """Use as ``async with Runtime(open_parts) as runtime``; everything opened is closed at the end of the block.

    ``open_parts`` starts the engines and the judge of answers, and puts their closing on the stack that it is given.
    Cancelling a call frees its requests in the engines; other calls go on.
    """

    def __init__(
        self, open_parts: Callable[[AsyncExitStack], Awaitable[Parts]], *, in_flight_max: int | None = None
    ) -> None:
        self._open_parts = open_parts
        self._in_flight_max = in_flight_max
        self._stack = AsyncExitStack()
        self._parts: Parts | None = None
        self._scheduler: Scheduler | None = None
        self._orders = count()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Runtime:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self._parts = await self._open_parts(stack)
            scheduler = Scheduler(self._parts.engines, in_flight_max=self._in_flight_max)
            self._scheduler = await stack.enter_async_context(scheduler.running())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        self._parts = self._scheduler = None

    @property
    def scheduler(self) -> Scheduler:
        if self._scheduler is None:
            raise SettingsError("The runtime is not open. Use it inside `async with Runtime(...) as runtime:`.")
        return self._scheduler

    async def solve(
        self, problem: Problem, strategy: Strategy, *, seed: int | None = 0, sinks: Sequence[Sink] = ()
    ) -> SampleState:
        """One attempt at one problem, kept in memory."""
        result = await self.run([problem], strategy, seed=seed, sinks=sinks)
        return result.samples[0]

    async def stream(
        self, problem: Problem, strategy: Strategy, *, seed: int | None = 0
    ) -> AsyncGenerator[Event, None]:
        """The events of one attempt as they happen. Closing the generator ends the attempt."""
        tap = _Tap()
        # Not a TaskGroup: its errors come in groups, and leaving a generator inside one is an error of its own.
        task = asyncio.create_task(self._run([problem], strategy, seed=seed, required=[tap]))
        task.add_done_callback(lambda _: tap.end())
        try:
            async for event in tap.events():
                yield event
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run(
        self,
        problems: Sequence[Problem],
        strategy: Strategy,
        *,
        repeats: int = 1,
        seed: int | None = 0,
        concurrency: int = CONCURRENCY,
        directory: Path | None = None,
        config: Mapping[str, JsonValue] | None = None,
        sinks: Sequence[Sink] = (),
        trace: TraceOptions | None = None,
    ) -> RunResult:
        """All problems times repeats, ``concurrency`` samples at a time, written to ``directory`` if there is one.

        ``config`` is kept with the run as it is. ``sinks`` get the events at their own pace, and are closed at the end;
        what they do does not touch the run (``sinks.Subscriber``). ``trace``: segments of its file and their packing.

        Raises:
            RunDirectoryError: the directory cannot be used.
            EngineDeadError, TraceError, TooManyErrors: the run was stopped; what was committed is in the trace.
        """
        return await self._run(
            problems,
            strategy,
            repeats=repeats,
            seed=seed,
            concurrency=concurrency,
            directory=directory,
            config=config,
            sinks=sinks,
            trace=trace,
        )

    async def _run(
        self,
        problems: Sequence[Problem],
        strategy: Strategy,
        *,
        repeats: int = 1,
        seed: int | None = 0,
        concurrency: int = CONCURRENCY,
        directory: Path | None = None,
        config: Mapping[str, JsonValue] | None = None,
        sinks: Sequence[Sink] = (),
        required: Sequence[Sink] = (),
        trace: TraceOptions | None = None,
    ) -> RunResult:
        self.check_loop()
        self._check_roles(strategy)
        record = new_record({**(config or {}), "strategy": strategy.name, "seed": seed, "repeats": repeats})
        async with AsyncExitStack() as stack:
            must: list[Sink] = [_ErrorGuard(), *required]
            if directory is not None:
                create(directory, record)
                must.append(await stack.enter_async_context(Journal(directory / TRACE_FILE, options=trace)))
            listeners = [await stack.enter_async_context(Subscriber(sink)) for sink in sinks]
            bus = EventBus(must, listeners)
            samples = await self._samples(problems, strategy, repeats, seed, concurrency, bus, record)
        return RunResult(record.run, samples, directory)

    async def _samples(
        self,
        problems: Sequence[Problem],
        strategy: Strategy,
        repeats: int,
        seed: int | None,
        concurrency: int,
        bus: EventBus,
        record: RunRecord,
    ) -> tuple[SampleState, ...]:
        meter = Meter(self.scheduler)
        bus.publish(
            RunStarted(
                run=record.run,
                started=record.started,
                config=record.config,
                versions=record.versions,
                machine=record.machine,
                engines=meter.facts(),
            )
        )
        places = asyncio.Semaphore(concurrency)

        async def attempt(problem: Problem, repeat: int) -> SampleState:
            async with places:
                sample = Sample(
                    problem,
                    repeat,
                    order=next(self._orders),
                    seed=seed,
                    strategy=strategy,
                    scheduler=self.scheduler,
                    equivalence=self._equivalence,
                    bus=bus,
                )
                return await sample.run()

        def finish(status: Any, error: str | None = None) -> None:
            bus.publish(
                RunFinished(
                    status=status,
                    seconds=round(bus.elapsed_s, 6),
                    error=error,
                    busy_s=meter.busy_s(),
                    engines=meter.reports(),
                    stood_up=meter.stood_up,
                )
            )

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(attempt(problem, repeat), name=f"{problem.id}/{repeat}")
                    for problem in problems
                    for repeat in range(repeats)
                ]
        except asyncio.CancelledError:
            finish("cancelled")
            raise
        except BaseExceptionGroup as errors:
            first = _first(errors)
            finish("failed", f"{type(first).__name__}: {first}")
            raise first from None
        finish("finished")
        return tuple(task.result() for task in tasks)

    def check_loop(self) -> None:
        """Raises SettingsError where the runtime was opened on another event loop: its engines live on that one."""
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise SettingsError(
                "The runtime was opened on another event loop, where its engines live. Open and use it inside one "
                "asyncio.run(), or open it anew on this loop."
            )

    def _check_roles(self, strategy: Strategy) -> None:
        missing = sorted(role.value for role in strategy.roles if role not in self.scheduler.lanes)
        if missing:
            raise SettingsError(
                f"Strategy {strategy.name} needs a {' and a '.join(missing)} model. Give --{missing[0]} MODEL."
            )

    @property
    def _equivalence(self) -> Equivalence:
        assert self._parts is not None
        return self._parts.equivalence


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report: one of ours before anything else."""
    flat = list(_flatten(errors))
    return next((error for error in flat if isinstance(error, SpecLRMError)), flat[0])


def _flatten(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _flatten(part)
    else:
        yield error


class _ErrorGuard:
    """Counts the tracks that failed; ``room`` raises once they are too many."""

    def __init__(self) -> None:
        self._ended = 0
        self._failed = 0
        self._last = ""

    def emit(self, event: Event) -> None:
        if isinstance(event, TrackFinished):
            self._ended += 1
            if event.reason == "error":
                self._failed += 1
                self._last = event.error or ""

    async def room(self) -> None:
        if self._failed >= ERRORS_MIN and self._failed > ERROR_SHARE_MAX * self._ended:
            raise TooManyErrors(
                f"{self._failed} of {self._ended} tracks failed, so the run was stopped. The last error: {self._last}"
            )

    async def aclose(self) -> None:
        pass


class _Tap:
    """A sink that one reader follows."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False

    def emit(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    async def room(self) -> None:
        while len(self._events) >= STREAM_EVENTS_MAX:
            self._taken.clear()
            await self._taken.wait()

    async def aclose(self) -> None:
        self.end()

    def end(self) -> None:
        self._ended = True
        self._arrived.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        while self._events or not self._ended:
            if not self._events:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            yield self._events.popleft()
            self._taken.set()
