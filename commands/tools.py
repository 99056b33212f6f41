"""Commands around runs: calibrate, demo, doctor, models."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from speclrm.commands.options import Display, Draft, Dtype, LogFile, LogLevelOption
from speclrm.commands.plumbing import (
    Screen,
    checked,
    guard,
    print_calibration,
    print_measured,
    print_paths,
    run_async,
    say,
    stdout,
)


def calibrate(
    target: Annotated[str, typer.Argument(help="The model that judges.")],
    draft: Draft = None,
    dataset: Annotated[
        str, typer.Option(help="Problems to look at; not those to be solved later.")
    ] = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2",
    limit: Annotated[int, typer.Option(min=1, help="Problems.")] = 4,
    tracks: Annotated[int, typer.Option(min=1, help="Tracks of each.")] = 2,
    token_budget: Annotated[int, typer.Option(min=1, help="Tokens of a track.")] = 256,
    max_step_tokens: Annotated[int, typer.Option(min=1, help="A step is cut there.")] = 128,
    score_method: Annotated[Literal["greedy", "average"], typer.Option(help="As in `run`.")] = "average",
    scorer: Annotated[Literal["judge", "likelihood"], typer.Option(help="As in `run`.")] = "judge",
    judge: Annotated[Literal["auto", "turn", "inline"], typer.Option(help="As in `run`.")] = "auto",
    acceptance: Annotated[float, typer.Option(help="The share of drafts to keep.")] = 0.6,
    dtype: Dtype = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer measurements of what the engines cost.")] = False,
    preset_file: Annotated[
        Path | None,
        typer.Option(
            help="Where the preset for simulated engines goes.", show_default="the cache, by the models' names"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything found as JSON.")] = False,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Measure two engines and how the target scores the draft's steps.

    Keeps a threshold for `run --score-threshold auto` and a preset for `--target sim/...` and `--dataset sim:...`.
    """

    def start() -> None:
        from speclrm import api

        options = checked(
            api.CalibrateOptions,
            target=target,
            draft=draft,
            dataset=dataset,
            limit=limit,
            tracks=tracks,
            token_budget=token_budget,
            max_step_tokens=max_step_tokens,
            score_method=score_method,
            scorer=scorer,
            judge=judge,
            acceptance=acceptance,
            dtype=dtype,
            quick=quick,
            preset_file=preset_file,
        )
        with Screen(display, log_file, log_level) as screen:
            report = run_async(
                lambda: api.calibrate(options, sinks=screen.sinks, notify=screen.notify, plan=screen.monitor.plan),
                virtual=api.is_simulated(target),
            )
        result = report.calibration
        if json or screen.kind == "json":
            from speclrm.display import print_json

            rest = report.model_dump(mode="json", exclude={"calibration"})
            print_json({"kind": "calibration", **result.model_dump(mode="json"), **rest})
        else:
            print_calibration(stdout(), result)
            way = api.way_of_scoring(result.scorer, result.judge, result.score_method)
            kept = api.calibration_path(result.target, result.draft, way)
            how = "--scorer likelihood" if scorer == "likelihood" else f"--score-method {result.score_method}"
            how += "" if judge == "auto" else f" --judge {judge}"
            say(f"kept in     {kept}; used by `run --score-threshold auto {how}`")
            print_measured(stdout(), report)

    guard(start)


def demo(
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the two runs go.", show_default="runs/<time>-demo")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target model.", show_default="a known 0.5B model")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft model.", show_default="a known 135M model")] = None,
    dataset: Annotated[str | None, typer.Option(help="Problems.", show_default="sums of three numbers")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems.", show_default="6")] = None,
    tracks: Annotated[int | None, typer.Option(min=1, help="Tracks of each.", show_default="3")] = None,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Calibrate, solve a few problems with a draft and a target, then with the target alone, and compare."""

    def start() -> None:
        from speclrm import demo as demonstration

        given = {"target": target, "draft": draft, "dataset": dataset, "limit": limit, "tracks": tracks}
        options = demonstration.DemoOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        directory = output_dir or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-demo"
        with Screen(display, log_file, log_level) as screen:
            comparison = run_async(
                lambda: demonstration.compare(
                    options, directory, sinks=screen.sinks, notify=screen.notify, plan=screen.monitor.plan
                )
            )
        from speclrm.display import print_report

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


def models_list() -> None:
    """The models with a short name, and which of them are here."""

    def start() -> None:
        from rich.table import Table

        from speclrm.runtime import models

        table = Table(box=None, pad_edge=False)
        for name in ("name", "parameters", "download", "here", "on the hub"):
            table.add_column(name, overflow="fold")
        for status in models.list_models():
            known = status.model
            size = f"{known.index.bytes / 1e6:.0f} MB, {known.bytes / 1e6:.0f} on disk"
            table.add_row(known.name, known.parameters, size, str(status.path or "no"), known.hub)
        stdout().print(table)

    guard(start)


def models_pull(
    names: Annotated[list[str], typer.Argument(help="Known names or hub repositories.")], display: Display = None
) -> None:
    """Fetch models; one that is here already is not fetched again."""

    def start() -> None:
        from speclrm.runtime import models

        for name in names:
            models.find_local(name)  # all names are checked before anything is fetched
        with Screen(display, None, "warning") as screen:
            for name in names:
                path = run_async(lambda name=name: models.pull(name, screen.notify))
                say(path)

    guard(start)


def models_path(name: Annotated[str, typer.Argument(help="A model's name.")]) -> None:
    """Print the folder of a model that is here."""

    def start() -> None:
        from speclrm.runtime import models
        from speclrm.runtime.errors import ModelError

        path = models.find_local(name)
        if path is None:
            raise ModelError(f"Model {name} is not here. Fetch it with `speclrm models pull {name}`.")
        say(path)

    guard(start)


def doctor(json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False) -> None:
    """What this machine can run, with which settings, what is missing, and what it costs."""

    def start() -> None:
        from speclrm.runtime import doctor as examination

        report = examination.examine()
        if json:
            say(report.model_dump_json(indent=2))
        else:
            from rich.text import Text

            console = stdout()
            marks = {"ok": ("ok  ", "green"), "warn": ("note", "yellow"), "fail": ("FAIL", "red")}
            for finding in report.findings:
                mark, style = marks[finding.status]
                line = Text.assemble((mark, style), f"  {finding.what}: {finding.found}")
                console.print(line, soft_wrap=True, highlight=False)
                if finding.advice:
                    console.print(Text(f"      {finding.advice}"), soft_wrap=True, highlight=False)
        if any(finding.status == "fail" for finding in report.findings):
            raise typer.Exit(1)

    guard(start)
