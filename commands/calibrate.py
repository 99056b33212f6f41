"""``calibrate``: measures a pair of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from speclrm.app.options import CalibrateOptions
from speclrm.commands.errors import checked, guard, say
from speclrm.commands.from_options import Given, takes
from speclrm.commands.screen import Screen, engines, run_async, stdout
from speclrm.commands.screen_options import Display, LogFile, LogLevelOption
from speclrm.strategies.option import declared

if TYPE_CHECKING:
    from rich.console import Console

    from speclrm.app.calibrate import CalibrationReport
    from speclrm.app.thresholds import Calibration

DECLARED = declared(CalibrateOptions)


@takes({name: one for name, one in DECLARED.items() if name != "target"})
def calibrate(
    target: Annotated[str, typer.Argument(help="Target model, which scores the steps.")],
    given: Given,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Measure two engines, how the target scores the draft's steps, and which threshold is safe.

    Keeps a threshold for `run --score-threshold auto` that costs at most --risk of the target's right answers,
    and a preset for `--target sim/...` and `--dataset sim:...`.
    """

    def start() -> None:
        from speclrm.app.calibrate import calibrate as measure
        from speclrm.app.thresholds import calibration_path, way_of_scoring
        from speclrm.runtime.engines.simulated.presets import is_simulated

        options = checked(CalibrateOptions, target=target, **given)
        with Screen(display, log_file, log_level) as screen:
            report = run_async(
                lambda: measure(
                    options,
                    sinks=screen.sinks,
                    notify=screen.notify,
                    plan=screen.monitor.plan,
                    engines=engines(),
                ),
                virtual=is_simulated(target),
            )
        result = report.calibration
        if json or screen.kind == "json":
            from speclrm.commands.display import print_json

            rest = report.model_dump(mode="json", exclude={"calibration"})
            print_json({"kind": "calibration", **result.model_dump(mode="json"), **rest})
        else:
            print_calibration(stdout(), result)
            kept = calibration_path(
                result.target, result.draft, way_of_scoring(result.scorer, result.judge, result.score_method)
            )
            how = "--scorer likelihood" if result.scorer == "likelihood" else f"--score-method {result.score_method}"
            how += "" if result.judge == "auto" else f" --judge {result.judge}"
            used = "used by" if result.threshold is not None else "with it no step is drafted by"
            say(f"kept in     {kept}; {used} `run --score-threshold auto {how}`")
            _print_measured(stdout(), report)

    guard(start)


def print_calibration(console: Console, result: Calibration) -> None:
    counts: dict[int, int] = {}
    for score in result.scores:
        counts[round(score)] = counts.get(round(score), 0) + 1
    spread = " ".join(f"{digit}:{count}" for digit, count in sorted(counts.items()))
    judged = f"; digits had {result.mass:.0%} of the judge's probability" if result.scorer == "judge" else ""
    for line in (
        f"calibration {len(result.scores)} scores of drafted steps, from {result.scores[0]:.2f} to {result.scores[-1]:.2f}, "
        f"rounded {spread}{judged}",
        *_threshold_lines(result),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _threshold_lines(result: Calibration) -> list[str]:
    promise = result.promise
    if result.threshold is None:
        lines = [f"threshold   none: {promise.reason if promise else ''}"]
    else:
        lines = [f"threshold   {result.threshold:.3f} keeps {result.acceptance:.0%} of them"]
        lines.append(f"promise     {promise.reason if promise else 'none: what it costs was not checked'}")
    if promise is not None:
        lines.append(f"checked on  {promise.asked} other problems, of which the target alone solved {promise.solved}")
        for trial in promise.trials:
            lines.append(
                f"tried       {trial.threshold:.3f}: {trial.lost} of {trial.problems} answers lost; at most {trial.bound:.1%} "
                f"with {promise.confidence:.0%} confidence"
            )
    return lines


def _print_measured(console: Console, report: CalibrationReport) -> None:
    """Prints what the engines cost and how well scores predict right answers."""
    from rich.table import Table

    judge, world = report.judge, report.preset.world
    assert world is not None, "a calibration measures one"
    worth = "all ended alike" if judge.auroc is None else f"AUROC {judge.auroc:.2f}"
    error = "" if judge.calibration_error is None else f", expected calibration error {judge.calibration_error:.2f}"
    kept = " ".join(f"{threshold:g}:{share:.0%}" for threshold, share in judge.thresholds if 0 < share < 1)
    lines = (
        f"judge       {judge.steps} scores against their sample's outcome ({judge.right} right): {worth}{error}",
        f"kept at     {kept or 'all or nothing at every half point'}",
        f"steps       {world.draft_step:.1f} tokens drafted, {world.target_step:.1f} rewritten; {world.steps:.1f} a track",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in (
        "engine",
        "iteration",
        "new token",
        "1k of context",
        "sampling",
        "request",
        "beside other",
        "fit off by",
    ):
        table.add_column(name)
    for role, fit in report.preset.engines.items():
        cost = fit.cost
        times = (cost.w, cost.p, 1000 * cost.k, cost.s, cost.request_s)
        table.add_row(
            role,
            *(f"{1000 * time:.3g} ms" for time in times),
            f"{fit.share:.0%}",
            f"{fit.residual:.0%} of {fit.measurements}",
        )
    console.print(table)
    name = report.preset_file if report.preset_file.parent.name != "presets" else report.preset_file.stem
    line = (
        f"preset      {report.preset_file}; used by `--target sim/{name} --draft sim/{name}` and `--dataset sim:{name}`"
    )
    console.print(line, markup=False, highlight=False, soft_wrap=True)
