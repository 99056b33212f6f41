"""``resume`` and ``replay``: what a run's folder is good for after the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speclrm.commands.options import MODELS, RUN, STRATEGY, Display, LogFile, LogLevelOption
from speclrm.commands.screen import Screen, first_error, guard, print_paths, run_async, stdout
from speclrm.runtime.errors import SettingsError, SpecLRMError

if TYPE_CHECKING:
    from speclrm.api import RunReport
    from speclrm.app.settings_diff import ReplayReport

SHOWN_MAX = 40
"""Lines of each kind that a report shows."""

RunDirectory = Annotated[Path, typer.Argument(help="The folder of a run: its --output-dir.", metavar="RUN_DIR")]


def resume(
    run_dir: RunDirectory,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Samples at work at once.", rich_help_panel=RUN, show_default="as before")
    ] = None,
    kv_cache_gib: Annotated[
        float | None,
        typer.Option(help="GiB of key-value cache for each engine.", show_default="as before", rich_help_panel=MODELS),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(help="Share of a GPU's memory.", show_default="as before", rich_help_panel=MODELS),
    ] = None,
    tensor_parallel_size: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs that share an engine.", show_default="as before", rich_help_panel=MODELS),
    ] = None,
    engine_log: Annotated[
        Path | None, typer.Option(help="Where the engines write their own log.", rich_help_panel=MODELS)
    ] = None,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Go on with a run that was cut short, inside its problems.

    Finished samples stay as they are, tracks continue where they were, with the same seeds. A run that has ended is left
    alone.
    """

    def start() -> None:
        from speclrm import api
        from speclrm.runtime.run_directory import read_record

        given = {
            "concurrency": concurrency,
            "kv_cache_gib": kv_cache_gib,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel_size,
            "engine_log": engine_log,
        }
        harmless = {name: value for name, value in given.items() if value is not None}
        target = str(read_record(run_dir).config.get("target") or "")
        with Screen(display, log_file, log_level) as screen:
            report = run_async(
                lambda: api.resume(
                    run_dir, harmless=harmless, sinks=screen.sinks, notify=screen.notify, plan=screen.monitor.plan
                ),
                virtual=api.is_simulated(target),
            )
        show(report, screen.kind)

    guard(start)


def show(report: RunReport, kind: str) -> None:
    """What a run came to. Raises SpecLRMError where every track failed."""
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


def replay(
    run_dir: RunDirectory,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="What if: another value for an option of the recipe; may be given again.",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    continue_: Annotated[
        bool,
        typer.Option(
            "--continue", help="Go on with engines where the record ends, in a new folder.", rich_help_panel=RUN
        ),
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="That folder; must be new or empty.", rich_help_panel=RUN)
    ] = None,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Play a recorded run again, without engines, and compare; or ask what would have been.

    Exit code 1 where it does not come to the same. Nothing in the run's folder is changed.
    """

    def start() -> None:
        from speclrm import api
        from speclrm.app.settings_diff import read_settings

        settings = read_settings(set_ or [])
        if continue_ != (output_dir is not None):
            raise SettingsError("--continue writes a new run: give both --continue and --output-dir DIR, or neither.")
        with Screen(display, log_file, log_level) as screen:
            replayed = run_async(lambda: api.replay(run_dir, settings, screen.notify), virtual=True)
        _print(replayed.report, screen.kind)
        directory = output_dir
        if directory is not None:
            with Screen(display, log_file, log_level) as again:
                report = run_async(
                    lambda: api.go_on(
                        replayed, settings, directory, sinks=again.sinks, notify=again.notify, plan=again.monitor.plan
                    ),
                    virtual=api.is_simulated(replayed.options.target or ""),
                )
            show(report, again.kind)
        elif not replayed.report.equal:
            raise typer.Exit(1)

    guard(start)


def _print(report: ReplayReport, kind: str) -> None:
    if kind == "json":
        from speclrm.commands.display import print_json

        print_json({"kind": "replay", "equal": report.equal, **report.model_dump(mode="json")})
        return
    from speclrm.commands.display import harmless

    console = stdout()

    def line(text: str) -> None:
        console.print(harmless(text, 400), markup=False, highlight=False, soft_wrap=True)

    asked = ", ".join(f"{name}={value}" for name, value in report.changed.items())
    line(f"replay      run {report.run} ({report.status}){', with ' + asked if asked else ''}")
    line(f"events      {report.repeated} of {report.events} came again as recorded")
    line(
        f"results     {report.same} of {report.recorded_results} the same, byte for byte; {report.results} came to an end"
    )
    _several("differs", [_place(one) + f": {one.recorded} -> {one.now}" for one in report.differences], line)
    _several(
        "stops",
        [f"{_place(one)}, after {one.steps} steps: {one.operation}: {one.why}" for one in report.stops],
        line,
    )
    votes = [
        f"{sample}: " + ", ".join(f"{answer} by {' '.join(names)}" for answer, names in classes)
        for sample, classes in report.votes.items()
    ]
    _several("votes", votes, line)
    line("verdict     " + ("the same run" if report.equal else "not the same"))


def _place(one: Any) -> str:
    track = "" if one.track is None else f", track {one.track}"
    step = "" if one.step is None else f", step {one.step}"
    return f"{one.problem}/{one.repeat}{track}{step}"


def _several(label: str, items: list[str], line: Any) -> None:
    for item in items[:SHOWN_MAX]:
        line(f"{label:<11} {item}")
    if len(items) > SHOWN_MAX:
        line(f"{label:<11} and {len(items) - SHOWN_MAX} more; --display json has them all")
