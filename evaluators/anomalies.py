"""Finds what looks wrong in a trace: work that never ended, long waits, stalls, scores that mean little, retries.

A trace has no event for an operation's beginning. What a track waits for follows from its last event, since its loop
waits for one thing at a time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict

from speclrm.runtime.events import (
    EngineFailed,
    EngineRecovered,
    OperationDropped,
    RunFinished,
    SampleFinished,
    StepScored,
    TrackEvent,
    TrackFinished,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speclrm.runtime.events import Event, Operation

STALL_S = 60.0
"""Seconds without an event after which a track is called stalled, unless told otherwise."""
LOW_MASS = 0.5
"""Less than this on the ten digits together, and the judge would rather have said something else."""
WAITS_MAX = 10
EXAMPLES_MAX = 100

_NEXT = {
    "track_started": "a first step",
    "track_resumed": "its next step",
    "track_paused": "room, a place, or the readers of its events",
    "track_continued": "its next step",
    "step_committed": "its next step",
    "step_drafted": "a score, or the draft's keeping",
    "step_scored": "a rewrite, or the draft's keeping",
    "step_gated": "a score, a rewrite or the draft's keeping",
    "step_written": "the step's keeping",
    "operation_dropped": "what follows a request that was given up",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenTrack(_Frozen):
    """A track that never ended. ``since_s``: run time of its last event; ``awaits``: what it waited for then."""

    track: str
    since_s: float
    last: str
    awaits: str


class Wait(_Frozen):
    operation: str
    seconds: float


class Stall(_Frozen):
    """No event of a track from ``from_s`` to ``to_s``; ``before``: the event that ended it."""

    track: str
    from_s: float
    to_s: float
    before: str


class LowMass(_Frozen):
    step: str
    mass: float
    said: str


class Anomalies(_Frozen):
    """Lists are cut at ``EXAMPLES_MAX`` (waits at ``WAITS_MAX``); the counts are whole.

    ``dropped``: operations given up, by reason. ``continued``: steps that took more than one request. ``again``:
    operations asked a second time. ``engine_failures``: with their errors.
    """

    finished: bool
    open_tracks: tuple[OpenTrack, ...]
    longest_queued: tuple[Wait, ...]
    longest_served: tuple[Wait, ...]
    stalls: int
    longest_stalls: tuple[Stall, ...]
    scores: int
    low_masses: int
    lowest_masses: tuple[LowMass, ...]
    dropped: dict[str, int]
    continued: int
    again: int
    failed_tracks: tuple[str, ...]
    engine_failures: tuple[str, ...]
    recoveries: int


class AnomalyFold:
    """``stall_s``: from which gap on a track counts as stalled."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._finished = False
        self._last: dict[tuple[str, int], dict[str, tuple[float, str]]] = {}
        self._queued: list[tuple[float, str]] = []
        self._served: list[tuple[float, str]] = []
        self._stalls: list[tuple[float, str, float, str]] = []
        self._masses: list[tuple[float, str, str]] = []
        self._count: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._given_up: set[str] = set()
        self._failed: list[str] = []
        self._engines: list[str] = []

    def add(self, event: Event) -> None:
        self._finished = isinstance(event, RunFinished)
        for one in _operations(event):
            _keep(self._queued, (one.queue_s, one.id), WAITS_MAX)
            _keep(self._served, (one.engine_s, one.id), WAITS_MAX)
            self._count["continued"] += "." in one.id.rpartition("/")[2]
            if one.id in self._given_up and one.prompt_tokens:
                self._count["again"] += 1
                self._given_up.discard(one.id)
        if isinstance(event, EngineFailed):
            self._engines.append(f"{event.engine} at {event.t:.1f} s: {event.error}")
        elif isinstance(event, EngineRecovered):
            self._count["recoveries"] += 1
        elif isinstance(event, SampleFinished):
            self._last.pop((event.problem, event.repeat), None)
        elif isinstance(event, TrackEvent):
            self._track(event)

    def _track(self, event: TrackEvent) -> None:
        kind = str(getattr(event, "kind", ""))
        name = f"{event.problem}/{event.repeat}/{event.track}"
        tracks = self._last.setdefault((event.problem, event.repeat), {})
        before = tracks.get(event.track)
        if before is not None and event.t - before[0] >= self._stall_s:
            self._count["stalls"] += 1
            _keep(self._stalls, (event.t - before[0], name, before[0], kind), EXAMPLES_MAX)
        tracks[event.track] = event.t, kind
        if isinstance(event, OperationDropped):
            self._dropped[event.reason] += 1
            self._given_up.add(event.operation.id)
            if event.purpose == "choose":
                del tracks[event.track]  # no track of the sample, only named like one
        elif isinstance(event, StepScored):
            self._count["scored"] += 1
            if event.mass < LOW_MASS:
                self._count["low"] += 1
                _keep(self._masses, (-event.mass, f"{name}/{event.step}", event.said), EXAMPLES_MAX)
        elif isinstance(event, TrackFinished):
            del tracks[event.track]
            if event.reason == "error" and len(self._failed) < EXAMPLES_MAX:
                self._failed.append(f"{name}: {event.error}")

    def anomalies(self) -> Anomalies:
        return Anomalies(
            finished=self._finished,
            open_tracks=tuple(
                OpenTrack(
                    track=f"{problem}/{repeat}/{track}", since_s=t, last=kind, awaits=_NEXT.get(kind, "its next step")
                )
                for (problem, repeat), tracks in self._last.items()
                for track, (t, kind) in sorted(tracks.items(), key=lambda item: item[1])
            )[:EXAMPLES_MAX],
            longest_queued=_waits(self._queued),
            longest_served=_waits(self._served),
            stalls=self._count["stalls"],
            longest_stalls=tuple(
                Stall(track=name, from_s=t, to_s=round(t + gap, 6), before=kind)
                for gap, name, t, kind in sorted(self._stalls, reverse=True)
            ),
            scores=self._count["scored"],
            low_masses=self._count["low"],
            lowest_masses=tuple(
                LowMass(step=step, mass=-mass, said=said) for mass, step, said in sorted(self._masses, reverse=True)
            ),
            dropped=dict(sorted(self._dropped.items())),
            continued=self._count["continued"],
            again=self._count["again"],
            failed_tracks=tuple(self._failed),
            engine_failures=tuple(self._engines[:EXAMPLES_MAX]),
            recoveries=self._count["recoveries"],
        )


def _operations(event: Event) -> Iterable[Operation]:
    if isinstance(event, OperationDropped):
        return (event.operation,)
    return cast("Iterable[Operation]", getattr(event, "operations", ()))


def _keep(heap: list[Any], item: Any, most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)


def _waits(heap: list[tuple[float, str]]) -> tuple[Wait, ...]:
    return tuple(Wait(operation=name, seconds=seconds) for seconds, name in sorted(heap, reverse=True) if seconds > 0)
