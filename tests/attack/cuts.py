"""Runs that are broken off, by a cut through their trace or by their end, and gone on with, again and again."""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from again import Fold, Silent, generated
from attack.attempts import Attempt, End, Fault, attempt, draw_clean_up, violations
from attack.drawn import draw_trace, draw_work, equality, generator
from attack.engines import draw_aborts
from attack.reports import Report
from attack.stories import differences, stories
from support import ExactAnswers, parts
from workloads import simulated

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.errors import ResumeError
from speclrm.runtime.events import OperationDropped, TrackFinished, VoteUpdated
from speclrm.runtime.replay.recorded_run import past_of
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace
from speclrm.runtime.trace.run_directory import RUN_FILE
from speclrm.runtime.trace.segments import open_segment, segments

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from attack.drawn import Equality
    from attack.stories import Stories
    from workloads import Workload

    from speclrm.runtime.events import Event

CHAINS = 3
"""Each undisturbed run is broken off that many times, each time and again by itself."""


def replayed(work: Workload, events: Sequence[Event]) -> list[Fault]:
    """Whether a trace is played again to the byte."""
    world, several = simulated(work)
    silent = {role: [Silent(engine) for engine in engines] for role, engines in several.items()}
    fold = Fold()
    strategy = work.strategy

    async def main() -> list[Fault]:
        async with Runtime(parts(silent, ExactAnswers())) as runtime:
            playback = await runtime.replay(
                past_of(events, "trace", whole=True),
                world.problems(work.problems),
                lambda _: (strategy, work.seed),
                [fold],
            )
        faults = [Fault("replay", f"{one}") for one in playback.differences[:2]]
        return faults + [Fault("replay", f"{stop.operation}: {stop.why}") for stop in list(playback.stops.values())[:2]]

    faults = run_virtual(main())
    if not faults and fold.lines != lines_of(events):
        faults.append(Fault("replay", "the events are the same and the results are not"))
    return faults


def lines_of(events: Sequence[Event]) -> list[str]:
    """Results as they follow from a trace."""
    fold = Fold()
    for event in events:
        fold.add(event)
    return fold.lines


def events_of(folder: Path) -> list[Event]:
    """What is in a folder's trace; nothing where there is none yet."""
    return list(read_trace(folder / TRACE_FILE)) if segments(folder / TRACE_FILE) else []


def cut(source: Path, folder: Path, size: int) -> None:
    """A copy of a run's folder as a crash leaves it, ``size`` bytes of whose trace, all segments together, are there."""
    folder.mkdir(parents=True)
    shutil.copy(source / RUN_FILE, folder / RUN_FILE)
    for segment in segments(source / TRACE_FILE):
        with open_segment(segment.path) as file:
            data = file.read()
        if size > len(data):
            shutil.copy(segment.path, folder / segment.path.name)
            size -= len(data)
        else:
            (folder / TRACE_FILE).write_bytes(data[:size])
            return


def places(folder: Path) -> list[int]:
    """Where each line of a trace ends, in bytes from its start."""
    found = [0]
    for segment in segments(folder / TRACE_FILE):
        with open_segment(segment.path) as file:
            for line in file:
                found.append(found[-1] + len(line))
    return found


def draw_cut(draw: random.Random, folder: Path, events: Sequence[Event], after: int) -> int:
    """Where to cut: at any byte, between any two lines, or close to where something was given up, stopped or voted on.

    ``after``: so many lines are older than the last break; most cuts come behind it.
    """
    ends = places(folder)
    first = ends[1]
    if draw.random() < 0.3:
        after = 0
    low = min(max(first, ends[min(after, len(ends) - 1)]), ends[-1] - 1)
    how = draw.random()
    if how < 0.35:
        return draw.randrange(low, ends[-1])
    if how > 0.7:
        near = [
            index
            for index, event in enumerate(events)
            if index > after and isinstance(event, OperationDropped | VoteUpdated | TrackFinished)
        ]
        if near:
            place = draw.choice(near) + draw.choice([-1, 0, 1, 1, 2, 3]) + (len(ends) - 1 - len(events))
            return ends[min(max(1, place), len(ends) - 1)]
    return draw.choice([one for one in ends if one >= low])


def examined(
    report: Report,
    work: Workload,
    folder: Path,
    left: Attempt,
    before: Sequence[Event],
    expected: Stories,
    equal: Equality,
) -> list[Event]:
    """Looks at all that must hold of a run that went on to its end. Returns the events of its trace."""
    faults = report.faults
    events = events_of(folder)
    if left.fold.lines != lines_of(events):
        faults.append(Fault("fold", "those who saw it happen say other than the trace"))
    if [event.seq for event in events] != list(range(len(events))):
        faults.append(Fault("trace", "the numbers of events have gaps"))
    if any(one.t > other.t for one, other in pairwise(events)):
        faults.append(Fault("trace", "time goes back"))
    if events[: len(before)] != list(before):
        faults.append(Fault("trace", "what was there is not there any more"))
    made = generated(events)
    if len(set(made)) != len(made):
        twice = sorted({one for one in made if made.count(one) > 1})
        faults.append(Fault("twice", f"{twice[0]} was generated a second time"))
    wrong = violations(events)
    report.count("check clean", not wrong)
    faults += wrong
    found = stories(events)
    different = differences(expected, found, equal)
    faults += different
    if equal != "none":
        report.count("compared")
        report.count("equal", not different)
    elif not different:
        report.count("auto")
        report.count("auto equal", not differences(expected, found, "so far" if work.options.get("fast") else "all"))
    return events


def undisturbed(
    report: Report, work: Workload, folder: Path, draw: random.Random, abort_s: Sequence[float]
) -> tuple[Attempt, list[Event]]:
    whole = attempt(work, folder, trace=draw_trace(draw), abort_s=abort_s)
    report.faults += [Fault(f"whole {kind}", text) for kind, text in whole.faults]
    events = events_of(folder)
    report.faults += [Fault(f"whole {kind}", text) for kind, text in violations(events) + replayed(work, events)]
    return whole, events


def finish(report: Report, work: Workload, events: Sequence[Event]) -> None:
    different = replayed(work, events)
    report.count("replayed")
    report.count("replay exact", not different)
    report.faults += different


def cuts(seed: int, folder: Path) -> Report:
    """A finished run's trace cut anywhere, gone on with, cut again, gone on with."""
    draw = generator("cuts", seed)
    work = draw_work(draw)
    report = Report.of("cuts", seed, work)
    equal = equality(work)
    abort_s = draw_aborts(draw, 0.4)
    whole, events = undisturbed(report, work, folder / "whole", draw, abort_s)
    if whole.error is not None:
        return report
    expected = stories(events)
    for chain in range(CHAINS):
        source, seen = folder / "whole", events
        after = 0
        for again in range(draw.choice([1, 1, 2, 3])):
            size = draw_cut(draw, source, seen, after)
            here = folder / f"{chain}-{again}"
            cut(source, here, size)
            before = events_of(here)
            report.count("cuts")
            left = attempt(work, here, resume=True, concurrency=draw.choice([1, 2, 4]), trace=draw_trace(draw))
            report.faults += [
                Fault(kind, f"chain {chain}, cut {again} at {size}: {text}") for kind, text in left.faults
            ]
            if left.error is not None:
                break
            report.count("resumed")
            seen = examined(report, work, here, left, before, expected, equal)
            source, after = here, len(before)
        else:
            finish(report, work, seen)
    return report


def draw_end(draw: random.Random, whole: Attempt, *, resumes: bool) -> End:
    """``resumes``: the attempt drives loops again over a trace at first, which takes no time and publishes nothing."""
    hows: list[Literal["cancelled", "dead"]] = ["cancelled", "cancelled", "dead"]
    how = draw.choice(hows)
    again = tuple(draw.choice([1, 1, 2, 3]) for _ in range(draw.choice([0, 0, 1, 2]))) if how == "cancelled" else ()
    if resumes and draw.random() < 0.6:
        return End(how, "turn", draw.randint(1, 80), 0, again)
    match draw.choice(["time", "event", "event", "turn"]):
        case "time":
            return End(how, "time", round(draw.uniform(0, whole.seconds), 4), draw.choice([0, 0, 1, 2]), again)
        case "event":
            number = draw_clean_up(draw, whole.events) if draw.random() < 0.5 else None
            number = number or draw.randint(1, max(1, len(whole.events) - 1))
            return End(how, "event", number, draw.randint(0, 5), again)
        case _:
            return End(how, "turn", draw.randint(1, max(1, whole.turns)), 0, again)


def ends(seed: int, folder: Path) -> Report:
    """A run that is cancelled, or whose engine dies, at any moment, and so are those that go on with it."""
    draw = generator("ends", seed)
    work = draw_work(draw)
    report = Report.of("ends", seed, work)
    equal = equality(work)
    abort_s = draw_aborts(draw, 0.4)
    whole = attempt(work, abort_s=abort_s)
    report.faults += [Fault(f"whole {kind}", text) for kind, text in whole.faults]
    if whole.error is not None:
        return report
    expected = stories(whole.events)
    for chain in range(CHAINS):
        here = folder / str(chain)
        before: list[Event] = []
        left = Attempt()
        for _ in range(draw.choice([1, 1, 2, 3])):
            end = draw_end(draw, whole, resumes=bool(before))
            left = attempt(work, here, resume=bool(before), end=end, trace=draw_trace(draw), abort_s=abort_s)
            report.count(f"ended by {end.how}", left.ended is not None)
            report.faults += [Fault(kind, f"chain {chain}, {end}: {text}") for kind, text in left.faults]
            if left.error is None or isinstance(left.error, ResumeError):
                break
            before = events_of(here)
            report.faults += violations(before)
            if not before:
                shutil.rmtree(here, ignore_errors=True)
        if not before:
            continue
        if left.error is not None and not isinstance(left.error, ResumeError):
            left = attempt(
                work, here, resume=True, concurrency=draw.choice([1, 2, 4]), trace=draw_trace(draw), abort_s=abort_s
            )
            report.faults += [Fault(kind, f"chain {chain}, gone on with: {text}") for kind, text in left.faults]
        if left.error is None:
            report.count("resumed")
            finish(report, work, examined(report, work, here, left, before, expected, equal))
    return report
