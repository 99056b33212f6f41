"""Runs samples on shared engines, for any number of callers on one event loop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from speclrm.runtime.cleanup import to_its_end
from speclrm.runtime.errors import RuntimeClosedError, SettingsError
from speclrm.runtime.events import Event, RunResumed, RunStarted, TrackResumed
from speclrm.runtime.replay.playback import Playback
from speclrm.runtime.replay.playback_bus import PlaybackBus
from speclrm.runtime.replay.recorded_run import lasting
from speclrm.runtime.run_parts import Began, Components, Job, Resumption, RunResult
from speclrm.runtime.run_sinks import ErrorGuard, Tap
from speclrm.runtime.samples import Samples
from speclrm.runtime.scheduling.engine_counters import Meter
from speclrm.runtime.scheduling.scheduler import Scheduler
from speclrm.runtime.settings import CONCURRENCY
from speclrm.runtime.trace.bus import EventBus
from speclrm.runtime.trace.journal import TRACE_FILE, Journal, TraceOptions
from speclrm.runtime.trace.run_directory import RunRecord, add_attempt, create, new_record
from speclrm.runtime.trace.sinks import Subscriber

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pydantic import JsonValue

    from speclrm.runtime.protocols import Problem, Sink, Strategy
    from speclrm.runtime.replay.recorded_run import Past
    from speclrm.runtime.state import SampleState

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Runtime:
    """Use as ``async with Runtime(open_components) as runtime``; everything opened is closed at the end of the block.

    ``open_components`` starts the engines and the judge of answers, and puts their closing on the stack that it is given.
    Cancelling a call aborts its requests in the engines; other calls continue. A call returns once everything that it
    began has ended, however often it is cancelled. Leaving the block ends the calls that are still under way with
    RuntimeClosedError.
    """

    def __init__(
        self, open_components: Callable[[AsyncExitStack], Awaitable[Components]], *, in_flight_max: int | None = None
    ) -> None:
        self._open_components = open_components
        self._in_flight_max = in_flight_max
        self._stack = AsyncExitStack()
        self._components: Components | None = None
        self._scheduler: Scheduler | None = None
        self._orders = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.facts: Callable[[int | None], Mapping[str, JsonValue]] = lambda seed: {}
        """What the record of a run with that seed says of the engines, beside its own configuration."""

    async def __aenter__(self) -> Runtime:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self._components = await self._open_components(stack)
            parts = self._components
            scheduler = Scheduler(
                parts.engines,
                in_flight_max=self._in_flight_max,
                slices=parts.slices,
                stall_limit_s=parts.stall_limit_s,
            )
            self._scheduler = await stack.enter_async_context(scheduler.running())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_its_end(self._close())

    async def _close(self) -> None:
        self._closing = True  # no call begins from here on
        try:
            for call in self._calls:
                call.cancel()
            if self._calls:
                await asyncio.wait(self._calls)
        finally:
            await self._stack.aclose()
            self._components = self._scheduler = None
            self._closing = False

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a call in a task of its own, which is cancelled once, whatever happens to the caller."""
        task = self._begin_call(work)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await to_its_end(asyncio.wait({task}))  # the caller gets its cancellation
            raise
        return self._result(task)

    def _begin_call(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        if self._closing:
            work.close()
            raise RuntimeClosedError("The runtime was closed. Call it inside the block that opens it.")
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: a caller who was cancelled, and again during its wait, asks for no error

    def _result(self, task: asyncio.Task[T]) -> T:
        if task.cancelled():
            raise RuntimeClosedError(
                "The runtime was closed while this call was under way. Keep the block open until it ends."
            )
        return task.result()

    @property
    def slices(self) -> bool:
        """Whether its engines share a device by time slices."""
        return self._components is not None and self._components.slices

    @property
    def scheduler(self) -> Scheduler:
        if self._scheduler is None:
            raise SettingsError("The runtime is not open. Use it inside `async with Runtime(...) as runtime:`.")
        return self._scheduler

    async def solve(
        self,
        problem: Problem,
        strategy: Strategy,
        *,
        seed: int | None = 0,
        sinks: Sequence[Sink] = (),
        required: Sequence[Sink] = (),
    ) -> SampleState:
        """Makes one attempt at one problem, kept in memory. ``sinks``, ``required``: as of ``run``."""
        result = await self.run([problem], strategy, seed=seed, sinks=sinks, required=required)
        return result.samples[0]

    async def stream(
        self, problem: Problem, strategy: Strategy, *, seed: int | None = 0
    ) -> AsyncGenerator[Event, None]:
        """Yields the events of one attempt as they happen. Closing the generator ends the attempt.

        A caller that does not read delays nobody else: its tracks release the engines until it reads again.
        """
        tap = Tap()
        # Not a TaskGroup: it groups its errors, and leaving a generator inside one raises another.
        task = self._begin_call(self._run([problem], strategy, seed=seed, required=[tap]))
        task.add_done_callback(lambda _: tap.end())
        try:
            async for event in tap.events():
                yield event
            await asyncio.wait({task})
            self._result(task)
        finally:
            task.cancel()
            await to_its_end(asyncio.wait({task}))

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
        required: Sequence[Sink] = (),
        resumption: Resumption | None = None,
        trace: TraceOptions | None = None,
        max_errors: int | None = None,
    ) -> RunResult:
        """Runs all problems times repeats, written to ``directory`` if there is one.

        ``concurrency``: samples in progress, counted by their tracks: the next one starts when as many tracks have ended as it
        has. ``config`` is recorded with the run as it is. ``sinks`` get the events at their own pace, and are closed at the
        end; what they do does not affect the run (``sinks.Subscriber``), and one that falls behind loses events.
        ``required`` sinks lose none: they get each event at once, the run waits for their ``room``, ends with their errors,
        and does not close them. ``trace``: segments of its file and their compression. ``max_errors``: samples that may end
        in an error, from now on; one more ends the run with TooManyErrors. With a ``resumption`` the run
        continues where its trace ends, and ``sinks`` see the events of the trace first.

        Raises:
            RunDirectoryError: the directory cannot be used.
            ResumeError: the trace does not fit what happens when its loops are driven again.
            EngineDeadError, TraceError, TooManyErrors: the run was stopped; what was committed is in the trace.
        """
        run = self._run(
            problems,
            strategy,
            repeats=repeats,
            seed=seed,
            concurrency=concurrency,
            directory=directory,
            config=config,
            sinks=sinks,
            required=required,
            resumption=resumption,
            trace=trace,
            max_errors=max_errors,
        )
        return await self._call(run)

    async def replay(
        self, past: Past, problems: Sequence[Problem], began: Began, sinks: Sequence[Sink] = ()
    ) -> Playback:
        """Drives the loops of a trace again, without an engine, under virtual time. ``past`` must be whole.

        ``problems``: those of the trace. ``sinks`` see the events as they come this time.
        """
        playback = Playback(past, "replay")
        bus = PlaybackBus(playback, (), sinks, anew=True)
        first = past.attempts[0]
        assert isinstance(first, RunStarted)
        bus.publish(first)
        named = {problem.id: problem for problem in problems}
        jobs = [
            Job(named[sample.problem], sample.repeat, *began(sample.attempt), playback)
            for sample in past.samples.values()
            if sample.problem in named
        ]
        task = asyncio.create_task(self._samples().run(jobs, None, bus), name="replay")
        try:
            await playback.play()
        finally:
            playback.over = True
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
        for sink in sinks:
            await sink.aclose()
        return playback

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
        resumption: Resumption | None = None,
        trace: TraceOptions | None = None,
        max_errors: int | None = None,
    ) -> RunResult:
        self.check_loop()
        self._check_roles(strategy)
        record = new_record(
            {**self.facts(seed), **(config or {}), "strategy": strategy.name, "seed": seed, "repeats": repeats}
        )
        go_on = resumption is not None and not resumption.anew
        if self.scheduler.controller is not None:
            self.scheduler.controller.budget = strategy.limits.token_budget
        async with AsyncExitStack() as stack:
            must: list[Sink] = [ErrorGuard(max_errors), *required]

            async def open_directory(folder: Path) -> Journal:
                if not go_on:
                    stack.enter_context(create(folder, record))
                journal = Journal(folder / TRACE_FILE, resume=go_on, options=trace)
                await stack.enter_async_context(journal)
                if go_on:  # once the trace is open: an attempt that cannot begin does not count
                    add_attempt(folder, record)
                return journal

            if directory is not None and not go_on:
                must.append(await open_directory(directory))
            if resumption is not None and go_on:
                await _show(resumption.events(), sinks)
                if self.scheduler.controller is not None:
                    self.scheduler.controller.recall(lasting(resumption.events()))
            listeners = [await stack.enter_async_context(Subscriber(sink)) for sink in sinks]
            playback = None if resumption is None else Playback(resumption.past, "resume", anew=resumption.anew)
            bus = EventBus(must, listeners)
            begin: Callable[[], Awaitable[None]] | None = None
            if resumption is not None and playback is not None:
                bus = playing = PlaybackBus(playback, must, listeners, anew=resumption.anew)
                first = tuple(self._resumed(resumption, record))

                async def go_on_now() -> None:
                    journal = [] if directory is None else [await open_directory(directory)]
                    playing.go_on(journal, first)

                begin = go_on_now if go_on else None
            if begin is None:
                bus.publish(self._started(record))
            jobs = [
                self._job(problem, repeat, strategy, seed, resumption, playback)
                for problem in problems
                for repeat in range(repeats)
            ]
            try:
                samples = await self._samples().run(jobs, concurrency, bus, playback, begin)
            finally:
                if playback is not None and self.scheduler.controller is not None:
                    for problem, repeat in playback.samples:
                        self.scheduler.controller.forget(problem, repeat)
        run = resumption.past.run if resumption is not None and go_on else record.run
        return RunResult(run, samples, directory)

    def _started(self, record: RunRecord) -> RunStarted:
        return RunStarted(
            run=record.run,
            started=record.started,
            config=record.config,
            versions=record.versions,
            machine=record.machine,
            context_max={role.value: lane.engine.max_model_len for role, lane in self.scheduler.lanes.items()},
            engines=Meter(self.scheduler).facts(),
        )

    def _resumed(self, resumption: Resumption, record: RunRecord) -> Iterator[Event]:
        """Returns the event that says that the run continues."""
        past = resumption.past
        yield RunResumed(
            started=record.started,
            config=record.config,
            versions=record.versions,
            machine=record.machine,
            overrides=dict(resumption.overrides),
        )
        for sample in past.unfinished():
            for track in sample.closed:
                yield TrackResumed(problem=sample.problem, repeat=sample.repeat, track=track)

    def _job(
        self,
        problem: Problem,
        repeat: int,
        strategy: Strategy,
        seed: int | None,
        resumption: Resumption | None,
        playback: Playback | None,
    ) -> Job | SampleState:
        """Returns what there is to do for a sample, or its state if it is done."""
        past = None if resumption is None else resumption.past.samples.get((problem.id, repeat))
        if resumption is None or past is None:
            return Job(problem, repeat, strategy, seed, playback)
        if past.state is not None and not resumption.anew:
            return past.state
        return Job(problem, repeat, *resumption.began(past.attempt), playback)

    def check_loop(self) -> None:
        """Raises SettingsError if the runtime was opened on another event loop: its engines belong to that one."""
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

    def _samples(self) -> Samples:
        assert self._components is not None
        return Samples(self.scheduler, self._components.equivalence, self._orders)


async def _show(events: Iterable[Event], sinks: Sequence[Sink]) -> None:
    """Shows the sinks a whole trace before the run continues. One that fails sees no more of it."""
    left = list(sinks)
    for event in events:
        for sink in tuple(left):
            try:
                sink.emit(event)
                await sink.room()
            except Exception as error:  # noqa: BLE001  # whatever a listener does, the run goes on
                left.remove(sink)
                log.error("sink_failed", sink=type(sink).__name__, error=repr(error))
