"""Callers on one runtime that are cancelled at any turn of the loop, run out of time, leave their stream, or read slowly."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

from attack.attempts import (
    HANG_S,
    SETTLE_S,
    AttackLoop,
    End,
    Fault,
    arm,
    draw_clean_up,
    later,
    left_over,
    not_told,
    published,
    run_attacked,
    unhandled,
    violations,
)
from attack.drawn import Aim, draw_work, equality, generator
from attack.engines import draw_aborts, sluggish
from attack.reports import Report
from attack.stories import differences, stories
from support import ExactAnswers, parts
from watched import watched
from workloads import STEP_TOKENS

from speclrm.runtime import run_sinks
from speclrm.runtime.events import Event, RunFinished, SampleFinished, TrackFinished, TrackStarted
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.lanes import STALL_LIMIT_S

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from workloads import Workload

    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.trace.bus import EventBus

ROUNDS = 5
"""Each drawn set of callers is attacked that many times, each time otherwise."""
LEAVE_S = 10.0
"""Within this a caller that is cancelled has its answer: an abort takes a second at most here, and a track has a few."""


@dataclass(frozen=True)
class Caller:
    """Somebody who asks for one problem. ``way``: what is called; ``starts_s``: when.

    How it gives up, if it does: ``end``: cancelled from outside; ``timeouts``: it has so many seconds, in so many nested
    stays; ``leaves``: it leaves its stream after so many events; ``closes``: and closes it, too.
    ``pauses``: what it does before it reads on: after so many events, for so many seconds.
    """

    number: int
    way: Literal["solve", "stream"]
    starts_s: float = 0.0
    end: End | None = None
    timeouts: tuple[float, ...] = ()
    leaves: int | None = None
    closes: bool = True
    pauses: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        parts = [f"caller {self.number} {self.way}s at {self.starts_s:g} s"]
        if self.end is not None:
            parts.append(str(self.end))
        if self.timeouts:
            parts.append("has " + " and ".join(f"{seconds:g}" for seconds in self.timeouts) + " s")
        if self.leaves is not None:
            parts.append(f"leaves after {self.leaves} events" + ("" if self.closes else " without closing"))
        parts += [f"pauses after {count} events for {seconds:g} s" for count, seconds in self.pauses]
        return ", ".join(parts)

    @property
    def gives_up(self) -> bool:
        return self.end is not None or bool(self.timeouts) or self.leaves is not None


@dataclass
class Called:
    """What became of a caller. ``events``: what was published for it; ``read``: what it read."""

    caller: Caller
    events: list[Event] = field(default_factory=list[Event])
    read: list[Event] = field(default_factory=list[Event])
    outcome: str = "waits"
    fired: bool = False
    expired: bool = False
    fired_s: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0
    turns: int = 0
    left_open: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


@dataclass
class Together:
    """What became of all callers of one runtime."""

    called: list[Called]
    faults: list[Fault] = field(default_factory=list[Fault])


def call_together(
    work: Workload,
    callers: Sequence[Caller],
    *,
    abort_s: Sequence[float] = (),
    stalls_at: int | None = None,
    stream_events: int | None = None,
) -> Together:
    """All callers on one runtime, each with a problem of its own. ``stream_events``: how far a stream may be behind."""
    world, several, engines = sluggish(work, abort_s)
    engines[0].stalls_at = stalls_at
    problems = world.problems(len(callers))
    together = Together([Called(caller) for caller in callers])
    faults = together.faults
    buses: dict[int, Called] = {}
    traps: dict[int, list[Any]] = {}

    def see(bus: EventBus, event: Event) -> None:
        called = buses.get(id(bus))
        if called is None:
            task = asyncio.current_task()
            named = getattr(event, "problem", None)
            called = next((one for one in together.called if problems[one.caller.number].id == named), None)
            if called is None:  # run_started: whose it is shows in the next event
                early.setdefault(id(bus), []).append(event)
                kept.append((bus, task))
                return
            buses[id(bus)] = called
            kept.append((bus, task))
            called.events += early.pop(id(bus), [])
        called.events.append(event)
        for tell in traps.get(called.caller.number, ()):
            tell(len(called.events))

    early: dict[int, list[Event]] = {}
    kept: list[object] = []  # or another bus might get the same id

    async def main(loop: AttackLoop) -> None:
        loop.set_exception_handler(lambda _, context: faults.append(unhandled(context)))
        async with Runtime(parts(several, ExactAnswers()), in_flight_max=work.in_flight_max) as runtime:
            before = asyncio.all_tasks()

            async def one(called: Called) -> None:
                caller = called.caller
                await asyncio.sleep(caller.starts_s)
                called.began_s, turns = loop.time(), loop.turns
                task = asyncio.create_task(
                    _call(runtime, work, problems[caller.number], called), name=f"{caller.number}"
                )

                def fire() -> None:
                    if task.done():
                        return
                    called.fired, called.fired_s = True, loop.time()
                    task.cancel()
                    behind = 0
                    assert caller.end is not None
                    for more in caller.end.again:
                        behind += more
                        later(loop, behind, task.cancel)

                if caller.end is not None:
                    traps.setdefault(caller.number, []).append(arm(loop, caller.end, fire))
                await asyncio.wait([task])
                called.ended_s, called.turns = loop.time(), loop.turns - turns
                called.outcome = (
                    "cancelled" if task.cancelled() else "ended" if (e := task.exception()) is None else repr(e)
                )
                open_ = [name for engine in engines for name in engine.opened.open]
                called.left_open = tuple(name for name in open_ if name.startswith(f"{problems[caller.number].id}/"))

            calls = [asyncio.create_task(one(called), name=f"watcher {n}") for n, called in enumerate(together.called)]
            _, waiting = await asyncio.wait(calls, timeout=HANG_S)
            if waiting:
                names = [str(called.caller) for called in together.called if called.outcome == "waits"]
                faults.extend(Fault("hang", name) for name in names)
                for task in waiting:
                    task.cancel()
                return
            careless = any(caller.leaves is not None and not caller.closes for caller in callers)
            await asyncio.sleep(SETTLE_S if careless else 0)
            tasks = asyncio.all_tasks() - before
            faults.extend(Fault("task", f"{task.get_name()} goes on") for task in tasks)
            open_ = [name for engine in engines for name in engine.opened.open]
            faults.extend(Fault("open", f"{name} is still in its engine") for name in open_)
            await asyncio.sleep(SETTLE_S)
            faults.extend(left_over(engines, runtime.scheduler, record))
            faults.extend(loop.forgotten())
            faults.extend(not_told(engines, [event for called in together.called for event in called.events]))
        for engine in engines:
            await engine.aclose()

    limit = stream_events or run_sinks.STREAM_EVENTS_MAX
    with watched() as record, published(see), patch.object(run_sinks, "STREAM_EVENTS_MAX", limit):
        record.step_tokens = STEP_TOKENS
        try:
            run_attacked(main)
        except Exception as error:  # noqa: BLE001  # a virtual loop tells a deadlock by an error
            faults.append(Fault("crash", repr(error)))
    for called in together.called:
        faults += [Fault(kind, f"{called.caller}: {text}") for kind, text in _faults_of(called)]
    return together


async def _call(runtime: Runtime, work: Workload, problem: Problem, called: Called) -> None:
    """What a caller does, with its own limits of time around it."""
    caller = called.caller

    async def within(limits: tuple[float, ...]) -> None:
        if not limits:
            await ask()
            return
        async with asyncio.timeout(limits[0]) as scope:
            try:
                await within(limits[1:])
            finally:
                called.expired |= scope.expired()

    async def ask() -> None:
        if caller.way == "solve":
            await runtime.solve(problem, work.strategy, seed=work.seed)
            return
        stream = runtime.stream(problem, work.strategy, seed=work.seed)
        if caller.leaves is not None and not caller.closes:
            async for event in stream:
                called.read.append(event)
                if len(called.read) >= caller.leaves:
                    break
            return
        async with aclosing(stream):
            pauses = dict(caller.pauses)
            async for event in stream:
                called.read.append(event)
                if len(called.read) == caller.leaves:
                    break
                if (seconds := pauses.get(len(called.read))) is not None:
                    await asyncio.sleep(seconds)

    await within(caller.timeouts)


def _faults_of(called: Called) -> list[Fault]:
    caller, faults = called.caller, list[Fault]()
    expected = "cancelled" if called.fired else "TimeoutError()" if called.expired else "ended"
    if called.outcome not in (expected, "waits"):
        faults.append(Fault("outcome", f"{called.outcome} instead of {expected}"))
    if called.left_open and (caller.closes or caller.leaves is None):
        faults.append(Fault("open", f"{called.left_open[0]} was in its engine when the caller was gone"))
    if called.fired and called.ended_s - called.fired_s > LEAVE_S:
        faults.append(Fault("late", f"{called.ended_s - called.fired_s:.0f} s from its cancellation to its end"))
    faults += violations(called.events)
    started = [event.track for event in called.events if isinstance(event, TrackStarted)]
    closed = [event.track for event in called.events if isinstance(event, TrackFinished)]
    if sorted(started) != sorted(closed):
        faults.append(Fault("closed", f"tracks {sorted(started)} began and {sorted(closed)} ended"))
    if called.events and not isinstance(called.events[-1], RunFinished):
        faults.append(Fault("closed", f"the last event is {called.events[-1].kind}"))
    return faults


# ------------------------------------------------------------------------------------------------------------- cancelled


def draw_callers(draw: random.Random, count: int) -> list[Caller]:
    return [
        Caller(number, draw.choice(["solve", "solve", "stream"]), round(draw.choice([0, draw.uniform(0, 2)]), 3))
        for number in range(count)
    ]


def draw_leave(draw: random.Random, caller: Caller, called: Called) -> Caller:
    """How a caller gives up, somewhere in the course that it took undisturbed."""
    again = tuple(draw.choice([1, 1, 1, 2, 3]) for _ in range(draw.choice([0, 1, 1, 2])))
    events = len(called.events)
    moment = draw_clean_up(draw, called.events)
    match draw.choice(["turn", "event", "time", "timeout", "timeout", "leave", *["clean-up"] * 5]):
        case "turn":
            return replace(caller, end=End("cancelled", "turn", draw.randint(1, max(1, called.turns)), 0, again))
        case "event":
            return replace(caller, end=End("cancelled", "event", draw.randint(1, events), draw.randint(0, 5), again))
        case "clean-up" if moment is not None:
            return replace(caller, end=End("cancelled", "event", moment, draw.choice([0, 0, 1, 2, 3, 4]), again))
        case "timeout":
            limits = tuple(round(draw.uniform(0, called.seconds), 4) for _ in range(draw.choice([1, 1, 2])))
            return replace(caller, timeouts=limits)
        case "leave" if caller.way == "stream":
            return replace(caller, leaves=draw.randint(1, events), closes=draw.random() < 0.7)
        case _:
            at_s = round(draw.uniform(0, called.seconds), 4)
            return replace(caller, end=End("cancelled", "time", at_s, draw.choice([0, 1, 2]), again))


def cancels(seed: int, folder: Path) -> Report:
    """Callers that are cancelled, once and more often, run out of time, or leave their stream, while others go on."""
    draw = generator("cancels", seed)
    aims: list[Aim] = ["any", "ahead", "stops", "room", "hurry", "hurry", "hurry", "hurry"]
    work = draw_work(draw, draw.choice(aims))
    report = Report.of("cancels", seed, work)
    abort_s = draw_aborts(draw, 0.6)
    callers = draw_callers(draw, draw.choice([1, 1, 2, 3]))
    plain = call_together(work, callers, abort_s=abort_s)
    report.faults += [Fault(f"whole {kind}", text) for kind, text in plain.faults]
    if report.faults:
        return report
    for _ in range(ROUNDS):
        drawn = [
            draw_leave(draw, caller, called) if draw.random() < 0.75 or len(callers) == 1 else caller
            for caller, called in zip(callers, plain.called, strict=True)
        ]
        together = call_together(work, drawn, abort_s=abort_s)
        about = "; ".join(map(str, drawn)) + (f"; aborts take {abort_s}" if abort_s else "")
        report.faults += [Fault(kind, f"{text} ({about})") for kind, text in together.faults]
        for called, before in zip(together.called, plain.called, strict=True):
            caller = called.caller
            report.count(_way(caller))
            if called.outcome == "ended" and caller.leaves is None and not called.fired:
                report.count("went to the end")
                different = differences(stories(before.events), stories(called.events), equality(work))
                report.faults += [Fault(kind, f"{text} ({about})") for kind, text in different]
    return report


def _way(caller: Caller) -> str:
    if caller.end is not None:
        return ("cancelled", "cancelled twice", "cancelled three times")[len(caller.end.again)]
    if caller.timeouts:
        return "out of time" if len(caller.timeouts) == 1 else "out of time, nested"
    if caller.leaves is not None:
        return "left its stream" if caller.closes else "left its stream open"
    return "undisturbed"


# ---------------------------------------------------------------------------------------------------------------- slow


def readers(seed: int, folder: Path) -> Report:
    """Callers that read their stream slowly keep nobody waiting and lose nothing; an engine that stands still is told."""
    draw = generator("readers", seed)
    work = draw_work(draw, draw.choice(["any", "ahead"]))
    work = replace(work, room=None, in_flight_max=draw.choice([1, 2, 2, 3]))
    work.options.pop("fast", None)
    report = Report.of("readers", seed, work)
    behind = draw.choice([2, 5, 10, 30])
    slow = draw.choice([1, 1, 2])
    callers = [Caller(number, "stream") for number in range(slow)]
    callers += [
        Caller(slow + number, draw.choice(["solve", "stream"]), round(draw.uniform(0, 5), 3))
        for number in range(draw.choice([1, 1, 2]))
    ]
    plain = call_together(work, callers, stream_events=behind)
    report.faults += [Fault(f"whole {kind}", text) for kind, text in plain.faults]
    if report.faults:
        return report
    all_s = sum(called.seconds for called in plain.called)
    for _ in range(ROUNDS):
        drawn = [
            replace(caller, pauses=_draw_pauses(draw, called)) if caller.number < slow else caller
            for caller, called in zip(callers, plain.called, strict=True)
        ]
        stalls_at = draw.randint(0, 20) if draw.random() < 0.25 else None
        together = call_together(work, drawn, stalls_at=stalls_at, stream_events=behind)
        about = "; ".join(map(str, drawn)) + f"; {behind} events may wait"
        about += "" if stalls_at is None else f"; the first engine stands still at request {stalls_at}"
        faults = list(together.faults)
        for called, before in zip(together.called, plain.called, strict=True):
            report.count("slow" if called.caller.pauses else "beside a slow one")
            ends = [event for event in called.events if isinstance(event, TrackFinished)]
            faults += [Fault("lost", f"track {e.track} ends as cancelled") for e in ends if e.reason == "cancelled"]
            if called.caller.way == "stream" and called.read != called.events:
                faults.append(Fault("lost", f"{len(called.read)} events read of {len(called.events)}"))
            if not any(isinstance(event, SampleFinished) for event in called.events):
                faults.append(Fault("lost", f"{called.caller} has no result"))
            if stalls_at is not None:
                report.count("beside an engine that stands still")
                wrong = [e.error for e in ends if e.error and not e.error.startswith("EngineStalledError")]
                faults += [Fault("error", f"a track ends with {error}") for error in wrong]
                continue
            faults += [Fault("error", f"track {e.track}: {e.error}") for e in ends if e.error]
            faults += differences(stories(before.events), stories(called.events), equality(work))
            if not called.caller.pauses and called.seconds > 2 * all_s + 10:
                faults.append(
                    Fault("late", f"{called.caller}: {called.seconds:.0f} s; all callers together take {all_s:.0f} s")
                )
        report.faults += [Fault(kind, f"{text} ({about})") for kind, text in faults]
    return report


def _draw_pauses(draw: random.Random, called: Called) -> tuple[tuple[int, float], ...]:
    """Some pauses, the first of them early; any of them is longer than what an engine may stand still."""
    events = len(called.events)
    first = draw.randint(1, max(1, min(10, events - 1)))
    more = [draw.randint(first, max(first, events - 1)) for _ in range(draw.choice([0, 0, 1, 2]))]
    return tuple((count, draw.choice([1.5, 3]) * STALL_LIMIT_S) for count in sorted({first, *more}))
