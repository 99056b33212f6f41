"""Describes where a replay differs from the recorded run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.events import (
    MethodsChosen,
    ModeChanged,
    OperationDropped,
    SampleEvent,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepEvent,
    StepScored,
    StepWritten,
    TrackEvent,
    TrackFinished,
    VoteUpdated,
)

if TYPE_CHECKING:
    from speclrm.runtime.events import Event


@dataclass(frozen=True, slots=True)
class Difference:
    """``track``, ``step``: None if it belongs to none. ``recorded``, ``now``: what happened, in a few words."""

    problem: str
    repeat: int
    track: str | None
    step: int | None
    recorded: str
    now: str

    def __str__(self) -> str:
        place = "" if self.track is None else f"track {self.track}, "
        step = "" if self.step is None else f"step {self.step}, "
        return f"{place}{step}recorded: {self.recorded}; now: {self.now}"


def describe(event: Event, recorded: Event | None, now: Event | None) -> Difference:
    """Describes the difference between an event of the trace and what came instead; ``event`` gives its place."""
    assert isinstance(event, SampleEvent)
    told, other = (_words(recorded), _words(now))
    if told == other and recorded is not None and now is not None:
        old, new = recorded.model_dump(mode="json"), now.model_dump(mode="json")
        parts = [name for name in old if name not in ("seq", "attempt", "t") and old[name] != new.get(name)]
        told, other = (
            f"{words} ({'; '.join(_field(kind, name) for name in parts)})"
            for words, kind in ((told, old), (other, new))
        )
    return Difference(
        event.problem,
        event.repeat,
        event.track if isinstance(event, TrackEvent) else None,
        event.step if isinstance(event, StepEvent) else None,
        told,
        other,
    )


def _field(event: dict[str, object], name: str) -> str:
    text = str(event[name])
    return f"{name} {text if len(text) <= 60 else text[:57] + '...'}"


def _words(event: Event | None) -> str:
    match event:
        case None:
            return "nothing"
        case StepDrafted():
            return "drafted"
        case StepScored():
            return f"scored {event.value:g}"
        case StepWritten():
            return {"rewrite": "rewritten", "write": "written", "closing": "closed"}[event.write_kind]
        case StepCommitted():
            done = "accepted" if event.origin == "draft" else f"committed as {event.origin}"
            return done if event.score is None else f"{done} with {event.score:g}"
        case OperationDropped():
            return f"{event.operation.id} given up ({event.reason})"
        case TrackFinished():
            answer = "" if event.answer is None else f" with answer {event.answer}"
            return f"ended ({event.reason}){answer}"
        case VoteUpdated():
            votes = " | ".join(" ".join(members) for members in event.classes)
            return f"votes {votes}, {event.leader} leads"
        case SampleFinished():
            return f"{event.outcome}, answer {event.answer} of {event.winner} after {event.seconds:g} s"
        case MethodsChosen():
            return f"methods {','.join(event.codes)}"
        case ModeChanged():
            return f"mode {event.mode}"
        case _:
            return event.kind.replace("_", " ")
