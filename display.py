"""What a person sees of a run: live on stderr while it goes, and its figures on stdout at the end.

All of it is a fold over events. What models wrote, and what stands in files, is untrusted: escape sequences and markup in it
are made harmless. All that goes to a terminal goes through ``Terminal``, ``print_json`` or ``visible``.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from speclrm.evaluators.metrics import RunSummary, Summary
from speclrm.runtime.events import OperationDropped, RunStarted, StepDrafted, StepScored, StepWritten
from speclrm.runtime.ledger import EngineUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import ConsoleOptions, RenderableType

    from speclrm.evaluators.metrics import SampleRow
    from speclrm.runtime.events import Event

DisplayKind = Literal["rich", "plain", "json", "none"]

WINDOW_S = 10.0
"""Tokens per second are of the last ten."""
REFRESH_HZ = 4
PLAIN_INTERVAL_S = 10.0
ROWS_MAX = 8
REPORT_ROWS_MAX = 40
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""What a terminal obeys or does not show: C0, DEL and C1 controls, marks of direction and of no width, halves of characters."""
_SPACE = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""The text with each control character but those to ``keep`` as it would be written in JSON: ``\u001b``.

    A JSON text stays one, and means the same.
    """

    def written(found: re.Match[str]) -> str:
        character = found.group()
        return character if character in keep else _SHORT.get(character) or f"\\u{ord(character):04x}"

    return _CONTROL.sub(written, text)


def harmless(text: str, width: int = 60) -> str:
    """One line of at most ``width`` characters, without control characters."""
    line = visible(_SPACE.sub(" ", text))
    return line if len(line) <= width else line[: width - 1] + "…"


class Terminal(Console):
    """A console on which no text is control or markup, whoever wrote it."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)  # here as well, so that a table's columns are wide enough

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class Monitor:
    """A sink that follows a run and can say how it stands. Times are real seconds."""

    def __init__(self) -> None:
        self.stage = "starting"
        self.fold = Summary()
        self.total: int | None = None
        self._started: float | None = None
        self._begun = time.monotonic()
        self._recent: deque[tuple[float, str, int]] = deque()

    # As a sink.

    def emit(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, RunStarted):
            self.fold = Summary()
            self._started = now
            self._recent.clear()
        self.fold.add(event)
        match event:
            case StepDrafted(operations=operations):
                self._recent.append((now, "draft", sum(op.output_tokens for op in operations)))
            case StepWritten(operations=operations) | StepScored(operations=operations):
                self._recent.append((now, "target", sum(op.output_tokens for op in operations)))
            case OperationDropped(role=role, operation=operation):
                self._recent.append((now, role, operation.output_tokens))
            case _:
                pass

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # As what is asked for a picture.

    def notify(self, what: str, done: float | None, total: float | None) -> None:
        self.stage = what + (f" {done / total:.0%}" if done is not None and total else "")

    def plan(self, samples: int) -> None:
        self.total = samples

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - (self._started or self._begun)

    @property
    def running(self) -> bool:
        return self._started is not None

    def rates(self) -> dict[str, float]:
        """Generated tokens per second of each model, over the last seconds."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()
        span = max(1.0, min(WINDOW_S, self.elapsed_s))
        rates: dict[str, float] = {}
        for _, role, tokens in self._recent:
            rates[role] = rates.get(role, 0.0) + tokens / span
        return rates

    def left_s(self) -> float | None:
        """Seconds to go, about; None until there is something to tell it from.

        A running sample counts by how far its tracks are, measured by the tokens that finished tracks took.
        """
        states = self.fold.states.values()
        finished = [track.tokens for state in states for track in state.tracks.values() if track.finished]
        if self.total is None or len(finished) < 2:
            return None
        typical = max(1.0, sum(finished) / len(finished))
        done = 0.0
        for state in states:
            if state.outcome is not None:
                done += 1
            elif state.tracks:
                parts = [1.0 if t.finished else min(0.9, t.tokens / typical) for t in state.tracks.values()]
                done += sum(parts) / len(parts)
        if done <= 0:
            return None
        return self.elapsed_s * max(0.0, self.total - done) / done


def headline(monitor: Monitor) -> str:
    """One line: how many problems are done, how it goes, how fast, and how long it will take."""
    if not monitor.running:
        return f"{monitor.stage} ({_seconds(monitor.elapsed_s)})"
    summary = monitor.fold.summary()
    parts = [f"{len(summary.samples)}/{monitor.total or '?'} samples"]
    if summary.accuracy is not None:
        parts.append(f"accuracy {summary.accuracy:.0%}")
    tracks = [track for state in monitor.fold.states.values() for track in state.tracks.values()]
    parts.append(f"tracks {sum(track.finished for track in tracks)}/{len(tracks)}")
    if summary.acceptance is not None:
        parts.append(f"accepted {summary.accepted} rewritten {summary.rewritten} ({summary.acceptance:.0%} kept)")
    elif summary.written:
        parts.append(f"{summary.written} steps")
    parts += [f"{role} {rate:.0f} tok/s" for role, rate in sorted(monitor.rates().items())]
    left = monitor.left_s()
    parts.append(f"{_seconds(monitor.elapsed_s)}, {'estimating' if left is None else f'about {_seconds(left)} left'}")
    return " · ".join(parts)


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class LiveView:
    """The ``rich`` display: redrawn a few times a second, whatever comes in between."""

    def __init__(self, monitor: Monitor, console: Console) -> None:
        self._monitor = monitor
        self._live = Live(console=console, refresh_per_second=REFRESH_HZ, get_renderable=self._draw, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        monitor = self._monitor
        head = Text(headline(monitor))
        if not monitor.running:
            return head
        table = Table(box=None, pad_edge=False, expand=False)
        for name in ("problem", "track", "steps", "tokens", "score", ""):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        busy = [
            (state, track)
            for state in monitor.fold.states.values()
            if state.outcome is None
            for track in state.tracks.values()
            if not track.finished
        ]
        for state, track in busy[:ROWS_MAX]:
            last = track.steps[-1] if track.steps else None
            table.add_row(
                Text(harmless(f"{state.problem}/{state.repeat}", 24)),
                Text(track.track),
                str(len(track.steps)),
                str(track.tokens),
                "" if last is None or last.score is None else f"{last.score:.1f}",
                Text(harmless(last.text.strip(), 40) if last else ""),
            )
        if len(busy) > ROWS_MAX:
            table.add_row(Text(f"and {len(busy) - ROWS_MAX} more"), "", "", "", "", "")
        return Group(head, table)


class PlainView:
    """The ``plain`` display, a sink: a line for each finished sample, and one now and then.

    It hands each event to its monitor first, so that what it reads there is as far as the event.
    """

    def __init__(self, monitor: Monitor, console: Console) -> None:
        self._monitor = monitor
        self._console = console
        self._told = 0
        self._last = time.monotonic()
        self._stage = ""

    def notify(self, what: str, done: float | None, total: float | None) -> None:
        self._monitor.notify(what, done, total)
        now = time.monotonic()
        if what != self._stage or now - self._last >= PLAIN_INTERVAL_S:
            self._stage, self._last = what, now
            self._print(self._monitor.stage)

    def emit(self, event: Event) -> None:
        self._monitor.emit(event)
        now = time.monotonic()
        rows = self._monitor.fold.summary().samples if event.kind == "sample_finished" else ()
        if rows:
            self._print(f"{sample_line(rows[-1])} · {headline(self._monitor)}")
            self._last = now
        elif now - self._last >= PLAIN_INTERVAL_S:
            self._last = now
            self._print(headline(self._monitor))

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True, highlight=False)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class JsonView:
    """The ``json`` display, a sink: a JSON object on stdout for each finished sample. Its monitor's events too."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def emit(self, event: Event) -> None:
        self._monitor.emit(event)
        if event.kind == "sample_finished":
            row = self._monitor.fold.summary().samples[-1]
            print_json({"kind": "sample", **row.model_dump(mode="json")})

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def print_json(value: object) -> None:
    print_line(json.dumps(value, ensure_ascii=False))


def print_line(text: str) -> None:
    """On stdout, at once: JSON, which nothing may fold."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def sample_line(row: SampleRow) -> str:
    answer = "no answer" if row.answer is None else harmless(row.answer, 30)
    return f"{row.problem}/{row.repeat}: {row.outcome} ({answer}; gold {harmless(row.gold or '-', 30)})"


# -------------------------------------------------------------------------------------------------------------- at the end


def print_report(console: Console, summary: RunSummary, title: str = "") -> None:
    """All figures of a run, on a console (stdout)."""
    if title:
        console.print(Text(title, style="bold"))
    console.print(_samples_table(summary))
    for line in figures(summary):
        console.print(Text(line), highlight=False, soft_wrap=True)
    if summary.tokens:
        console.print(_ledger_table(summary))


def _samples_table(summary: RunSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("problem", "answer", "gold", "outcome", "votes", "tracks ended", "tokens", "seconds"):
        table.add_column(name, justify="right" if name in ("tokens", "seconds") else "left", overflow="fold")
    for row in summary.samples[:REPORT_ROWS_MAX]:
        winner = next((names for _, names in row.votes if row.winner in names), ())
        ends: dict[str, int] = {}
        for track in row.tracks:
            ends[track.reason] = ends.get(track.reason, 0) + 1
        table.add_row(
            Text(harmless(f"{row.problem}/{row.repeat}", 32)),
            Text("-" if row.answer is None else harmless(row.answer, 24)),
            Text(harmless(row.gold or "-", 24)),
            Text(row.outcome, style={"correct": "green", "wrong": "red"}.get(row.outcome, "yellow")),
            f"{len(winner)}/{len(row.tracks)}",
            ", ".join(f"{reason} {count}" for reason, count in ends.items()),
            str(row.tokens),
            f"{row.seconds:.1f}",
        )
    if len(summary.samples) > REPORT_ROWS_MAX:
        table.add_row(Text(f"and {len(summary.samples) - REPORT_ROWS_MAX} more in results.jsonl"))
    return table


def figures(summary: RunSummary) -> list[str]:
    """The run's numbers, a line a matter."""
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(summary.outcomes.items()))
    lines: list[str] = []
    if summary.accuracy is not None:
        graded = sum(count for name, count in summary.outcomes.items() if name != "ungraded")
        lines.append(f"accuracy    {summary.accuracy:.1%} of {graded} samples ({outcomes})")
    else:
        lines.append(f"outcomes    {outcomes or 'none'}")
    if summary.acceptance is not None:
        lines.append(
            f"steps       {summary.drafted} drafted: {summary.accepted} accepted ({summary.acceptance:.1%}; "
            f"{summary.token_acceptance or 0:.1%} of tokens), {summary.rewritten} rewritten"
            + (f", {summary.closings} closing" if summary.closings else "")
        )
        scores = " ".join(f"{digit}:{count}" for digit, count in enumerate(summary.scores) if count)
        if summary.likelihood is not None:
            scores = f"{summary.likelihood:.2f} nats a token on average, by likelihood"
        lines.append(f"scores      {scores or 'none'}")
        if summary.sure or summary.doubtful:
            lines.append(f"gate        {summary.sure} drafts kept and {summary.doubtful} left to the target unscored")
    else:
        lines.append(
            f"steps       {summary.written} written" + (f", {summary.closings} closing" if summary.closings else "")
        )
    modes = summary.modes
    if modes.changes:
        lines.append(
            f"modes       {modes.speculated} steps speculated ({modes.eager} ahead of scores), {modes.written} left to the "
            f"target; tracks changed {modes.changes} times"
        )
    phases = ", ".join(
        f"{name} {phase.engine_s:.1f} s in {phase.requests} requests ({phase.mean_s:.2f} s each; queued {phase.queue_s:.1f})"
        for name, phase in summary.phases.items()
    )
    lines.append(f"time        {summary.seconds:.1f} s; requests, side by side: {phases}")
    if summary.chain_length is not None:
        chains = f"{summary.chain_length:.1f} tokens kept by {summary.chains} tracks with an answer, on average"
        share = "" if summary.draft_share is None else f"; {summary.draft_share:.1%} of all kept by the draft"
        lines.append(f"chains      {chains}{share}")
    if summary.decode_flops is not None and summary.all_flops is not None:
        lines.append(
            f"FLOPs       {summary.decode_flops:.3g} to decode, {summary.all_flops:.3g} with what was read of prompts"
        )
    if summary.stood_up:
        lines.append(f"room        tracks gave theirs to older ones {summary.stood_up} times")
    return lines


def _ledger_table(summary: RunSummary) -> Table:
    """A column a model: what became of its tokens, and of its engine's time. Rows without a number are left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tokens")
    for role in summary.tokens:
        table.add_column(role, justify="right")
    for name, cells in _ledger_rows(summary):
        if any(cells):
            table.add_row(name, *cells)
    return table


def _ledger_rows(summary: RunSummary) -> Iterator[tuple[str, list[str]]]:
    rates = summary.tokens_per_s
    yield "generated", [f"{counts.generated}" for counts in summary.tokens.values()]
    yield "a second", [f"{rates[role]:.1f}" if role in rates else "" for role in summary.tokens]
    for fate in ("kept", "rejected", "dropped", "useless", "judge", "choice"):
        yield f"  {fate}", [f"{count}" if (count := getattr(one, fate)) else "" for one in summary.tokens.values()]
    yield "discarded", [_share(counts.discarded) for counts in summary.tokens.values()]
    yield "prompts", [f"{counts.prompt}" for counts in summary.tokens.values()]
    yield "  cached", [_share(counts.cache_hit) for counts in summary.tokens.values()]
    yield (
        "decode FLOPs",
        [f"{flops.decode:.3g}" if (flops := summary.flops.get(role)) else "" for role in summary.tokens],
    )
    yield "all FLOPs", [f"{flops.all:.3g}" if (flops := summary.flops.get(role)) else "" for role in summary.tokens]
    engines = [summary.engines.get(role, EngineUse()) for role in summary.tokens]
    yield "engine idle", [_share(engine.idle) for engine in engines]
    yield "  though a track was ready", [_share(engine.idle_ready) for engine in engines]
    yield "mean batch", ["" if engine.batch is None else f"{engine.batch:.1f}" for engine in engines]
    yield "preemptions", [f"{engine.preemptions}" if engine.preemptions else "" for engine in engines]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
