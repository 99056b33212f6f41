"""The runtime: problems in, events and results out. Any number of callers share its engines on one loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import structlog

from speclrm.runtime.bus import EventBus
from speclrm.runtime.errors import SettingsError, SpecLRMError, TooManyErrors
from speclrm.runtime.events import Event, RunFinished, RunResumed, RunStarted, TrackFinished, TrackResumed
from speclrm.runtime.journal import TRACE_FILE, Journal, TraceOptions
from speclrm.runtime.meter import Meter
from speclrm.runtime.protocols import EquivalenceBySample
from speclrm.runtime.replay import Playback, PlaybackBus, RecordedLane, RecordedVerdicts
from speclrm.runtime.run_directory import RunRecord, add_attempt, create, new_record
from speclrm.runtime.sample import Sample
from speclrm.runtime.scheduler import Scheduler
from speclrm.runtime.sinks import Subscriber
from speclrm.runtime.state import SampleState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pydantic import JsonValue

    from speclrm.runtime.lanes import Flights
    from speclrm.runtime.past import Past
    from speclrm.runtime.protocols import Engine, Equivalence, Problem, Role, Sink, Strategy

log = structlog.get_logger(__name__)

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


Began = Callable[[int], "tuple[Strategy, int | None]"]
"""The strategy and the seed of samples that began in an attempt."""


@dataclass(frozen=True, slots=True)
class Job:
    """A sample to run. ``playback``: where its trace is."""

    problem: Problem
    repeat: int
    strategy: Strategy
    seed: int | None
    playback: Playback | None = None


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a run goes on. ``events``: the whole trace so far, from its beginning. ``overrides``: as in RunResumed.

    ``anew``: the run is a new one that begins with what the trace has.
    """

    past: Past
    began: Began
    events: Callable[[], Iterable[Event]] = tuple
    overrides: Mapping[str, tuple[JsonValue, JsonValue]] = field(
        default_factory=dict[str, "tuple[JsonValue, JsonValue]"]
    )
    anew: bool = False


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
        resumption: Resumption | None = None,
        trace: TraceOptions | None = None,
    ) -> RunResult:
        """All problems times repeats, ``concurrency`` samples at a time, written to ``directory`` if there is one.

        ``config`` is kept with the run as it is. ``sinks`` get the events at their own pace, and are closed at the end;
        what they do does not touch the run (``sinks.Subscriber``). ``trace``: segments of its file and their packing. With a
        ``resumption`` the run goes on where its trace ends, and ``sinks`` see the events of the trace first.

        Raises:
            RunDirectoryError: the directory cannot be used.
            ResumeError: the trace does not fit to what happens when its loops are driven again.
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
            resumption=resumption,
            trace=trace,
        )

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
        task = asyncio.create_task(self._samples(jobs, None, bus), name="replay")
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
    ) -> RunResult:
        self.check_loop()
        self._check_roles(strategy)
        record = new_record({**(config or {}), "strategy": strategy.name, "seed": seed, "repeats": repeats})
        playback = None if resumption is None else Playback(resumption.past, "resume")
        async with AsyncExitStack() as stack:
            must: list[Sink] = [_ErrorGuard(), *required]
            if directory is not None:
                if resumption is None or resumption.anew:
                    stack.enter_context(create(directory, record))
                else:
                    add_attempt(directory, record)
                go_on = resumption is not None and not resumption.anew
                must.append(
                    await stack.enter_async_context(Journal(directory / TRACE_FILE, resume=go_on, options=trace))
                )
            if resumption is not None and not resumption.anew:
                await _show(resumption.events(), sinks)
            listeners = [await stack.enter_async_context(Subscriber(sink)) for sink in sinks]
            if resumption is None or playback is None:
                bus = EventBus(must, listeners)
                bus.publish(self._started(record))
            else:
                bus = PlaybackBus(playback, must, listeners, anew=resumption.anew)
                record = self._begin_again(resumption, record, bus)
            jobs = [
                self._job(problem, repeat, strategy, seed, resumption, playback)
                for problem in problems
                for repeat in range(repeats)
            ]
            samples = await self._samples(jobs, concurrency, bus)
        return RunResult(record.run, samples, directory)

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

    def _begin_again(self, resumption: Resumption, record: RunRecord, bus: EventBus) -> RunRecord:
        """Publishes that the run goes on. Returns the record under the run's own id."""
        past = resumption.past
        if resumption.anew:
            bus.publish(self._started(record))
            return record
        bus.publish(
            RunResumed(
                started=record.started,
                config=record.config,
                versions=record.versions,
                machine=record.machine,
                overrides=dict(resumption.overrides),
            )
        )
        for sample in past.unfinished():
            for track in sample.closed:
                bus.publish(TrackResumed(problem=sample.problem, repeat=sample.repeat, track=track))
        return record.model_copy(update={"run": past.run})

    def _job(
        self,
        problem: Problem,
        repeat: int,
        strategy: Strategy,
        seed: int | None,
        resumption: Resumption | None,
        playback: Playback | None,
    ) -> Job | SampleState:
        """What there is to do for a sample, or its state where it is done."""
        past = None if resumption is None else resumption.past.samples.get((problem.id, repeat))
        if resumption is None or past is None:
            return Job(problem, repeat, strategy, seed, playback)
        if past.state is not None and not resumption.anew:
            return past.state
        return Job(problem, repeat, *resumption.began(past.attempt), playback)

    async def _samples(
        self, jobs: Sequence[Job | SampleState], concurrency: int | None, bus: EventBus
    ) -> tuple[SampleState, ...]:
        """Runs the samples, so many at a time (None: all), and publishes the run's end."""
        meter = Meter(self.scheduler)
        places = asyncio.Semaphore(concurrency or max(1, len(jobs)))

        async def attempt(job: Job | SampleState) -> SampleState:
            if isinstance(job, SampleState):
                return job
            async with places:
                problem, playback = job.problem, job.playback
                await bus.turn("problem_started", problem.id, job.repeat)
                lanes: Mapping[Role, Flights] = self.scheduler.lanes
                equivalence = self._equivalence()
                again = None
                if playback is not None:
                    again = playback.sample(problem.id, job.repeat)
                    lanes = {role: RecordedLane(lane, again) for role, lane in lanes.items()}
                    equivalence = RecordedVerdicts(again, equivalence)
                sample = Sample(
                    problem,
                    job.repeat,
                    order=next(self._orders),
                    seed=job.seed,
                    strategy=job.strategy,
                    scheduler=self.scheduler,
                    lanes=lanes,
                    record=again,
                    equivalence=equivalence,
                    bus=bus,
                )
                return await sample.run()

        def finish(status: Any, error: str | None = None) -> None:
            bus.publish(
                RunFinished(
                    status=status,
                    seconds=bus.elapsed_s,
                    error=error,
                    busy_s=meter.busy_s(),
                    engines=meter.reports(),
                    stood_up=meter.stood_up,
                )
            )

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(attempt(job), name=f"sample {number}") for number, job in enumerate(jobs)]
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

    def _equivalence(self) -> Equivalence:
        """The judge for a sample."""
        assert self._parts is not None
        judge = self._parts.equivalence
        return judge.of_sample() if isinstance(judge, EquivalenceBySample) else judge


async def _show(events: Iterable[Event], sinks: Sequence[Sink]) -> None:
    """Lets the sinks see a trace, whole, before the run goes on. One that fails sees no more of it."""
    left = list(sinks)
    for event in events:
        for sink in tuple(left):
            try:
                sink.emit(event)
                await sink.room()
            except Exception as error:  # noqa: BLE001  # whatever a listener does, the run goes on
                left.remove(sink)
                log.error("sink_failed", sink=type(sink).__name__, error=repr(error))


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
