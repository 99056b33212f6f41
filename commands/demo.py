"""``demo``: compares drafting with the target alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speclrm.commands.calibrate import print_calibration
from speclrm.commands.errors import guard
from speclrm.commands.screen import Screen, engines, print_paths, run_async, stdout
from speclrm.commands.screen_options import Display, LogFile, LogLevelOption

if TYPE_CHECKING:
    from rich.console import Console

SIMULATED = "a85"
PLACEMENTS = {
    "one each": (False, False),
    "one, by time slices": (True, False),
    "one, side by side (MPS; how fast is assumed)": (True, True),
}
"""Of the simulated engines: whether they share a device, and whether by MPS."""
SIMULATED_RECIPE = {"token_budget": 2_000}
"""Short tracks: the table takes seconds."""


def demo(
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder for the runs.", show_default="runs/<time>-demo")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target model.", show_default="a known 0.5B model")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft model.", show_default="a known 135M model")] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset to solve.", show_default="sums of three numbers")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of problems.", show_default="6")] = None,
    tracks: Annotated[int | None, typer.Option(min=1, help="Parallel tracks per problem.", show_default="3")] = None,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Solve a few problems with a draft and a target, and with the target alone, in turns, and compare."""

    def start() -> None:
        from speclrm.app import demo as demonstration

        given = {"target": target, "draft": draft, "dataset": dataset, "limit": limit, "tracks": tracks}
        options = demonstration.DemoOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        directory = output_dir or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-demo"
        with Screen(display, log_file, log_level) as screen:
            comparison = run_async(
                lambda: demonstration.compare(
                    options,
                    directory,
                    sinks=screen.sinks,
                    notify=screen.notify,
                    plan=screen.monitor.plan,
                    make=engines(),
                )
            )
        from speclrm.commands.display import print_report

        console = stdout()
        print_calibration(console, comparison.calibration)
        for line in demonstration.drafted_lines(comparison):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print()
        drafts = f"{options.draft} drafts where it pays, {options.target} scores and rewrites"
        print_report(console, comparison.speculative[0], drafts)
        console.print()
        print_report(console, comparison.alone[0], f"{options.target} alone, as many tracks at once")
        console.print()
        for line in demonstration.verdict(comparison):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for name in comparison.folders:
            print_paths(console, directory / name)
        console.print()
        _print_simulated(console)

    guard(start)


def _print_simulated(console: Console) -> None:
    """Prints what the same strategies do on simulated engines with the costs of a GPU."""
    from rich.table import Table

    from speclrm.benchmarks.schedule import DRAFT, TARGET, simulate

    heading = f"The same strategies on {TARGET} with drafts by {DRAFT}, simulated with the costs measured on an H200:"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("tracks", "devices", "target alone", "auto", "speed-up", "drafts kept"):
        table.add_column(name, justify="left" if name == "devices" else "right")
    for tracks in (5, 20):
        for devices, (shared, mps) in PLACEMENTS.items():
            alone, auto = (
                simulate(SIMULATED, tracks, strategy, SIMULATED_RECIPE, shared=shared, mps=mps, seed=0)
                for strategy in ("parallel", "speculative")
            )
            kept = auto.summary.acceptance
            table.add_row(
                str(tracks),
                devices,
                f"{alone.rate:.0f} tok/s",
                f"{auto.rate:.0f} tok/s",
                f"{auto.rate / alone.rate:.2f}x",
                "none" if kept is None else f"{kept:.0%}",
            )
    console.print(heading, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
