"""``resume``: continues an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speclrm.app.options import RUN_DECLARED, RunOptions
from speclrm.commands.errors import checked, guard
from speclrm.commands.from_options import Given, only, takes
from speclrm.commands.screen import Screen, engines, first_error, print_paths, run_async, stdout
from speclrm.commands.screen_options import Display, LogFile, LogLevelOption
from speclrm.runtime.errors import SpecLRMError

if TYPE_CHECKING:
    from speclrm.app.runs import RunReport

RunDirectory = Annotated[Path, typer.Argument(help="Folder of the run: its --output-dir.", metavar="RUN_DIR")]
HARMLESS = tuple(
    name
    for name, one in RUN_DECLARED.items()
    if one.option.effect == "place" and name not in ("output_dir", "compress_trace")
)
"""Options that may change between two attempts at a run: when and where things are computed."""


@takes(only(RUN_DECLARED, HARMLESS), unset="as before")
def resume(
    run_dir: RunDirectory,
    given: Given,
    override: Annotated[
        bool,
        typer.Option(
            "--override", help="Go on although settings, models or data are others now, and record the change."
        ),
    ] = False,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Continue an interrupted run where each of its tracks was, with the same seeds.

    Finished samples are not run again. A run that has ended is left alone.
    """

    def start() -> None:
        from speclrm.app.resume import resume as resume_run
        from speclrm.runtime.engines.simulated.presets import is_simulated
        from speclrm.runtime.trace.run_directory import read_record

        checked(RunOptions, strategy="", dataset="", **given)
        target = str(read_record(run_dir).config.get("target") or "")
        with Screen(display, log_file, log_level) as screen:
            report = run_async(
                lambda: resume_run(
                    run_dir,
                    harmless=given,
                    override=override,
                    sinks=screen.sinks,
                    notify=screen.notify,
                    plan=screen.monitor.plan,
                    engines=engines(),
                ),
                virtual=is_simulated(target),
            )
        show(report, screen.kind)

    guard(start)


def show(report: RunReport, kind: str) -> None:
    """Prints a run's report. Raises SpecLRMError if every track failed."""
    if kind == "json":
        from speclrm.commands.display import print_json

        print_json({"kind": "summary", **report.summary.model_dump(mode="json", exclude={"samples"})})
    else:
        from speclrm.commands.display import print_report

        console = stdout()
        if report.done_before:
            line = f"{report.directory}: the run had finished already; nothing to do"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        print_report(console, report.summary)
        print_paths(console, report.directory)
    if report.summary.outcomes and set(report.summary.outcomes) == {"error"}:
        raise SpecLRMError(f"Every track failed. The first error: {first_error(report.summary)}")
