"""Calibrates a pair of models: a threshold that was checked against the target alone, and a preset for simulated engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speclrm.app.engines import MakeEngines, make_engines
from speclrm.app.options import CalibrateOptions, EngineOptions, Options, RunOptions
from speclrm.app.presets import measure_engines, measured_world, provenance
from speclrm.app.progress import Notify, quiet
from speclrm.app.resolve import Resolved, make_strategy, resolve
from speclrm.app.safe_threshold import candidates, find_promise
from speclrm.app.summary_sink import ScoreLog, SummarySink
from speclrm.app.thresholds import (
    Calibration,
    JudgeQuality,
    choose_threshold,
    judge_quality,
    keep,
    pair_name,
    share_above,
)
from speclrm.runtime.engines.simulated.presets import Preset, presets_dir, write_preset
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.settings import CONCURRENCY
from speclrm.strategies.acceptance import RANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

    from speclrm.runtime.protocols import Problem, Sink
    from speclrm.runtime.runtime import Runtime
    from speclrm.strategies.recipe import Recipe

AT_ONCE = 16
"""Problems that are solved with drafts before it is asked whether too many are lost already."""
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
    """Measures what the engines cost, how the target scores draft steps, and which threshold is safe.

    Keeps all: the threshold for ``--score-threshold auto``, and a preset for simulated engines.
    """
    work = _Work(options, _resolved(options, engines), sinks, notify, plan or _no_plan)
    machine = read_machine()
    async with work.found.runtime(notify) as runtime:
        opened = {role: lane.engine for role, lane in runtime.scheduler.lanes.items()}
        settings = work.found.engines.settings
        fits = await measure_engines(opened, settings, machine, quick=options.quick, notify=notify)
        pilot, seen = await _by_share(runtime, work)
        calibration = await _by_risk(runtime, work, pilot)
    preset = Preset(
        engines=fits,
        one_device=len(machine.gpus) < 2,
        measured=provenance(machine, options),
        world=measured_world(pilot, seen.summary(), seen.states.values(), seen.lengths),
    )
    file = options.preset_file or presets_dir() / f"{pair_name(calibration.target, calibration.draft)}.json"
    write_preset(preset, file)
    judge = judge_quality(calibration.scores, seen.labelled())
    return CalibrationReport(calibration=calibration, judge=judge, preset=preset, preset_file=file)


async def calibrate_in(
    runtime: Runtime,
    options: CalibrateOptions,
    sinks: Sequence[Sink] = (),
    *,
    notify: Notify = quiet,
    plan: Callable[[int], None] | None = None,
) -> tuple[Calibration, float]:
    """Finds only the threshold, on an open runtime. Returns also the one that keeps the share asked for, safe or not."""
    work = _Work(options, _resolved(options, make_engines), sinks, notify, plan or _no_plan)
    pilot, _ = await _by_share(runtime, work)
    assert pilot.threshold is not None
    return await _by_risk(runtime, work, pilot), pilot.threshold


def _no_plan(samples: int) -> None:
    """Tells nobody how many samples there are."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What a calibration is about. ``found``: the run in which each step is drafted and scored, on all problems."""

    options: CalibrateOptions
    found: Resolved
    sinks: Sequence[Sink]
    notify: Notify
    plan: Callable[[int], None]

    @property
    def scored(self) -> Sequence[Problem]:
        """The problems from whose drafts the scores are."""
        return self.found.problems[: self.options.limit]

    @property
    def checks(self) -> Sequence[Problem]:
        """Others, on which thresholds are checked."""
        return self.found.problems[self.options.limit :]


def _resolved(options: CalibrateOptions, engines: MakeEngines) -> Resolved:
    """Resolves a calibration as a run in which each step is drafted and scored."""
    if options.draft is None:
        raise SettingsError("Calibration needs a draft model, whose steps are judged. Give --draft MODEL.")
    run = RunOptions(
        strategy="speculative",
        dataset=options.dataset,
        limit=options.limit + options.checks,
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


async def _by_share(runtime: Runtime, work: _Work) -> tuple[Calibration, ScoreLog]:
    """Returns scores with the threshold that accepts the share asked for, and the run that they were drawn from."""
    options = work.options
    first = await _scored(runtime, work, RANGES[options.scorer][0], options.seed)
    # The second pass sees the contexts that the first one's threshold gives: rewritten steps raise the scores of those
    # after them, so a threshold drawn from drafts alone would accept far more in a run (77 % instead of 55 %).
    threshold, _ = choose_threshold(sorted(first.scores), options.acceptance)
    second = await _scored(runtime, work, threshold, options.seed + 1)
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
    return result, second


async def _scored(runtime: Runtime, work: _Work, threshold: float, seed: int) -> ScoreLog:
    """Returns the scores of one pass over the problems. Raises SettingsError if there are none."""
    chosen = make_strategy(work.found.strategy.name, **{**work.found.options.recipe, "score_threshold": threshold})
    log = ScoreLog()
    work.plan(len(work.scored))
    await runtime.run(
        work.scored,
        chosen,
        seed=seed,
        sinks=work.sinks,
        required=[log],
        config=_config(chosen.recipe, len(work.scored)),
    )
    if not log.scores:
        raise SettingsError("No step was scored, so there is nothing to calibrate on. Give a larger --limit.")
    return log


def _config(recipe: Recipe, concurrency: int) -> dict[str, JsonValue]:
    """Returns what the display needs to tell how long it will still take."""
    return {"recipe": recipe.model_dump(mode="json"), "concurrency": concurrency}


async def _by_risk(runtime: Runtime, work: _Work, pilot: Calibration) -> Calibration:
    """Keeps and returns the calibration with a threshold that was checked, or as it is where nothing is to be checked.

    Both models write greedily in the checks, so that an answer that is lost was lost to a draft and not to chance.
    """
    options = work.options
    if not options.checks:
        keep(pilot)
        return pilot
    recipe = {**work.found.options.recipe, "tracks": 1, "temperature": 0.0, "plan": "plain"}
    drafting = ("speculate", "score_method", "scorer", "judge")
    alone = {name: value for name, value in recipe.items() if name not in drafting}

    async def right(problems: Sequence[Problem], name: str, given: dict[str, Any]) -> list[Problem]:
        """Returns the problems that were solved."""
        log = SummarySink()
        work.plan(len(problems))
        chosen = make_strategy(name, **given)
        await runtime.run(
            problems,
            chosen,
            seed=options.seed + 2,
            concurrency=CONCURRENCY,
            sinks=work.sinks,
            required=[log],
            config=_config(chosen.recipe, CONCURRENCY),
        )
        outcomes = {row.problem: row.outcome for row in log.summary().samples}
        return [problem for problem in problems if outcomes.get(problem.id) == "correct"]

    work.notify("the target alone", None, None)
    solved = await right(work.checks, "baseline", alone)

    async def attempt(threshold: float, allowed: int) -> tuple[int, int]:
        work.notify(f"with drafts under the threshold {threshold:.3f}", None, None)
        tried = lost = 0
        while tried < len(solved) and lost <= allowed:
            part = solved[tried : tried + AT_ONCE]
            lost += len(part) - len(await right(part, "speculative", recipe | {"score_threshold": threshold}))
            tried += len(part)
        return tried, lost

    promise = await find_promise(
        candidates(pilot.scores, RANGES[options.scorer][0]),
        attempt,
        asked=len(work.checks),
        solved=len(solved),
        risk=options.risk,
        confidence=options.confidence,
    )
    threshold = promise.threshold
    found = {"threshold": threshold, "acceptance": share_above(pilot.scores, threshold), "promise": promise}
    result = pilot.model_copy(update=found)
    keep(result)
    return result
