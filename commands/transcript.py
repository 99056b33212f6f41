"""Prints events as text: one line each, or a whole sample with its tracks one after the other.

Model text is untrusted: it is shown as plain text, without control characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from speclrm.commands.display import harmless, with_changes
from speclrm.runtime.events import (
    EngineFailed,
    EngineRecovered,
    Event,
    MethodsChosen,
    OperationDropped,
    OperationStuck,
    ProblemStarted,
    RunFinished,
    RunStarted,
    SampleEvent,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepEvent,
    StepScored,
    StepWritten,
    TrackEvent,
    TrackFinished,
    TrackStarted,
    VoteUpdated,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LINE_MAX = 100_000
"""Characters of one line of model text that are shown."""
STYLES = {"draft": "cyan", "rewrite": "yellow", "write": "green", "closing": "magenta"}


def one_line(event: Event, width: int = 120) -> Text:
    """Returns ``time kind place: what``, with model text cut to fit."""
    where = ""
    if isinstance(event, SampleEvent):
        where = f"{event.problem}/{event.repeat}"
    if isinstance(event, TrackEvent):
        where += f"/{event.track}"
    if isinstance(event, StepEvent):
        where += f"/{event.step}"
    line = Text(f"{event.t:10.3f} ", style="dim")
    line.append(f"{event.kind:<18}", style="bold").append(harmless(where, 60))
    said = harmless(_said(event), max(width - len(line.plain) - 2, 20))
    return line.append(f"  {said}", style="") if said else line


def _said(event: Event) -> str:
    match event:
        case RunStarted():
            return event.run
        case ProblemStarted():
            return event.text
        case MethodsChosen():
            return f"{' '.join(event.codes)} by {event.chosen_by}"
        case TrackStarted():
            return event.hint
        case StepDrafted() | StepWritten():
            return event.text
        case StepScored():
            return f"{event.value:.2f}, digits {event.mass:.0%}"
        case StepCommitted():
            return f"{event.origin}, {event.tokens} tokens" + _scored(event.score)
        case OperationDropped():
            return f"{event.purpose}: {event.reason}, {event.operation.output_tokens} tokens"
        case TrackFinished():
            return f"{event.reason}, answer {event.answer}" if event.error is None else f"error: {event.error}"
        case VoteUpdated():
            return f"{' | '.join(' '.join(members) for members in event.classes)}; {event.leader} leads"
        case SampleFinished():
            return f"{event.outcome}, answer {event.answer}"
        case EngineFailed():
            reason = "" if event.reason is None else f" ({event.reason}, {event.requests} requests)"
            return f"{event.engine}{reason}: {event.error}"
        case EngineRecovered():
            return f"{event.engine} after {event.down_s:.1f} s{with_changes(event)}"
        case OperationStuck():
            return f"{event.operation} in {event.engine}, {event.seconds:.0f} s, {event.others} more"
        case RunFinished():
            return event.status if event.error is None else f"{event.status}: {event.error}"
        case _:
            return ""


def transcripts(events: Iterable[Event], track: str | None = None) -> Iterator[Text]:
    """Yields each sample as text, when it ends or, at the end, as far as it came. ``track``: only this one of each."""
    held: dict[tuple[str, int], list[SampleEvent]] = {}
    for event in events:
        if isinstance(event, SampleEvent):
            key = event.problem, event.repeat
            held.setdefault(key, []).append(event)
            if isinstance(event, SampleFinished):
                yield from _sample(held.pop(key), track)
    for left in held.values():
        yield from _sample(left, track)


def _sample(events: list[SampleEvent], track: str | None) -> Iterator[Text]:
    first = events[0]
    yield Text(f"━━ {harmless(first.problem)}, repeat {first.repeat}", style="bold")
    names: dict[str, None] = {}
    for event in events:
        if isinstance(event, ProblemStarted):
            yield from _text(event.text, "")
            if event.gold is not None:
                yield Text(f"gold answer {harmless(event.gold)}", style="dim")
        elif isinstance(event, MethodsChosen):
            yield Text(f"methods {' '.join(event.codes)}, chosen by {event.chosen_by}", style="dim")
        elif isinstance(event, TrackEvent):
            names.setdefault(event.track)
    for name in names:
        if track is None or name == track:
            yield from _track(name, [one for one in events if isinstance(one, TrackEvent) and one.track == name])
    for event in events:
        if isinstance(event, VoteUpdated):
            classes = " | ".join(" ".join(members) for members in event.classes)
            yield Text(f"vote at {event.t:.1f} s: {classes}; {event.leader} leads", style="dim")
        elif isinstance(event, SampleFinished):
            yield Text(
                f"result: {event.outcome}, answer {harmless(str(event.answer))}, track {event.winner}, "
                f"{event.seconds:.1f} s",
                style="bold",
            )
    if not isinstance(events[-1], SampleFinished):
        yield Text("the sample did not end", style="bold red")
    yield Text()


def _track(name: str, events: list[TrackEvent]) -> Iterator[Text]:
    made: StepDrafted | StepWritten | None = None
    score: StepScored | None = None
    yield Text(f"── track {harmless(name)}", style="bold")
    for event in events:
        match event:
            case TrackStarted():
                if event.hint:
                    yield Text(harmless(event.hint, LINE_MAX), style="dim")
            case StepDrafted() | StepWritten():
                if isinstance(event, StepWritten) and event.write_kind == "rewrite" and made is not None:
                    judged = _scored(score.value) if score else ""
                    yield Text(f"step {event.step}: rejected draft{judged}", style="red")
                    yield from _text(made.text, "red strike")
                made = event
            case StepScored():
                score = event
            case StepCommitted():
                yield Text(
                    f"step {event.step}: {event.origin}, {event.tokens} tokens{_scored(event.score)}",
                    style=STYLES[event.origin],
                )
                if made is not None:
                    yield from _text(made.text, "")
                made = score = None
            case OperationDropped():
                yield Text(f"step {event.step}: a {event.purpose} was given up ({event.reason})", style="dim")
            case TrackFinished():
                if made is not None:
                    yield Text(f"step {made.step}: never decided", style="red")
                    yield from _text(made.text, "red strike")
                end = f"error: {event.error}" if event.error is not None else event.reason
                yield Text(
                    f"end: {harmless(end, LINE_MAX)}, answer {harmless(str(event.answer))}, {event.tokens} tokens",
                    style="bold",
                )
            case _:
                yield Text(harmless(f"{getattr(event, 'kind', '')} {getattr(event, 'reason', '')}"), style="dim")


def _text(text: str, style: str) -> Iterator[Text]:
    for line in text.rstrip().split("\n"):
        if line.strip():
            yield Text(f"   {harmless(line, LINE_MAX)}", style=style)


def _scored(score: float | None) -> str:
    return "" if score is None else f", score {score:.2f}"
