"""``demo``: compares drafting with the target alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from speclrm.commands.calibrate import print_calibration
from speclrm.commands.errors import guard
from speclrm.commands.screen import Screen, engines, print_paths, run_async, stdout
from speclrm.commands.screen_options import Display, LogFile, LogLevelOption


def demo(
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder for the two runs.", show_default="runs/<time>-demo")
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
    """Solve a few problems with a draft and a target, then with the target alone, and compare."""

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
        console.print()
        print_report(console, comparison.speculative, f"{options.draft} drafts, {options.target} scores and rewrites")
        console.print()
        print_report(console, comparison.alone, f"{options.target} alone, as many tracks at once")
        console.print()
        for line in demonstration.verdict(comparison):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for name in ("speculative", "baseline"):
            print_paths(console, directory / name)

    guard(start)
