"""``replay``: replays a recorded run without engines and compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speclrm.commands.errors import guard
from speclrm.commands.resume import RunDirectory, show
from speclrm.commands.screen import Screen, engines, run_async, stdout
from speclrm.commands.screen_options import Display, LogFile, LogLevelOption
from speclrm.runtime.errors import SettingsError
from speclrm.strategies.option import RUN, STRATEGY

if TYPE_CHECKING:
    from speclrm.app.replay import ReplayReport

SHOWN_MAX = 40
"""Maximum lines of each kind in a report."""


def replay(
    run_dir: RunDirectory,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replay with another value of a strategy option; repeatable.",
            rich_help_panel=STRATEGY,
        ),
    ] = None,
    continue_: Annotated[
        bool,
        typer.Option(
            "--continue", help="Continue with engines where the record ends, in a new folder.", rich_help_panel=RUN
        ),
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder for --continue; must be new or empty.", rich_help_panel=RUN)
    ] = None,
    override: Annotated[
        bool,
        typer.Option(
            "--override", help="With --continue: go on although the models are others now.", rich_help_panel=RUN
        ),
    ] = False,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Replay a recorded run without engines and compare, or try other settings on its record.

    Exits with 1 if something differs. Changes nothing in the run's folder.
    """

    def start() -> None:
        from speclrm.app.replay import go_on, read_settings
        from speclrm.app.replay import replay as replay_run
        from speclrm.runtime.engines.simulated.presets import is_simulated

        settings = read_settings(set_ or [])
        if continue_ != (output_dir is not None):
            raise SettingsError("--continue writes a new run: give both --continue and --output-dir DIR, or neither.")
        if override and not continue_:
            raise SettingsError("--override belongs to --continue.")
        with Screen(display, log_file, log_level) as screen:
            replayed = run_async(lambda: replay_run(run_dir, settings, screen.notify, engines()), virtual=True)
        _print(replayed.report, screen.kind)
        directory = output_dir
        if directory is not None:
            with Screen(display, log_file, log_level) as again:
                report = run_async(
                    lambda: go_on(
                        replayed,
                        settings,
                        directory,
                        override=override,
                        sinks=again.sinks,
                        notify=again.notify,
                        plan=again.monitor.plan,
                        engines=engines(),
                    ),
                    virtual=is_simulated(replayed.options.target or ""),
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
