"""Calibrates a pair of models: a threshold from the scores of draft steps, and a preset for simulated engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speclrm.app.engines import MakeEngines, make_engines
from speclrm.app.options import CalibrateOptions, EngineOptions, Options, RunOptions
from speclrm.app.presets import measure_engines, measured_world, provenance
from speclrm.app.progress import Notify, quiet
from speclrm.app.resolve import Resolved, make_strategy, resolve
from speclrm.app.summary_sink import ScoreLog
from speclrm.app.thresholds import Calibration, JudgeQuality, choose_threshold, judge_quality, keep, pair_name
from speclrm.runtime.engines.simulated.presets import Preset, presets_dir, write_preset
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.machine.hardware import read_machine
from speclrm.strategies.acceptance import RANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speclrm.runtime.protocols import Sink
    from speclrm.runtime.runtime import Runtime

WORLD_SEED = 0
"""Simulated models write the same in each calibration."""


class CalibrationReport(Options):
    """The result of a calibration. ``preset``: as written to ``preset_file``, for ``--target sim/...`` and ``--dataset
    sim:...``.
    """

    calibration: Calibration
    judge: JudgeQuality
    preset: Preset
    preset_file: Path


async def calibrate(
    options: CalibrateOptions,
    *,
    sinks: Sequence[Sink] = (),
    notify: Notify = quiet,
    plan: Callable[[int], None] | None = None,
    engines: MakeEngines = make_engines,
) -> CalibrationReport:
    """Measures what the engines cost and how the target scores draft steps on a few problems.

    Keeps both: the threshold for ``--score-threshold auto``, and a preset for simulated engines.
    """
    found = _resolved(options, engines)
    if plan is not None:
        plan(len(found.problems))
    machine = read_machine()
    async with found.runtime(notify) as runtime:
        opened = {role: lane.engine for role, lane in runtime.scheduler.lanes.items()}
        fits = await measure_engines(opened, found.engines.settings, machine, quick=options.quick, notify=notify)
        calibration, seen = await _calibrated(runtime, options, found, sinks)
    preset = Preset(
        engines=fits,
        one_device=len(machine.gpus) < 2,
        measured=provenance(machine, options),
        world=measured_world(calibration, seen.summary(), seen.states.values(), seen.lengths),
    )
    file = options.preset_file or presets_dir() / f"{pair_name(calibration.target, calibration.draft)}.json"
    write_preset(preset, file)
    judge = judge_quality(calibration.scores, seen.labelled())
    return CalibrationReport(calibration=calibration, judge=judge, preset=preset, preset_file=file)


async def calibrate_in(runtime: Runtime, options: CalibrateOptions, sinks: Sequence[Sink] = ()) -> Calibration:
    """Finds only the threshold, on an open runtime."""
    calibration, _ = await _calibrated(runtime, options, _resolved(options, make_engines), sinks)
    return calibration


def _resolved(options: CalibrateOptions, engines: MakeEngines) -> Resolved:
    """Resolves a calibration as a run in which each step is drafted and scored."""
    if options.draft is None:
        raise SettingsError("Calibration needs a draft model, whose steps are judged. Give --draft MODEL.")
    run = RunOptions(
        strategy="speculative",
        dataset=options.dataset,
        limit=options.limit,
        seed=options.seed,
        recipe={
            "speculate": "always",
            "tracks": options.tracks,
            "score_method": options.score_method,
            "scorer": options.scorer,
            "judge": options.judge,
            "token_budget": options.token_budget,
            "max_step_tokens": options.max_step_tokens,
            "closing": False,
        },
        **{name: getattr(options, name) for name in EngineOptions.model_fields},
    )
    return resolve(run, make=engines, world_seed=WORLD_SEED)


async def _calibrated(
    runtime: Runtime, options: CalibrateOptions, found: Resolved, sinks: Sequence[Sink]
) -> tuple[Calibration, ScoreLog]:
    """Returns the threshold, and the run that it was drawn from."""
    first = await _scored(runtime, found, sinks, RANGES[options.scorer][0], options.seed)
    # The second pass sees the contexts that the first one's threshold gives: rewritten steps raise the scores of those
    # after them, so a threshold drawn from drafts alone would accept far more in a run (77 % instead of 55 %).
    threshold, _ = choose_threshold(sorted(first.scores), options.acceptance)
    second = await _scored(runtime, found, sinks, threshold, options.seed + 1)
    scores = sorted(second.scores)
    threshold, acceptance = choose_threshold(scores, options.acceptance)
    result = Calibration(
        target=options.target or "",
        draft=options.draft or "",
        score_method=options.score_method,
        scorer=options.scorer,
        judge=options.judge,
        threshold=threshold,
        acceptance=acceptance,
        scores=tuple(scores),
        mass=sum(second.masses) / len(second.masses),
    )
    keep(result)
    return result, second


async def _scored(runtime: Runtime, found: Resolved, sinks: Sequence[Sink], threshold: float, seed: int) -> ScoreLog:
    """Returns the scores of one pass over the problems. Raises SettingsError if there are none."""
    chosen = make_strategy(found.strategy.name, **{**found.options.recipe, "score_threshold": threshold})
    log = ScoreLog()
    await runtime.run(found.problems, chosen, seed=seed, sinks=sinks, required=[log])
    if not log.scores:
        raise SettingsError("No step was scored, so there is nothing to calibrate on. Give a larger --limit.")
    return log
