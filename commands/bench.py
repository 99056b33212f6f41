"""``bench``: measures the runtime itself, schedules, load, and real models."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speclrm.app.options import RUN_DECLARED, EngineOptions, RunOptions
from speclrm.commands.config_file import configurable
from speclrm.commands.errors import checked, guard, say
from speclrm.commands.from_options import Given, only, takes
from speclrm.commands.number_lists import positive, whole_numbers
from speclrm.commands.screen import run_async, stdout
from speclrm.runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from speclrm.benchmarks.report import BenchReport

Quick = Annotated[bool, typer.Option("--quick", help="Run a shorter version of about a minute.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the report and its charts; must be new or empty.", show_default="runs/<time>-bench-<name>"
    ),
]
PlotFormat = Annotated[Literal["svg", "png"], typer.Option(help="Format of the charts.")]


Modes = Annotated[
    str,
    typer.Option(
        help="Modes to compare, separated by commas: a strategy, with options as in speculative:score_threshold=5, or "
        "lock-step. Figures compare the first with each other one."
    ),
]
LOAD = {
    "target": "sim/qwq-32b",
    "draft": "sim/r1-1.5b",
    "dataset": "sim:a70",
    "tracks": 5,
    "token_budget": None,
    "seed": 0,
}
"""Options of a run that `bench load` takes, with its defaults."""
REAL = {
    "target": "qwen2.5-coder-0.5b-instruct",
    "draft": "smollm2-135m-instruct",
    "dataset": "reasoning-gym:chain_sum?min_terms=3&max_terms=3",
    "limit": 6,
    "tracks": 3,
    "token_budget": 160,
    "max_step_tokens": 64,
    "score_threshold": None,
    "score_method": None,
    "seed": 0,
}
"""Options of a run that `bench real` takes, with its defaults."""

ENGINES = tuple(name for name in EngineOptions.model_fields if name not in ("target", "draft"))
"""Options of how engines are loaded, which both take."""

bench_app = typer.Typer(help="Measure the runtime's own cost, schedules, load, and real models.", no_args_is_help=True)


def overhead(
    tracks: Annotated[
        str, typer.Option(help="Numbers of concurrent tracks, separated by commas.")
    ] = "10,100,1000,10000",
    contexts: Annotated[
        str, typer.Option(help="Prompt lengths of a track in tokens, separated by commas.")
    ] = "200,8000",
    loop: Annotated[Literal["both", "uvloop", "asyncio"], typer.Option(help="Event loop to measure.")] = "both",
    runs: Annotated[int, typer.Option(min=1, help="Repetitions of each case; more for few tracks.")] = 3,
    quick: Quick = False,
    json: Json = False,
    output_dir: OutputDir = None,
    plot_format: PlotFormat = "svg",
) -> None:
    """Measure the runtime's own CPU time per step and memory per track, on engines that cost nothing."""

    def measure() -> BenchReport:
        from speclrm.benchmarks import overhead as benchmark

        return benchmark.measure(
            loops=("uvloop", "asyncio") if loop == "both" else (loop,),
            tracks=whole_numbers("--tracks", tracks),
            contexts=whole_numbers("--contexts", contexts),
            runs=runs,
            quick=quick,
            notify=tell,
        )

    bench("overhead", measure, json=json, output_dir=output_dir, plot_format=plot_format)


def schedule(
    mixes: Annotated[str, typer.Option(help="Simulated datasets, separated by commas.")] = "aime-mix,a70,a85",
    tracks: Annotated[str, typer.Option(help="Numbers of concurrent tracks, separated by commas.")] = "1,5,20,110",
    device: Annotated[
        Literal["both", "own", "shared"], typer.Option(help="Devices of the engines: one each, or one shared.")
    ] = "both",
    seed: Annotated[int, typer.Option(help="Random seed of the simulated world.")] = 0,
    quick: Quick = False,
    json: Json = False,
    output_dir: OutputDir = None,
    plot_format: PlotFormat = "svg",
) -> None:
    """Compare schedules on simulated engines: lock-step, free-running, each option, the target alone."""

    def measure() -> BenchReport:
        from speclrm.benchmarks import schedule as benchmark

        counts = whole_numbers("--tracks", tracks)
        return benchmark.measure(
            mixes=[part.strip() for part in mixes.split(",") if part.strip()],
            tracks=[count for count in counts if count <= 5] or counts[:1] if quick else counts,
            devices=("own", "shared") if device == "both" else (device,),
            seed=seed,
            quick=quick,
            notify=tell,
        )

    bench("schedule", measure, json=json, output_dir=output_dir, plot_format=plot_format)


@takes(only(RUN_DECLARED, (*LOAD, *ENGINES)), LOAD)
def load(
    given: Given,
    rates: Annotated[str, typer.Option(help="Problems per minute, separated by commas.")] = "1,2,4,8",
    problems: Annotated[int, typer.Option(min=1, help="Number of problems at each rate.")] = 30,
    modes: Modes = "speculative,parallel",
    quick: Quick = False,
    json: Json = False,
    output_dir: OutputDir = None,
    plot_format: PlotFormat = "svg",
) -> None:
    """Measure the time to an answer while problems arrive at random, by rate and mode."""

    def measure() -> BenchReport:
        from speclrm.benchmarks import load as benchmark
        from speclrm.benchmarks.modes import read_modes
        from speclrm.runtime.engines.simulated.presets import is_simulated

        chosen = read_modes(modes)
        options = checked(RunOptions, strategy=chosen[0].strategy, **LOAD | {"plan": "plain"} | given)
        return run_async(
            lambda: benchmark.measure(
                options, modes=chosen, rates=positive("--rates", rates), problems=problems, quick=quick, notify=tell
            ),
            virtual=is_simulated(options.target or ""),
        )

    bench("load", measure, json=json, output_dir=output_dir, plot_format=plot_format)


@takes(only(RUN_DECLARED, (*REAL, *ENGINES)), REAL)
def real(
    given: Given,
    modes: Modes = "speculative,parallel,lock-step",
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds; each runs every mode once.")] = 2,
    bare: Annotated[bool, typer.Option(help="Also measure the target alone against bare vLLM.")] = True,
    quick: Quick = False,
    json: Json = False,
    output_dir: OutputDir = None,
    plot_format: PlotFormat = "svg",
) -> None:
    """Compare modes on the same real models, the target alone with bare vLLM, and CPU time."""

    def measure() -> BenchReport:
        from speclrm.benchmarks import real as benchmark
        from speclrm.benchmarks.modes import read_modes

        chosen = read_modes(modes)
        options = checked(RunOptions, strategy=chosen[0].strategy, **REAL | {"plan": "plain"} | given)
        return run_async(
            lambda: benchmark.measure(options, modes=chosen, rounds=rounds, bare=bare, quick=quick, notify=tell)
        )

    bench("real", measure, json=json, output_dir=output_dir, plot_format=plot_format)


@takes(only(RUN_DECLARED, ENGINES), {})
def gpu(
    given: Given,
    shape: Annotated[
        str,
        typer.Option(help="Shapes of target and draft: qwq-32b, r1-1.5b, qwen2.5-1.5b, qwen2.5-0.5b, tiny, tiny-wide."),
    ] = "qwq-32b:r1-1.5b",
    minutes: Annotated[
        float, typer.Option(min=0.5, help="Minutes in all, loading included; what does not fit is left out.")
    ] = 14,
    tracks: Annotated[str, typer.Option(help="Numbers of concurrent tracks, separated by commas.")] = "5,20,1,110",
    acceptance: Annotated[
        str, typer.Option(help="Shares of drafts that pass, from 0 to 1, separated by commas.")
    ] = "0.85,0.7,0.46",
    token_budget: Annotated[int, typer.Option(min=1, help="Maximum tokens per track.")] = 768,
    max_step_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per step.")] = 32,
    tokenizer: Annotated[
        str, typer.Option(help="Model, known name or folder, whose tokenizer both shapes get.")
    ] = "qwen2.5-coder-0.5b-instruct",
    seed: Annotated[int, typer.Option(help="Random seed of requests and of the coin.")] = 0,
    json: Json = False,
    output_dir: OutputDir = None,
    plot_format: PlotFormat = "svg",
) -> None:
    """Measure what drafting brings on this machine's GPU, with models of random weights, beside the simulator.

    Prints a JSON line for each turn as it comes, then the table.
    """

    def measure() -> BenchReport:
        from tempfile import TemporaryDirectory

        from speclrm.benchmarks import gpu as benchmark
        from speclrm.benchmarks.shapes import read_pair

        pair = read_pair(shape)
        chances = positive("--acceptance", acceptance)
        if max(chances) > 1:
            raise UsageError(f"--acceptance {acceptance!r}: write shares up to 1, such as 0.7.")
        plan = benchmark.Plan(
            tuple(whole_numbers("--tracks", tracks)), tuple(chances), token_budget, max_step_tokens, seed
        )
        with TemporaryDirectory(prefix="speclrm-shapes-") as folder:
            return run_async(
                lambda: benchmark.measure(
                    pair,
                    given,
                    plan,
                    tokenizer=tokenizer,
                    folder=Path(folder),
                    minutes=minutes,
                    say=tell_row,
                    notify=tell,
                )
            )

    bench("gpu", measure, json=json, output_dir=output_dir, plot_format=plot_format)


def tell_row(row: Mapping[str, Any]) -> None:
    """Prints one JSON line on stdout, at once."""
    from speclrm.commands.display import print_json

    print_json(row)


def bench(
    name: str,
    measure: Callable[[], BenchReport],
    *,
    json: bool,
    output_dir: Path | None,
    plot_format: Literal["svg", "png"] = "svg",
) -> None:
    """Runs one benchmark as a command: checks its folder, measures, prints and writes the report.

    A missed bound is printed and is no error. ``measure`` raises UsageError for what cannot be done.
    """

    def start() -> None:
        from speclrm.benchmarks import report as figures
        from speclrm.commands.logs import configure
        from speclrm.runtime.trace import run_directory

        configure("warning")
        folder = output_dir or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-bench-{name}"
        run_directory.check_free(folder)
        report = measure().model_copy(update={"command": " ".join(["speclrm", *sys.argv[1:]])})
        console = stdout()
        if json:
            from speclrm.commands.display import print_json

            print_json(report.model_dump(mode="json"))
        else:
            figures.print_report(console, report)
        # Printed before it is written: a full disk must not lose what took minutes to measure.
        written = figures.write(report, folder, plot_format)
        if json:
            return
        line = f"kept in     {folder}: {', '.join(path.name for path in written)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    guard(start)


def tell(what: str) -> None:
    """Prints progress on stderr if it is a terminal."""
    if sys.stderr.isatty():
        say(f"  {what}", err=True)


def add_to(app: typer.Typer) -> None:
    """Adds the command group."""
    for name, function in {"schedule": schedule, "overhead": overhead, "load": load, "real": real, "gpu": gpu}.items():
        bench_app.command(name)(configurable(f"bench-{name}")(function))
    app.add_typer(bench_app, name="bench")
