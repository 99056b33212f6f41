"""Reads what a trace has of a run: its attempts, and for each sample the events that a loop driven again will repeat.

It leaves out what an attempt's own end did to its tracks: tracks that were cancelled with it, or failed because no
engine was left, are open again. Whatever follows in the trace continues them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speclrm.runtime.errors import ResumeError, ends_attempt
from speclrm.runtime.events import (
    SCHEMA_VERSION,
    Event,
    OperationDropped,
    RunFinished,
    RunResumed,
    RunStarted,
    SampleEvent,
    SampleFinished,
    TrackEvent,
    TrackFinished,
    TrackPaused,
    TrackResumed,
)
from speclrm.runtime.state import SampleState, apply
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from pydantic import JsonValue

SampleKey = tuple[str, int]


@dataclass(slots=True)
class PastSample:
    """A recorded sample. ``attempt``: in which it began. ``events``: in order. ``closed``: tracks that the last
    attempt's end closed, to be opened again. ``state``: of a finished sample, whose events are kept only if asked for.
    """

    problem: str
    repeat: int
    attempt: int
    events: list[Event] = field(default_factory=list[Event])
    closed: dict[str, None] = field(default_factory=dict[str, None])
    state: SampleState | None = None


@dataclass(slots=True)
class Past:
    """A recorded run. ``next_seq``, ``elapsed_s``: where the next event continues. ``status``: of the last attempt,
    ``running`` if it was killed. ``samples``: in the order of their starts. ``form``: the schema version in which the
    trace was begun.
    """

    attempts: list[RunStarted | RunResumed]
    samples: dict[SampleKey, PastSample] = field(default_factory=dict[SampleKey, PastSample])
    next_seq: int = 0
    elapsed_s: float = 0.0
    status: str = "running"

    @property
    def run(self) -> str:
        first = self.attempts[0]
        assert isinstance(first, RunStarted)
        return first.run

    @property
    def form(self) -> int:
        first = self.attempts[0]
        assert isinstance(first, RunStarted)
        return first.begun_in_form

    @property
    def config(self) -> Mapping[str, JsonValue]:
        """The configuration of the last attempt."""
        return self.attempts[-1].config

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def unfinished(self) -> Iterator[PastSample]:
        return (sample for sample in self.samples.values() if sample.state is None)


def read_past(directory: Path, notice: Callable[[str], None] = lambda _: None, *, whole: bool = False) -> Past:
    """Reads the run in a folder. ``whole``: whether the events of finished samples are kept, too.

    Raises:
        TraceReadError: the trace cannot be read.
        ResumeError: it is empty, or of a schema version that does not record enough.
    """
    return past_of(read_trace(directory / TRACE_FILE, notice), str(directory / TRACE_FILE), whole=whole)


def past_of(events: Iterable[Event], name: str, *, whole: bool = False) -> Past:
    """Does the same with events. ``name``: of their source, for errors."""
    past = Past([])
    for event in events:
        past.next_seq = event.seq + 1
        past.elapsed_s = max(past.elapsed_s, event.t)
        match event:
            case RunStarted():
                if not event.context_max:
                    raise ResumeError(
                        f"{name}: written by an older SpecLRM, which did not record all that a loop saw. The run can be "
                        "evaluated, and neither resumed nor replayed. Start it anew in another folder."
                    )
                past.attempts.append(event)
            case RunResumed():
                past.attempts.append(event)
                past.status = "running"
            case RunFinished():
                past.status = event.status
            case _ if isinstance(event, SampleEvent):
                _add(past, event, whole)
            case _:
                pass
    if not past.attempts:
        raise ResumeError(
            f"{name} is empty: the run ended before anything was written. Start it anew in another folder."
        )
    return past


def _add(past: Past, event: Event, whole: bool) -> None:
    assert isinstance(event, SampleEvent)
    key = event.problem, event.repeat
    sample = past.samples.get(key)
    if sample is None:
        sample = past.samples[key] = PastSample(*key, event.attempt)
    if isinstance(event, TrackResumed):
        sample.closed.pop(event.track, None)
        return
    if by_the_end(event):
        if isinstance(event, TrackFinished):
            sample.closed[event.track] = None
            if past.form < SCHEMA_VERSION:
                _unstop(sample, event.track)
        return
    sample.events.append(event)
    if isinstance(event, SampleFinished):
        sample.state = SampleState(*key)
        for one in sample.events:
            sample.state = apply(sample.state, one)
        if not whole:
            sample.events = []


def _unstop(sample: PastSample, track: str) -> None:
    """Removes what a track abandoned as its attempt ended: older versions did not tell that from a decision of its loop."""
    found: list[int] = []
    for index in range(len(sample.events) - 1, -1, -1):
        event = sample.events[index]
        if not isinstance(event, TrackEvent) or event.track != track:
            continue
        if isinstance(event, OperationDropped) and event.reason in ("stopped", "useless"):
            found.append(index)
            continue
        if isinstance(event, TrackPaused):
            found.clear()  # ended by a newer version, for this reason
        break
    for index in found:
        del sample.events[index]


def lasting(events: Iterable[Event]) -> Iterator[Event]:
    """Returns the event without what says only that an attempt ended."""
    return (event for event in events if not by_the_end(event))


def by_the_end(event: Event) -> bool:
    """Returns whether an event says only that an attempt ended."""
    match event:
        case TrackFinished():
            return event.reason == "cancelled" or ends_attempt(event.error)
        case OperationDropped():
            return event.reason == "cancelled" or ends_attempt(event.error)
        case _:
            return False
