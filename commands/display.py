"""Shows a run: live on stderr, and its figures on stdout at the end.

Everything shown is a fold over events. Text of models and files is untrusted: escape sequences and markup in it are
made harmless. All output to a terminal passes ``Terminal``, ``print_json`` or ``visible``.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from speclrm.commands.running_tracks import RunningTracks
from speclrm.evaluators.metrics import RunSummary, Summary
from speclrm.runtime.engines.simulated.presets import is_simulated
from speclrm.runtime.events import RunStarted, SampleFinished
from speclrm.runtime.ledger import EngineUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import ConsoleOptions, RenderableType

    from speclrm.app.time_left import Left
    from speclrm.commands.monitor import Monitor
    from speclrm.runtime.events import EngineRecovered, Event

REFRESH_HZ = 4
PLAIN_INTERVAL_S = 10.0
ROWS_MAX = 8
REPORT_ROWS_MAX = 40
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Characters that a terminal obeys or does not show: C0, DEL and C1 controls, marks of direction and of no width, surrogates."""
_SPACE = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, *, keep: str = "\n\t") -> str:
    r"""Returns the text with each control character but those to ``keep`` as JSON would write it: ``\u001b``.

    A JSON text stays one, and means the same.
    """

    def written(found: re.Match[str]) -> str:
        character = found.group()
        return character if character in keep else _SHORT.get(character) or f"\\u{ord(character):04x}"

    return _CONTROL.sub(written, text)


def harmless(text: str, width: int = 60) -> str:
    """Returns one line of at most ``width`` characters, without control characters."""
    line = visible(_SPACE.sub(" ", text))
    return line if len(line) <= width else line[: width - 1] + "…"


class Terminal(Console):
    """A console that treats no text as control or markup, whoever wrote it."""

    def __init__(self, *, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)  # here as well, so that a table's columns are wide enough

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def headline(monitor: Monitor) -> str:
    """Returns one line: how many problems are done, the results so far, the speed, and the time left. What is virtual says so."""
    if not monitor.running:
        return f"{monitor.stage} ({_seconds(monitor.elapsed_s)})"
    accepted, rewritten, written = (monitor.steps[origin] for origin in ("draft", "rewrite", "write"))
    outcomes = monitor.outcomes
    parts = [done(monitor)]
    if graded := monitor.finished - outcomes["ungraded"]:
        parts.append(f"accuracy {outcomes['correct'] / graded:.0%}")
    parts.append(f"tracks {monitor.ended}/{monitor.tracks}")
    if decided := accepted + rewritten:
        parts.append(f"accepted {accepted} rewritten {rewritten} ({accepted / decided:.0%} kept)")
    elif written:
        parts.append(f"{written} steps")
    second = "virtual s" if monitor.virtual else "s"
    parts += [f"{role} {rate:.0f} tok/{second}" for role, rate in sorted(monitor.rates().items())]
    passed = _seconds(monitor.elapsed_s) + (" of virtual time" if monitor.virtual else "")
    told = _told(monitor.left(), " of it left" if monitor.virtual else " left")
    return " · ".join([*parts, f"{passed}, {told}"])


def done(monitor: Monitor) -> str:
    return f"{monitor.finished}/{monitor.total or '?'} samples"


def _told(left: Left | None, behind: str) -> str:
    """Says how long it will still take: one number if that tells it, else from when to when."""
    if left is None:
        return "estimating"
    if left.sure:
        return f"about {_seconds(round(left.seconds))}{behind}"
    return f"{_seconds(int(left.low))} to {_seconds(math.ceil(left.high))}{behind}"


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class LiveView:
    """The ``rich`` display, a sink: redrawn a few times a second, however many events arrive. What becomes of engines is printed
    above it, and stays. It passes each event to its monitor.
    """

    def __init__(self, monitor: Monitor, console: Console) -> None:
        self._monitor = monitor
        self._tracks = RunningTracks()
        self._console = console
        self._live = Live(console=console, refresh_per_second=REFRESH_HZ, get_renderable=self._draw, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def emit(self, event: Event) -> None:
        if line := engine_line(event):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._monitor.emit(event)
        self._tracks.add(event)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def _draw(self) -> RenderableType:
        monitor = self._monitor
        head = Text(headline(monitor))
        if not monitor.running:
            return head
        table = Table(box=None, pad_edge=False, expand=False)
        for name in ("problem", "track", "steps", "tokens", "score", ""):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        running = self._tracks.running
        for (problem, repeat, name), track in list(islice(running.items(), ROWS_MAX)):
            table.add_row(
                Text(harmless(f"{problem}/{repeat}", 24)),
                Text(name),
                str(track.steps),
                str(track.tokens),
                "" if track.score is None else f"{track.score:.1f}",
                Text(harmless(track.text.strip(), 40)),
            )
        if len(running) > ROWS_MAX:
            table.add_row(Text(f"and {len(running) - ROWS_MAX} more"), "", "", "", "", "")
        return Group(head, table)


class PlainView:
    """The ``plain`` display, a sink: prints a line for each finished sample, and one now and then.

    A line says the state of the run, but not more often than ``REFRESH_HZ`` times a second: where thousands of samples end in
    a second, that would cost more than all else that is shown. It passes each event to its monitor first, so that the monitor
    is as far as the event.
    """

    def __init__(self, monitor: Monitor, console: Console) -> None:
        self._monitor = monitor
        self._console = console
        self._last = time.monotonic()
        self._said_s = float("-inf")
        self._stage = ""

    def notify(self, what: str, done: float | None, total: float | None) -> None:
        self._monitor.notify(what, done, total)
        now = time.monotonic()
        if what != self._stage or now - self._last >= PLAIN_INTERVAL_S:
            self._stage, self._last = what, now
            self._print(self._monitor.stage)

    def emit(self, event: Event) -> None:
        monitor = self._monitor
        line = sample_line(event, monitor) if event.kind == "sample_finished" else engine_line(event)
        monitor.emit(event)
        if line or monitor.seen - self._last >= PLAIN_INTERVAL_S:
            self._last = monitor.seen
            whole = monitor.seen - self._said_s >= 1 / REFRESH_HZ or monitor.finished == monitor.total
            if whole:
                self._said_s = monitor.seen
            state = headline(monitor) if whole else done(monitor)
            self._print(f"{line} · {state}" if line else state)

    def _print(self, line: str) -> None:
        # Not by the console's own `print`, whose layout of a single line takes longer than a short sample.
        self._console.file.write(visible(line) + "\n")
        self._console.file.flush()

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class JsonView:
    """The ``json`` display, a sink: prints a JSON object to stdout for each finished sample, and passes events to its monitor."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._fold = Summary()

    def emit(self, event: Event) -> None:
        self._monitor.emit(event)
        if isinstance(event, RunStarted):
            self._fold = Summary()
        self._fold.add(event)
        if isinstance(event, SampleFinished):
            row = self._fold.row(event.problem, event.repeat)
            print_json({"kind": "sample", **row.model_dump(mode="json")})

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def print_json(value: object) -> None:
    print_line(json.dumps(value, ensure_ascii=False))


def print_line(text: str) -> None:
    """Prints a line of JSON to stdout at once, without folding it."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def engine_line(event: Event) -> str:
    """Returns what became of an engine, or of an operation in it; empty for any other event."""
    if event.kind == "engine_failed":
        work = f"{event.requests} requests go on elsewhere or wait"
        return f"{event.engine} failed ({event.reason}), {work}: {harmless(event.error, 200)}"
    if event.kind == "engine_recovered":
        return f"{event.engine} works again after {event.down_s:.1f} s{with_changes(event)}"
    if event.kind == "operation_stuck":
        more = f", and {event.others} more there" if event.others else ""
        return (
            f"{harmless(event.operation, 100)} in {event.engine} brought nothing for {event.seconds:.0f} s{more}; the engine "
            f"counts as hung after {event.limit_s:g} s without any progress"
        )
    return ""


def with_changes(event: EngineRecovered) -> str:
    """Returns the settings that an engine works with now instead of others; empty if there are none."""
    changed = ", ".join(f"{name} {value}" for name, value in event.changed.items())
    return f" with {changed}" if changed else ""


def sample_line(event: SampleFinished, monitor: Monitor) -> str:
    """Returns the line of a sample whose end the monitor has not seen yet."""
    answer = "no answer" if event.answer is None else harmless(event.answer, 30)
    gold = harmless(monitor.gold(event.problem, event.repeat) or "-", 30)
    return f"{event.problem}/{event.repeat}: {event.outcome} ({answer}; gold {gold})"


# -------------------------------------------------------------------------------------------------------------- at the end


def print_report(console: Console, summary: RunSummary, title: str = "") -> None:
    """Prints all figures of a run to a console (stdout)."""
    if title:
        console.print(Text(title, style="bold"))
    console.print(_samples_table(summary))
    for line in figures(summary):
        console.print(Text(line), highlight=False, soft_wrap=True)
    if summary.tokens:
        console.print(_ledger_table(summary))


def _samples_table(summary: RunSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    seconds = "virtual s" if _virtual(summary) else "seconds"
    for name in ("problem", "answer", "gold", "outcome", "votes", "tracks ended", "tokens", seconds):
        table.add_column(name, justify="right" if name in ("tokens", seconds) else "left", overflow="fold")
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
    """Returns the run's numbers, one line a subject."""
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(summary.outcomes.items()))
    lines: list[str] = []
    if summary.accuracy is not None:
        graded = sum(count for name, count in summary.outcomes.items() if name != "ungraded")
        lines.append(f"accuracy    {summary.accuracy:.1%} of {graded} samples ({outcomes}){_within(summary)}")
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
    kind = " of virtual time" if _virtual(summary) else ""
    lines.append(f"time        {summary.seconds:.1f} s{kind}{_each(summary)}; requests, side by side: {phases}")
    if summary.chain_length is not None:
        chains = f"{summary.chain_length:.1f} tokens kept by {summary.chains} tracks with an answer, on average"
        share = "" if summary.draft_share is None else f"; {summary.draft_share:.1%} of all kept by the draft"
        lines.append(f"chains      {chains}{share}")
    if summary.decode_flops is not None and summary.all_flops is not None:
        lines.append(
            f"FLOPs       {summary.decode_flops:.3g} to decode, {summary.all_flops:.3g} with what was read of prompts"
        )
    for role, use in summary.engines.items():
        if use.failures:
            lines.append(
                f"failures    {role}: {use.failures}, {use.down_s:.1f} s without an engine; its requests went on"
            )
    if summary.deferred:
        lines.append(f"room        tracks gave theirs to older ones {summary.deferred} times")
    return lines


def _within(summary: RunSummary) -> str:
    """The 95 % interval of the accuracy, by problem."""
    found = summary.intervals and summary.intervals.accuracy
    return f"; 95 % interval {found.low:.0%} to {found.high:.0%}" if found else ""


def _each(summary: RunSummary) -> str:
    """The mean of a sample with its interval, where there is one."""
    found = summary.intervals and summary.intervals.seconds
    return f", a sample {found.value:.1f} s ({found.low:.1f} to {found.high:.1f})" if found else ""


def _ledger_table(summary: RunSummary) -> Table:
    """Makes a table with a column a model: the fate of its tokens, and its engine's time. Rows without a number are left out."""
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
    yield (
        "a virtual second" if _virtual(summary) else "a second",
        [f"{rates[role]:.1f}" if role in rates else "" for role in summary.tokens],
    )
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


def _virtual(summary: RunSummary) -> bool:
    """Whether the run's engines were simulated, so that its times are virtual."""
    return any(use.facts is not None and is_simulated(use.facts.name) for use in summary.engines.values())


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
