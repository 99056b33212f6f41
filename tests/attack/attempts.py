"""One start of a run under attack: how it is broken off, and what must hold of what it left."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from unittest.mock import patch

from again import Fold
from attack.engines import sluggish
from support import ExactAnswers, parts
from watched import CountingLoop, Record, WatchedSimulated, watched
from workloads import STEP_TOKENS, Workload, operations

from speclrm.runtime.errors import EngineDeadError, ResumeError
from speclrm.runtime.events import Event, OperationDropped, TrackFinished, VoteUpdated
from speclrm.runtime.replay.recorded_run import read_past
from speclrm.runtime.run_parts import Resumption
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.bus import EventBus
from speclrm.runtime.trace.check import Checker
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.runtime.scheduling.scheduler import Scheduler
    from speclrm.runtime.trace.journal import TraceOptions

HANG_S = 4 * 3600.0
"""Far behind every limit that the runtime has: what waits longer waits for ever."""
SETTLE_S = 3.0
"""What an engine at work still holds is given back at the end of its iteration."""


class Fault(NamedTuple):
    """``kind``: one word for tables."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.text}"


@dataclass(frozen=True)
class End:
    """How an attempt is broken off: cancelled, as Ctrl-C and SIGTERM do it, or by the death of an engine.

    ``at``: so many seconds, or turns of the loop, behind the start, or behind the publication of the event of that number;
    ``turns``: so many turns later. ``again``: further cancellations, each so many turns behind the one before.
    """

    how: Literal["cancelled", "dead"]
    at: Literal["time", "event", "turn"]
    number: float
    turns: int = 0
    again: tuple[int, ...] = ()

    def __str__(self) -> str:
        behind = f" and {self.turns} turns" if self.turns else ""
        more = f", again {' and '.join(map(str, self.again))} turns later" if self.again else ""
        return f"{self.how} at {self.at} {self.number:g}{behind}{more}"


@dataclass
class Attempt:
    """What an attempt left. ``events``: what it published. ``turns``, ``seconds``: how long it took."""

    faults: list[Fault] = field(default_factory=list[Fault])
    events: list[Event] = field(default_factory=list[Event])
    fold: Fold = field(default_factory=Fold)
    error: BaseException | None = None
    turns: int = 0
    seconds: float = 0.0
    ended: End | None = None
    """As it was broken off, if it was, in time."""

    @property
    def completed(self) -> bool:
        return self.error is None


@contextmanager
def unsynced() -> Generator[None]:
    """Files are not brought to the disk itself: no power fails here."""

    def nothing(_: int) -> None:
        pass

    with patch.object(os, "fsync", nothing):
        yield


class AttackLoop(CountingLoop):
    """Calls that go to other threads are made at once and answered a turn later: a seed brings about the same again.

    Keeps all tasks, to tell of errors that nobody asked for without waiting until a collector finds them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._at: dict[int, list[Callable[[], object]]] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._task)

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        self.tasks.append(task)
        return task

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for call in self._at.pop(self.turns, ()):
            call()

    def call_at_turn(self, turn: int, call: Callable[[], object]) -> None:
        self._at.setdefault(turn, []).append(call)

    def forgotten(self) -> list[Fault]:
        """Tasks that failed, and nobody knows."""
        failed = [task for task in self.tasks if task.done() and getattr(task, "_log_traceback", False)]
        return [Fault("forgotten", f"{task.get_name()}: {task.exception()!r}") for task in failed]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001  # it goes to whoever called
            self.call_soon(_answer, answer, answer.set_exception, error)
        else:
            self.call_soon(_answer, answer, answer.set_result, result)
        return answer


def _answer(future: asyncio.Future[Any], give: Callable[[Any], None], what: object) -> None:
    if not future.done():
        give(what)


def run_attacked(main: Callable[[AttackLoop], Coroutine[Any, Any, None]]) -> None:
    loop = AttackLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop))


@contextmanager
def published(see: Callable[[EventBus, Event], None]) -> Generator[None]:
    """``see`` gets every event that any run publishes, in the moment of its publication."""
    publish = EventBus.publish

    def seen(self: EventBus, event: Event, at_s: float | None = None) -> Event:
        event = publish(self, event, at_s)
        see(self, event)
        return event

    with patch.object(EventBus, "publish", seen):
        yield


def later(loop: asyncio.AbstractEventLoop, turns: int, call: Callable[[], object]) -> None:
    """Calls after so many turns of the loop."""
    if turns <= 0:
        call()
    else:
        loop.call_soon(later, loop, turns - 1, call)


def arm(loop: AttackLoop, end: End, fire: Callable[[], object]) -> Callable[[int], None]:
    """Sets the trap; returns what is to be told the number of each event."""
    fired = False

    def once() -> None:
        nonlocal fired
        if not fired:
            fired = True
            later(loop, end.turns, fire)

    match end.at:
        case "time":
            loop.call_later(end.number, once)
        case "turn":
            loop.call_at_turn(loop.turns + max(1, int(end.number)), once)
        case "event":
            return lambda number: loop.call_soon(once) and None if number >= end.number else None
    return lambda _: None


def draw_clean_up(draw: random.Random, events: Sequence[Event]) -> int | None:
    """The number of an event after which something was given up or stopped, as often as not by an answer: a clean-up is
    under way there.
    """
    ended = [
        isinstance(e, OperationDropped) or (isinstance(e, TrackFinished) and e.reason == "stopped") for e in events
    ]
    moments = [number for number in range(1, len(events)) if ended[number] and not ended[number - 1]]
    stops = [number for number in moments if isinstance(events[number - 1], VoteUpdated)]
    return draw.choice(draw.choice([moments, stops or moments])) if moments else None


def left_over(engines: Iterable[WatchedSimulated], scheduler: Scheduler, record: Record) -> list[Fault]:
    """Seats, places, requests and problems that somebody holds though nobody is there."""
    found: list[str] = []
    alive = [engine for engine in engines if engine.stats().alive]
    for several in scheduler.stats().values():
        for lane in several:
            if lane.in_flight or lane.waiting:
                found.append(f"{lane.in_flight} in flight and {lane.waiting} waiting before {lane.engine.name}")
    for lane in scheduler.lanes.values():
        found += [f"a stay before {queue.engine.name}" for queue in lane.queues if queue.slots]
    for engine in alive:
        stats = engine.stats()
        if stats.running or stats.waiting or engine.kv_tokens_used:
            found.append(f"{stats.running} running, {stats.waiting} waiting, {engine.kv_tokens_used} in {engine.name}")
    if (
        scheduler.admission.admitted
        or scheduler.admission.waiting
        or any(reservation.admitted for reservation in record.reservations)
    ):
        found.append(f"{scheduler.admission.admitted} reservations, {scheduler.admission.waiting} waiting for one")
    if scheduler.controller is not None and scheduler.controller.problems:
        found.append(f"{scheduler.controller.problems} problems in the controller's mind")
    return [Fault("left", one) for one in found]


def not_told(engines: Iterable[WatchedSimulated], events: Sequence[Event]) -> list[Fault]:
    """Requests that reached an engine and stand in no event."""
    reported = {operation.id for _, operation in operations(events)}
    asked = {name for engine in engines for name in engine.opened.asked}
    return [Fault("ledger", f"{name} is in no event") for name in sorted(asked - reported)]


def violations(events: Iterable[Event]) -> list[Fault]:
    checker = Checker()
    for number, event in enumerate(events, start=1):
        checker.add(TRACE_FILE, number, event)
    report = checker.report()
    return [Fault("check", f"line {one.line}: {one.rule}: {one.text}") for one in report.violations[:3]]


def unhandled(context: Mapping[str, Any]) -> Fault:
    error = context.get("exception")
    return Fault("unhandled", f"{context.get('message')}: {error!r}")


def config_of(work: Workload) -> dict[str, JsonValue]:
    recipe: Any = work.strategy
    return {"recipe": recipe.recipe.model_dump(mode="json")}


def attempt(
    work: Workload,
    folder: Path | None = None,
    *,
    resume: bool = False,
    end: End | None = None,
    concurrency: int | None = None,
    trace: TraceOptions | None = None,
    errors: tuple[type[Exception], ...] = (),
    disk: AbstractContextManager[object] | None = None,
    abort_s: Sequence[float] = (),
) -> Attempt:
    """Starts, or goes on with, a run. ``errors``: that it may end with, beside those that ``end`` brings about.
    ``disk``: what its files are on. ``abort_s``: how long aborts take.
    """
    left = Attempt()
    world, several, engines = sluggish(work, abort_s)

    async def main(loop: AttackLoop) -> None:
        loop.set_exception_handler(lambda _, context: left.faults.append(unhandled(context)))
        resumption = _resumption(work, folder) if resume and folder is not None else None
        async with Runtime(parts(several, ExactAnswers()), in_flight_max=work.in_flight_max) as runtime:
            before = asyncio.all_tasks()
            begun, begun_s = loop.turns, loop.time()
            call = asyncio.create_task(
                runtime.run(
                    world.problems(work.problems),
                    work.strategy,
                    repeats=work.repeats,
                    seed=work.seed,
                    concurrency=concurrency or work.concurrency,
                    directory=folder,
                    config=config_of(work),
                    sinks=[left.fold],
                    resumption=resumption,
                    trace=trace,
                )
            )

            def fire() -> None:
                if end is None or call.done():
                    return
                left.ended = end
                if end.how == "dead":
                    dying = engines[int(end.number * 1000) % len(engines)]
                    closing.append(asyncio.ensure_future(dying.aclose()))
                    return
                call.cancel()
                turns = 0
                for more in end.again:
                    turns += more
                    later(loop, turns, call.cancel)

            closing: list[asyncio.Future[None]] = []
            if end is not None:
                told.append(arm(loop, end, fire))
            await asyncio.wait([call], timeout=HANG_S)
            left.turns, left.seconds = loop.turns - begun, loop.time() - begun_s
            if not call.done():
                left.faults.append(Fault("hang", f"still at work after {HANG_S:.0f} s"))
                call.cancel()
                return
            left.error = asyncio.CancelledError() if call.cancelled() else call.exception()
            left.faults += _wrong_error(left, errors)
            await asyncio.sleep(0)
            open_now = [name for engine in engines for name in engine.opened.open]
            left.faults += [Fault("open", f"{name} is still in its engine") for name in open_now]
            tasks = asyncio.all_tasks() - before - {call, *closing}
            left.faults += [Fault("task", f"{task.get_name()} goes on") for task in tasks]
            left.faults += loop.forgotten()
            await asyncio.sleep(SETTLE_S)
            left.faults += left_over(engines, runtime.scheduler, record)
            if not isinstance(left.error, ResumeError):  # a trace that does not fit is left as it is
                left.faults += not_told(engines, left.events)
        for engine in engines:
            await engine.aclose()

    told: list[Callable[[int], None]] = []

    def see(_: EventBus, event: Event) -> None:
        left.events.append(event)
        for tell in told:
            tell(len(left.events))

    with watched() as record, published(see), disk or unsynced():
        record.step_tokens = STEP_TOKENS
        try:
            run_attacked(main)
        except Exception as error:  # noqa: BLE001  # a virtual loop tells a deadlock by an error
            left.faults.append(Fault("crash", repr(error)))
            left.error = left.error or error
    return left


def _resumption(work: Workload, folder: Path) -> Resumption:
    strategy = work.strategy
    return Resumption(read_past(folder), lambda _: (strategy, work.seed), lambda: read_trace(folder / TRACE_FILE))


def _wrong_error(left: Attempt, errors: tuple[type[Exception], ...]) -> list[Fault]:
    """What the caller got where it should have got something else."""
    error, ended = left.error, left.ended
    if error is None or isinstance(error, errors):
        return []
    if ended is not None and isinstance(error, asyncio.CancelledError if ended.how == "cancelled" else EngineDeadError):
        return []
    how = f"{ended}, the caller got" if ended else "the caller got"
    kind = "refused" if isinstance(error, ResumeError) and ended is None else "error"
    return [Fault(kind, f"{how} {type(error).__name__}: {error}")]
