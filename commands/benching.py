"""``bench``: measurements of the runtime itself, of schedules, of load, and of real models."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from speclrm.commands.plumbing import guard, stdout
from speclrm.commands.settings import configurable
from speclrm.runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.bench.figures import BenchReport

Quick = Annotated[bool, typer.Option("--quick", help="A version that takes about a minute.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        help="Where the report and its charts go; must be new or empty.", show_default="runs/<time>-bench-<name>"
    ),
]
PlotFormat = Annotated[Literal["svg", "png"], typer.Option(help="The form of the charts.")]


bench_app = typer.Typer(help="Measure: the runtime's own cost, schedules, load, real models.", no_args_is_help=True)


def overhead(
    tracks: Annotated[str, typer.Option(help="Numbers of tracks at once, with commas between.")] = "10,100,1000,10000",
    contexts: Annotated[str, typer.Option(help="Ids in a track's prompt, with commas between.")] = "200,8000",
    loop: Annotated[Literal["both", "uvloop", "asyncio"], typer.Option(help="The event loop.")] = "both",
    runs: Annotated[int, typer.Option(min=1, help="Repetitions of each; more where there are few tracks.")] = 3,
    quick: Quick = False,
    json: Json = False,
    output_dir: OutputDir = None,
    plot_format: PlotFormat = "svg",
) -> None:
    """The runtime's own CPU time a step and memory a track, on engines that answer at once."""

    def measure() -> BenchReport:
        from speclrm.bench import overhead as benchmark

        return benchmark.measure(
            loops=("uvloop", "asyncio") if loop == "both" else (loop,),
            tracks=whole_numbers("--tracks", tracks),
            contexts=whole_numbers("--contexts", contexts),
            runs=runs,
            quick=quick,
            notify=tell,
        )

    bench("overhead", measure, json=json, output_dir=output_dir, plot_format=plot_format)


def bench(
    name: str,
    measure: Callable[[], BenchReport],
    *,
    json: bool,
    output_dir: Path | None,
    plot_format: Literal["svg", "png"] = "svg",
) -> None:
    """Runs one benchmark as a command: its folder is checked first, its report printed and kept.

    A figure that does not hold is said and is no error. ``measure`` raises UsageError for what cannot be done.
    """

    def start() -> None:
        from speclrm.bench import figures
        from speclrm.runtime import run_directory

        folder = output_dir or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-bench-{name}"
        run_directory.check_free(folder)
        report = measure().model_copy(update={"command": " ".join(["speclrm", *sys.argv[1:]])})
        written = figures.write(report, folder, plot_format)
        if json:
            from speclrm.display import print_json

            print_json(report.model_dump(mode="json"))
            return
        console = stdout()
        figures.print_report(console, report)
        line = f"kept in     {folder}: {', '.join(path.name for path in written)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    guard(start)


def whole_numbers(option: str, text: str) -> list[int]:
    """Numbers from 1 with commas between. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UsageError(f"{option} {text!r}: write whole numbers from 1 with commas between.")
    return [int(part) for part in parts]


def tell(what: str) -> None:
    """Progress, on stderr, where a person looks on."""
    if sys.stderr.isatty():
        typer.echo(f"  {what}", err=True)


def add_to(app: typer.Typer) -> None:
    """Puts the group into the command line."""
    for name, function in {"overhead": overhead}.items():
        bench_app.command(name)(configurable(f"bench-{name}")(function))
    app.add_typer(bench_app, name="bench")
