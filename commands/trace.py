"""``trace``: checks, shows, counts, follows and exports the trace of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speclrm.commands.config_file import configurable
from speclrm.commands.errors import guard, say
from speclrm.commands.screen import stdout
from speclrm.runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speclrm.runtime.events import Event

POLL_S = 0.2

trace_app = typer.Typer(
    help="Check, show, count, follow or export a run's trace.",
    no_args_is_help=True,
)
Source = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a trace file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SkipUnknown = Annotated[
    bool, typer.Option("--skip-unknown", help="Skip events of kinds that this version does not know.")
]
Problem = Annotated[str | None, typer.Option("--problem", help="Only this problem.")]
Repeat = Annotated[int | None, typer.Option("--repeat", help="Only this repeat of each problem.")]
Track = Annotated[str | None, typer.Option("--track", help="Only this track of each sample.")]
Kind = Annotated[str | None, typer.Option("--kind", help="Only events of this kind, one per line.")]


@trace_app.command("check")
@configurable("trace-check")
def check(run: Source, json: Json = False) -> None:
    """Verify a trace and the files derived from it; print each violation; exit with 1 if there is one."""

    def start() -> None:
        from speclrm.app import trace_check
        from speclrm.commands.display import harmless, print_json

        report = trace_check.check(run, _notice)
        wrong = len(report.violations) + report.more
        if json:
            violations = [one._asdict() for one in report.violations]
            print_json(
                {
                    "events": report.events,
                    "violations": violations,
                    "more_violations": report.more,
                    "unfinished": list(report.unfinished),
                }
            )
        else:
            for path, line, rule, text in report.violations:
                place = f"{path}:{line}" if line else path
                say(f"{place}: {rule}: {harmless(text, 400)}")
            if report.more:
                say(f"and {report.more} more")
            for text in report.unfinished:
                say(f"unfinished: {harmless(text, 400)}")
            say(f"{report.events} events, {wrong} violations" if wrong else f"{report.events} events, all is well")
        if wrong:
            raise typer.Exit(1)

    guard(start)


@trace_app.command("show")
@configurable("trace-show")
def show(
    run: Source,
    problem: Problem = None,
    repeat: Repeat = None,
    track: Track = None,
    kind: Kind = None,
    json: Json = False,
    skip_unknown: SkipUnknown = False,
) -> None:
    """Print samples: steps with scores, rejected drafts struck out, rewrites, votes."""

    def start() -> None:
        from speclrm.commands.display import print_line
        from speclrm.commands.transcript import one_line, transcripts

        console = stdout()
        found = False
        events = _chosen(
            _events(run, skip_unknown=skip_unknown), problem, repeat, track if kind or json else None, kind
        )
        if json:
            for event in events:
                found = True
                print_line(event.model_dump_json())
        else:
            lines = (one_line(event, console.width) for event in events) if kind else transcripts(events, track)
            for line in lines:
                found = True
                console.print(line, soft_wrap=True)
        if not found:
            raise UsageError(f"{run} has nothing of that. `speclrm trace stats {run}` counts what it has.")

    guard(start)


@trace_app.command("stats")
@configurable("trace-stats")
def stats(run: Source, json: Json = False, skip_unknown: SkipUnknown = False) -> None:
    """Count events, bytes and tokens of a trace by kind."""

    def start() -> None:
        from rich.table import Table

        from speclrm.commands.display import print_json
        from speclrm.evaluators.trace_stats import StatsFold
        from speclrm.runtime.trace.reader import read_placed

        fold = StatsFold()
        for placed in read_placed(run, _notice, skip_unknown=skip_unknown):
            fold.add(placed.event, placed.size)
        found = fold.stats()
        if json:
            print_json(found.model_dump(mode="json"))
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("kind")
        for name in ("events", "bytes", "bytes each", "share", "per second"):
            table.add_column(name, justify="right")
        for kind, one in found.kinds.items():
            share = one.bytes / max(found.bytes, 1)
            table.add_row(
                kind, str(one.count), str(one.bytes), f"{one.bytes / one.count:.0f}", f"{share:.1%}", f"{one.per_s:g}"
            )
        console = stdout()
        console.print(table)
        tokens = ", ".join(f"{role} {count} ({found.tokens_per_s[role]:.0f}/s)" for role, count in found.tokens.items())
        for line in (
            f"run         {found.run}: {found.events} events in {found.bytes} bytes over {found.seconds:.1f} s, "
            f"{found.attempts} attempt{'s' if found.attempts != 1 else ''}",
            f"steps       {found.steps} committed; ids of all steps: {tokens or 'none'}",
            f"text        {found.text_bytes} bytes of model text",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if found.step_bytes is not None:
            console.print(f"size        {found.step_bytes:.0f} bytes a step + 8 a token", highlight=False)

    guard(start)


@trace_app.command("tail")
@configurable("trace-tail")
def tail(
    run: Source,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new events until the run ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of latest events to print first.")] = 10,
    json: Json = False,
) -> None:
    """Print the latest events of a trace, and with -f new ones as they come."""

    def start() -> None:
        from speclrm.app import trace_check
        from speclrm.commands.display import print_line
        from speclrm.commands.transcript import one_line

        console = stdout()
        for placed in trace_check.follow(run, lines, (lambda: time.sleep(POLL_S)) if follow else None):
            if json:
                print_line(placed.event.model_dump_json())
            else:
                console.print(one_line(placed.event, console.width), soft_wrap=True)

    guard(start)


@trace_app.command("export")
@configurable("trace-export")
def export(
    run: Source,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="New .csv or .parquet file.")],
    rows: Annotated[
        Literal["steps", "samples"], typer.Option("--rows", help="One row per step, or one per sample.")
    ] = "steps",
    problem: Problem = None,
    repeat: Repeat = None,
    track: Track = None,
    skip_unknown: SkipUnknown = False,
) -> None:
    """Write a table of steps or samples as CSV, or as Parquet if pyarrow is installed."""

    def start() -> None:
        from speclrm.evaluators.export import export as write

        if rows == "samples" and track is not None:
            raise UsageError("A row of --rows samples has all tracks in it. Leave --track out, or take --rows steps.")
        events = _chosen(_events(run, skip_unknown=skip_unknown), problem, repeat, track, None)
        count = write(events, output, rows)
        say(f"{output}: {count} {rows}")

    guard(start)


@trace_app.command("pairs")
@configurable("trace-pairs")
def pairs(
    run: Source,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="New .parquet file.")],
    problem: Problem = None,
    repeat: Repeat = None,
    track: Track = None,
    skip_unknown: SkipUnknown = False,
) -> None:
    """Write a table of drafts for training: context, draft, rewrite, score, digit probabilities, outcome, as Parquet."""

    def start() -> None:
        from speclrm.evaluators.export import export as write

        if output.suffix != ".parquet":
            raise UsageError(f"{output}: pairs have lists of numbers in them. Choose a name that ends in .parquet.")
        events = _events(run, skip_unknown=skip_unknown)
        if track is not None:  # the events of whole samples have no track
            events = (event for event in events if getattr(event, "track", track) == track)
        count = write(_chosen(events, problem, repeat, None, None), output, "pairs")
        say(f"{output}: {count} drafts")

    guard(start)


@trace_app.command("anomalies")
@configurable("trace-anomalies")
def anomalies(
    run: Source,
    stall: Annotated[
        float, typer.Option("--stall", min=0, help="Seconds without an event that count as a stall.")
    ] = 60.0,
    json: Json = False,
    skip_unknown: SkipUnknown = False,
) -> None:
    """List what looks wrong: unfinished work, the longest waits, stalled tracks, low digit mass, retries."""

    def start() -> None:
        from speclrm.commands.display import harmless, print_json
        from speclrm.evaluators.anomalies import LOW_MASS, AnomalyFold

        fold = AnomalyFold(stall)
        for event in _events(run, skip_unknown=skip_unknown):
            fold.add(event)
        found = fold.anomalies()
        if json:
            print_json(found.model_dump(mode="json"))
            return

        def section(title: str, lines: list[str]) -> None:
            say(title)
            for line in lines:
                say(f"  {harmless(line, 200)}")

        if not found.finished:
            say("the run did not end")
        section(
            f"never left: {len(found.open_tracks)} tracks",
            [
                f"{one.track}: since {one.since_s:.1f} s ({one.last}) waits for {one.awaits}"
                for one in found.open_tracks
            ],
        )
        section("longest queued", [f"{one.seconds:.3f} s {one.operation}" for one in found.longest_queued])
        section("longest in an engine", [f"{one.seconds:.3f} s {one.operation}" for one in found.longest_served])
        section(
            f"stalls of at least {stall:g} s: {found.stalls}",
            [
                f"{one.track}: from {one.from_s:.1f} to {one.to_s:.1f} s, before {one.before}"
                for one in found.longest_stalls
            ],
        )
        section(
            f"digit mass under {LOW_MASS:g}: {found.low_masses} of {found.scores} scores",
            [f"{one.step}: {one.mass:.3f}, said {one.said!r}" for one in found.lowest_masses],
        )
        given_up = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items()) or "none"
        section(
            f"operations given up: {given_up}; asked again: {found.again}; steps of several requests: {found.continued}",
            [],
        )
        section(f"failed tracks: {len(found.failed_tracks)}", list(found.failed_tracks))
        section(
            f"engine failures: {len(found.engine_failures)}, recovered: {found.recoveries}", list(found.engine_failures)
        )

    guard(start)


def _notice(text: str) -> None:
    say(f"note: {text}", err=True)


def _events(run: Path, *, skip_unknown: bool) -> Iterator[Event]:
    from speclrm.runtime.trace.reader import read_trace

    return read_trace(run, _notice, skip_unknown=skip_unknown)


def _chosen(
    events: Iterator[Event], problem: str | None, repeat: int | None, track: str | None, kind: str | None
) -> Iterator[Event]:
    wanted: dict[str, Any] = {"problem": problem, "repeat": repeat, "track": track, "kind": kind}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    for event in events:
        if all(getattr(event, name, None) == value for name, value in wanted.items()):
            yield event
