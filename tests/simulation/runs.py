"""One attempt of a run while things go wrong, and all that must hold of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, aclosing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from again import Fold
from attack.attempts import Fault, arm, config_of, later, published, unhandled, unsynced
from attack.disks import failing
from simulation.books import Booked, BookedRestartable, BookedReturning, Books, disagreements
from simulation.engines import FaultyEngine, Outages, Storming, Weather
from simulation.server import Server
from simulation.watch import Circle, Watch, WatchedLoop, held, logged, on_watch
from support import ExactAnswers
from workloads import BUDGET_TOKENS, PROMPT_TOKENS, STEP_TOKENS, TalkingOn

from speclrm.runtime import run_sinks
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import (
    EngineDeadError,
    ResumeError,
    RunDirectoryError,
    RuntimeClosedError,
    TooManyErrors,
    TraceError,
)
from speclrm.runtime.events import EngineFailed, SampleFinished, TrackFinished
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.replay.recorded_run import read_past
from speclrm.runtime.run_parts import Components, Resumption
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace import journal
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from simulation.drawn import Caller, Case, Plan

    from speclrm.runtime.events import Event
    from speclrm.runtime.trace.bus import EventBus

LIMIT_S = 2 * 3600.0
"""Of virtual time: far behind every limit of the runtime. What waits longer waits for ever."""
SETTLE_S = 5.0
KNOWN_ENDS = (
    "EngineError",
    "RequestError",
    "EngineDeadError",
    "EngineStalledError",
    "TraceError",
    "TooManyErrors",
    "CapacityError",
)
"""Errors that a track may end with: each says what is wrong with an engine or a disk."""


@dataclass
class Left:
    """What an attempt left. ``events``: of the run itself; ``all_events``: of its callers, too."""

    faults: list[Fault] = field(default_factory=list[Fault])
    events: list[Event] = field(default_factory=list["Event"])
    all_events: list[Event] = field(default_factory=list["Event"])
    fold: Fold = field(default_factory=Fold)
    error: BaseException | None = None
    seconds: float = 0.0
    injected: Counter[str] = field(default_factory=Counter[str])

    @property
    def completed(self) -> bool:
        return self.error is None


def world_of(case: Case) -> SimulatedWorld:
    work = case.work
    settings = WorldSettings((work.acceptance,), draft_step=12, target_step=14, steps=work.steps)
    return (TalkingOn if work.talks_on else SimulatedWorld)(settings, work.seed)


class Attempt:
    """Starts a run, or goes on with it."""

    def __init__(self, case: Case, plan: Plan, number: int, folder: Path, *, resume: bool) -> None:
        self.case, self.plan, self.folder, self.resume = case, plan, folder, resume
        self.left = Left()
        self.weather = Weather(f"{case.seed}/{number}", plan, case.stall_s, self.left.injected)
        self.books = Books()
        self.world = world_of(case)
        self.servers: list[Server] = []
        self.engines = self._engines()
        self.watch = Watch(self.books, case.tight)
        # A run that goes on waits for its trace, and aborts that take long keep their tracks.
        self.watch.idle_allowed = resume or bool(plan.abort_s)
        self._main: EventBus | None = None
        self._told: Callable[[int], object] = lambda _: None
        self._ended = False
        self._fired_s = float("inf")
        self.call: asyncio.Task[Any] | None = None

    def run(self) -> Left:
        disk = failing(self.plan.disk) if self.plan.disk else unsynced()
        tight = self.case.tight
        with (
            on_watch(self.watch),
            published(self._see),
            logged(self.left.faults),
            disk,
            patch.object(journal, "BUFFER_EVENTS_MAX", tight),
            patch.object(run_sinks, "STREAM_EVENTS_MAX", tight) if tight < 1000 else nullcontext(),
        ):
            try:
                self._in_loop()
            except Circle:
                self.left.faults.append(Fault("circle", "the loop turns without an end"))
                self.left.error = self.left.error or RuntimeError("circle")
            except Exception as error:  # noqa: BLE001  # a virtual loop tells a deadlock by an error
                self.left.faults.append(Fault("crash", repr(error)))
                self.left.error = self.left.error or error
        self.left.faults += self.watch.faults
        return self.left

    # -------------------------------------------------------------------------------------------------------- the inside

    def _engines(self) -> dict[Role, list[Booked]]:
        work = self.case.work
        longest = PROMPT_TOKENS + BUDGET_TOKENS + 2 * STEP_TOKENS
        kv_tokens = 1_000_000 if work.room is None else int(longest * work.room)
        seconds = {Role.TARGET: (0.016, 1e-4, 1e-7), Role.DRAFT: (0.004, 1e-5, 1e-8)}
        roles = {Role.TARGET: work.targets} | ({Role.DRAFT: work.drafts} if work.name.startswith("spec") else {})
        made: dict[Role, list[Booked]] = {}
        number = 0
        for role, count in roles.items():
            for place in range(count):
                cost = EngineCost(*seconds[role], kv_tokens, max_num_seqs=work.max_num_seqs)
                outages = [one for at, one in self.plan.outages if at == number]
                made.setdefault(role, []).append(self._engine(f"{role}-{place}", cost, outages))
                number += 1
        return made

    def _engine(self, name: str, cost: EngineCost, due: list[Any]) -> Booked:
        def make() -> Storming:
            return Storming(name, cost, self.world, self.world.tokenizer)

        outages = Outages(make, due, self.weather)
        if self.case.http:
            server = Server(name, outages, self.weather)
            self.servers.append(server)
            return BookedReturning(server.engine(), self.books)
        faulty = FaultyEngine(name, outages, self.weather, self.books)
        kinds = {"never": Booked, "asked": BookedReturning, "restarted": BookedRestartable}
        return kinds[self.case.returns](faulty, self.books)

    def _see(self, bus: EventBus, event: Event) -> None:
        self._main = self._main or bus
        self.left.all_events.append(event)
        if bus is self._main:
            self.left.events.append(event)
            self._told(len(self.left.events))

    def _in_loop(self) -> None:
        loop = WatchedLoop()
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._work(loop))

    async def _open(self, _: AsyncExitStack) -> Components:
        return Components(dict(self.engines), ExactAnswers(), stall_limit_s=self.case.stall_s)

    async def _work(self, loop: WatchedLoop) -> None:
        left, case = self.left, self.case
        loop.set_exception_handler(lambda _, context: left.faults.append(unhandled(context)))
        async with Runtime(self._open, in_flight_max=case.work.in_flight_max) as runtime:
            before = asyncio.all_tasks()
            began_s = loop.time()
            loop.watch, self.watch.scheduler = self.watch, runtime.scheduler
            self.call = asyncio.create_task(self._call(runtime), name="the run")
            if self.plan.end is not None:
                self._told = arm(loop, self.plan.end, self._fire)
            callers = [asyncio.create_task(self._caller(runtime, one), name="caller") for one in self.plan.callers]
            _done, late = await asyncio.wait([self.call, *callers], timeout=LIMIT_S)
            loop.watch = None
            left.seconds = loop.time() - began_s
            if late:
                left.faults.append(
                    Fault("hang", f"{', '.join(task.get_name() for task in late)}: no end after {LIMIT_S:.0f} s")
                )
                left.error = RuntimeError("hang")
                return
            left.error = asyncio.CancelledError() if self.call.cancelled() else self.call.exception()
            left.faults += [
                Fault("caller", repr(error)) for task in callers if not task.cancelled() and (error := task.exception())
            ]
            await asyncio.sleep(0)
            left.faults += [Fault("open", f"{name} is still in its engine") for name in self.books.open]
            tasks = asyncio.all_tasks() - before - {self.call, *callers}
            tasks = {task for task in tasks if "aclose" not in repr(task.get_coro())}
            left.faults += [Fault("task", f"{task.get_name()} goes on: {task.get_coro()}") for task in tasks]
            left.faults += loop.forgotten()
            await asyncio.sleep(SETTLE_S)
            left.faults += held(runtime.scheduler, runtime.scheduler.admission)
            left.faults += [
                Fault("left", f"{one.open} answers under way at {one.name}") for one in self.servers if one.open
            ]
        for engines in self.engines.values():
            for engine in engines:
                await engine.aclose()
        self._judge()

    async def _call(self, runtime: Runtime) -> object:
        case = self.case
        work, strategy = case.work, case.work.strategy
        resumption = None
        if self.resume:
            past = read_past(self.folder)
            resumption = Resumption(past, lambda _: (strategy, work.seed), lambda: read_trace(self.folder / TRACE_FILE))
        return await runtime.run(
            self.world.problems(work.problems),
            strategy,
            repeats=work.repeats,
            seed=work.seed,
            concurrency=work.concurrency,
            directory=self.folder,
            config=config_of(work),
            sinks=[self.left.fold],
            resumption=resumption,
        )

    def _fire(self) -> None:
        end, call = self.plan.end, self.call
        if end is None or call is None or call.done():
            return
        self._ended = True
        self._fired_s = asyncio.get_running_loop().time()
        self.left.injected["interrupt"] += 1
        call.cancel()
        turns = 0
        for more in end.again:
            turns += more
            later(asyncio.get_running_loop(), turns, call.cancel)

    async def _caller(self, runtime: Runtime, one: Caller) -> None:
        await asyncio.sleep(one.starts_s)
        self.left.injected["callers"] += 1
        problem = Problem(f"caller-{one.number}", "Simulated problem of a caller.", "1")
        task = asyncio.create_task(self._ask(runtime, problem, one), name="caller's call")
        await asyncio.wait([task], timeout=one.gives_up_s)
        if not task.done():
            task.cancel()
            if one.twice:
                await asyncio.sleep(0)
                task.cancel()
        with suppress(asyncio.CancelledError, EngineDeadError, TooManyErrors, RuntimeClosedError):
            await task

    async def _ask(self, runtime: Runtime, problem: Problem, one: Caller) -> None:
        seed, strategy = self.case.work.seed, self.case.work.strategy
        if one.way == "solve":
            await runtime.solve(problem, strategy, seed=seed)
            return
        async with aclosing(runtime.stream(problem, strategy, seed=seed)) as events:
            number = 0
            async for _ in events:
                number += 1
                if number == one.leaves:
                    break
                if number % 7 == 0:
                    await asyncio.sleep(0.05)  # it reads slowly

    # ------------------------------------------------------------------------------------------------------- what must hold

    def _judge(self) -> None:
        left, case = self.left, self.case
        if isinstance(left.error, ResumeError):
            left.faults.append(Fault("refused", f"{left.error}"))
            return
        left.faults += self._wrong_end()
        after = self.books.after(self._fired_s)
        left.faults += [Fault("goes on", f"{name} was asked for after the run was given up") for name in after[:2]]
        for event in left.events:
            if isinstance(event, TrackFinished) and event.error and event.error.partition(":")[0] not in KNOWN_ENDS:
                left.faults.append(Fault("track", f"{event.track}: {event.error}"))
        original = case.work.options.get("fidelity") == "original"
        left.faults += disagreements(
            self.books, left.all_events, case.work.seed, resumed=self.resume, original=original
        )
        if left.error is None and not self.resume:
            ended = sum(isinstance(event, SampleFinished) for event in left.events)
            if ended != case.work.problems * case.work.repeats:
                left.faults.append(Fault("lost", f"{ended} samples ended of {case.work.problems * case.work.repeats}"))

    def _wrong_end(self) -> list[Fault]:
        """What the caller got where it should have got something else."""
        error, plan = self.left.error, self.plan
        if error is None or (self._ended and isinstance(error, asyncio.CancelledError)):
            return []
        if isinstance(error, EngineDeadError) and any(isinstance(one, EngineFailed) for one in self.left.events):
            return []
        if isinstance(error, TraceError | RunDirectoryError) and plan.disk is not None:
            return []
        if isinstance(error, TooManyErrors) and (plan.kinds or plan.outages):
            return []
        return [Fault("error", f"the caller got {type(error).__name__}: {error}")]
