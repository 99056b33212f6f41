"""The composition root: builds a runtime from names and settings. The only place that knows all parts.

The command line, examples and embedding services use this module and nothing below it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from speclrm import continuing
from speclrm.calibration import (
    Calibration,
    JudgeQuality,
    calibration_path,
    choose_threshold,
    judge_quality,
    keep,
    kept_threshold,
    pair_name,
    way_of_scoring,
)
from speclrm.evaluators.answers import find_answer
from speclrm.evaluators.benchmarks import canonical
from speclrm.evaluators.beside import GraderOfAThread
from speclrm.evaluators.datasets import Columns, Selection, load, select
from speclrm.evaluators.grading import ExactEquivalence, Grader
from speclrm.evaluators.metrics import RunSummary, Summary, summarize
from speclrm.evaluators.report import write_reports
from speclrm.measuring import measure_engines, measured_world, provenance
from speclrm.options import CalibrateOptions, EngineDtype, EngineOptions, Options, RecipeOptions, RunOptions
from speclrm.runtime import models, run_directory
from speclrm.runtime.context import judge_of, judge_suffix, open_prompt, question_ids
from speclrm.runtime.engines.presets import (
    DATA_PREFIX,
    Preset,
    check_names,
    engines_world,
    is_simulated,
    presets_dir,
    simulated_engines,
    world_settings,
    write_preset,
)
from speclrm.runtime.engines.recorded import RecordedEngine
from speclrm.runtime.engines.world import SimulatedWorld
from speclrm.runtime.errors import ModelError, ResumeError, SettingsError, SpecLRMError
from speclrm.runtime.events import ProblemStarted, RunStarted, StepDrafted, StepScored, StepWritten
from speclrm.runtime.journal import TRACE_FILE, TraceOptions
from speclrm.runtime.machine import read_machine
from speclrm.runtime.past import Past, read_past
from speclrm.runtime.protocols import Engine, Problem, Role
from speclrm.runtime.reader import read_run, read_trace
from speclrm.runtime.runtime import Parts, Resumption
from speclrm.runtime.runtime import Runtime as _Runtime
from speclrm.runtime.segments import check_compression
from speclrm.runtime.sizing import Work, check_gpus, check_room, engine_settings, read_facts
from speclrm.strategies.acceptance import RANGES
from speclrm.strategies.catalog import defaults
from speclrm.strategies.catalog import strategy as make_strategy
from speclrm.strategies.methods import LONGEST_METHOD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AsyncExitStack

    from pydantic import JsonValue

    from speclrm.continuing import ReplayReport
    from speclrm.runtime.engines.simulated import SimulatedEngine
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Message, Sink, Tokenizer
    from speclrm.runtime.settings import EngineSettings
    from speclrm.runtime.state import SampleState
    from speclrm.strategies.family import Family

Notify = Callable[[str, float | None, float | None], None]
"""Told what is going on, how much of it is done, and of how much (None where that is not known)."""

PROMPT_TOKENS = 1024
"""Room for a problem, where it is not known which will come."""
DEFAULT_MIX = "aime-mix"
RUNS_FOLDER = Path("runs")
ENGINE_LOGS_KEPT = 20


def _quiet(what: str, done: float | None, total: float | None) -> None:
    pass


class RunReport(Options):
    """``done_before``: the run had ended already, and nothing was done."""

    directory: Path
    summary: RunSummary
    done_before: bool = False


class Replayed(NamedTuple):
    """``past``: what came again as it was; ``options``: those of the run."""

    report: ReplayReport
    past: Past
    options: RunOptions


class CalibrationReport(Options):
    """What a calibration found. ``preset``: as kept in ``preset_file`` for ``--target sim/...`` and ``--dataset sim:...``."""

    calibration: Calibration
    judge: JudgeQuality
    preset: Preset
    preset_file: Path


class Preview(Options):
    """What ``--dry-run`` shows. ``problems``: how many; ``prompts``: the first ones, by what they are for."""

    options: RunOptions
    recipe: dict[str, Any]
    problems: int
    prompts: dict[str, str]


class Runtime(_Runtime):
    """Reasoning on two models: ``async with speclrm.Runtime(target=..., draft=...) as runtime``.

    ``tracks``: how many are expected at once. Lengths in tokens. Models that are not here are fetched first. The
    engines' processes and the judges of answers live as long as the block.

    Raises, on entry:
        UsageError: a model cannot be had, or the work does not fit this machine.
        EngineError: an engine did not start.
    """

    def __init__(
        self,
        *,
        target: str,
        draft: str | None = None,
        tracks: int = 32,
        prompt_tokens: int = PROMPT_TOKENS,
        token_budget: int = 8192,
        max_step_tokens: int = 512,
        dtype: EngineDtype = "auto",
        kv_cache_gib: float | None = None,
        engine_log: Path | None = None,
        notify: Notify = _quiet,
    ) -> None:
        options = EngineOptions(
            target=target, draft=draft, dtype=dtype, kv_cache_gib=kv_cache_gib, engine_log=engine_log
        )
        probe = make_strategy("speculative" if draft else "baseline", find_answer)
        work = Work(tracks, prompt_tokens, token_budget, max_step_tokens, suffix_tokens=0)

        async def open_parts(stack: AsyncExitStack) -> Parts:
            sized = await _size(options, probe, work, notify)
            return await _open(stack, options, sized, notify)

        super().__init__(open_parts)

    async def __aenter__(self) -> Runtime:
        await super().__aenter__()
        return self


def strategy(name: str, **options: Any) -> Family:
    """A strategy by name with options of its recipe (``strategies/recipe.py``). Raises SettingsError."""
    return make_strategy(name, find_answer, **options)


async def solve(
    problem: str | Problem, *, target: str, draft: str | None = None, notify: Notify = _quiet, **options: Any
) -> SampleState:
    """One attempt at one problem, with engines of its own. For more than one, keep a ``Runtime`` open.

    ``options`` are the recipe's; the strategy is ``speculative`` with a draft and ``baseline`` without.
    """
    chosen = strategy("speculative" if draft else "baseline", **options)
    recipe = chosen.recipe
    asked = Problem("problem", problem) if isinstance(problem, str) else problem
    async with Runtime(
        target=target,
        draft=draft,
        tracks=recipe.tracks,
        token_budget=recipe.token_budget,
        max_step_tokens=recipe.max_step_tokens,
        notify=notify,
    ) as runtime:
        return await runtime.solve(asked, chosen)


async def run(
    options: RunOptions,
    *,
    sinks: Sequence[Sink] = (),
    notify: Notify = _quiet,
    plan: Callable[[int], None] | None = None,
) -> RunReport:
    """A whole run: checks everything that can be checked, loads, solves, grades, reports.

    ``plan`` is told the number of samples once it is known.

    Raises:
        UsageError: something asked for cannot be done; nothing was loaded.
        SpecLRMError: the run was stopped; what was committed is in the trace.
    """
    with _faults(options):
        options, chosen, problems = _prepared(options, notify)
        directory = options.output_dir or _new_folder(options.strategy)
        run_directory.check_free(directory)
        if plan is not None:
            plan(len(problems) * options.repeats)
        sized = await _size(options, chosen, _work(chosen, problems, options), notify, problems)
        async with _Runtime(lambda stack: _open(stack, options, sized, notify)) as runtime:
            return await run_in(runtime, chosen, problems, options, directory, sinks)


async def run_in(
    runtime: _Runtime,
    chosen: Family,
    problems: Sequence[Problem],
    options: RunOptions,
    directory: Path,
    sinks: Sequence[Sink] = (),
    *,
    resumption: Resumption | None = None,
    extra: Mapping[str, JsonValue] | None = None,
) -> RunReport:
    """A run on a runtime that is open already. Its reports are written also where it is broken off.

    ``extra``: what stands in its configuration beside the options.
    """
    fold = _Fold()
    try:
        await runtime.run(
            problems,
            chosen,
            repeats=options.repeats,
            seed=options.seed,
            concurrency=options.concurrency,
            directory=directory,
            config=_config(options, chosen, problems) | dict(extra or {}),
            sinks=[*sinks, fold],
            resumption=resumption,
            trace=TraceOptions(compress=options.compress_trace),
        )
    except BaseException:
        if fold.summary().run:  # it began: the directory is this run's
            with suppress(OSError, SpecLRMError):  # what stopped the run is what is to be told
                await _write_reports(directory)
        raise
    return RunReport(directory=directory, summary=await _write_reports(directory))


async def _write_reports(directory: Path) -> RunSummary:
    """From the trace and not from what a listener saw: listeners may miss events, the trace has all."""
    summary = await asyncio.to_thread(lambda: summarize(read_run(directory)))
    write_reports(directory, summary)
    return summary


def prepare(options: RunOptions, notify: Notify = _quiet) -> tuple[RunOptions, Family, list[Problem]]:
    """The options with names in their one form, the strategy, and the problems; nothing is loaded. Raises UsageError."""
    return _prepared(options, notify)


def recipe_options(options: RunOptions) -> dict[str, Any]:
    """The recipe's options that are set, for ``strategy``."""
    given = {name: getattr(options, name) for name in RecipeOptions.model_fields}
    return {name: value for name, value in given.items() if value is not None}


def runtime_for(options: RunOptions, chosen: Family, problems: Sequence[Problem], notify: Notify = _quiet) -> _Runtime:
    """A runtime for ``async with``, its engines sized for ``options.concurrency`` samples of these problems at once.

    For many calls of ``solve`` or ``run`` on the same engines. Raises on entry what ``run`` raises.
    """

    async def open_parts(stack: AsyncExitStack) -> Parts:
        sized = await _size(options, chosen, _work(chosen, problems, options), notify, problems)
        return await _open(stack, options, sized, notify)

    return _Runtime(open_parts)


def _config(options: RunOptions, chosen: Family, problems: Sequence[Problem]) -> dict[str, JsonValue]:
    recipe: dict[str, JsonValue] = chosen.recipe.model_dump(mode="json")
    return {**options.model_dump(mode="json"), "recipe": recipe, "problems": continuing.mark(problems)}


# ----------------------------------------------------------------------------------------------------------- again


async def resume(
    directory: Path,
    asked: RunOptions | None = None,
    *,
    harmless: Mapping[str, Any] | None = None,
    override: bool = False,
    sinks: Sequence[Sink] = (),
    notify: Notify = _quiet,
    plan: Callable[[int], None] | None = None,
) -> RunReport:
    """Goes on with the run in a folder: finished samples stay, tracks continue where they were.

    ``asked``: the options as they are wanted now; None for those it has. ``harmless``: options that may change freely, by
    name. ``override``: settings that make results incomparable may change, too; they hold for samples that had not begun.

    Raises:
        RunDirectoryError: there is no run, or another process writes it.
        ResumeError: something was changed that must not be, or the trace does not fit.
    """
    run_directory.read_record(directory)
    with run_directory.locked(directory, lambda text: notify(text, None, None)):
        past = read_past(directory, lambda text: notify(text, None, None))
        options = (asked or continuing.recorded_options(past.config)).model_copy(
            update={"output_dir": directory, **(harmless or {})}
        )
        with _faults(options):
            options, chosen, problems = _prepared(options, notify)
            if asked is None:
                chosen = _recorded_strategy(past.config)[0]
            config = _config(options, chosen, problems) | {"strategy": chosen.name}
            found = continuing.changes(past.config, config)
            if found and not override:
                raise ResumeError(
                    f"{directory}: the run was started otherwise, and its results would not be comparable.\n"
                    f"{continuing.table(found)}\n"
                    "Give what is recorded (`speclrm resume` does), or --override, which goes on and records the change."
                )
            _check_problems(past, problems)
            names = [(problem.id, repeat) for problem in problems for repeat in range(options.repeats)]
            done = [past.samples[name].state for name in names if name in past.samples]
            if past.finished and len(done) == len(names) and None not in done:
                fold = _Fold()
                for event in read_trace(directory / TRACE_FILE):
                    fold.add(event)
                return RunReport(directory=directory, summary=fold.summary(), done_before=True)
            if plan is not None:
                plan(len(names))
            resumption = Resumption(
                past,
                lambda attempt: _recorded_strategy(past.attempts[attempt].config),
                lambda: read_trace(directory / TRACE_FILE),
                found,
            )
            sized = await _size(options, chosen, _work(chosen, problems, options), notify, problems)
            async with _Runtime(lambda stack: _open(stack, options, sized, notify)) as runtime:
                return await run_in(runtime, chosen, problems, options, directory, sinks, resumption=resumption)


async def replay(directory: Path, settings: Mapping[str, Any], notify: Notify = _quiet) -> Replayed:
    """Plays the run in a folder again, under virtual time and without an engine; nothing in the folder is changed.

    ``settings``: options of the recipe that are to be others (what-if).
    """
    run_directory.read_record(directory)
    past = read_past(directory, lambda text: notify(text, None, None), whole=True)
    options = continuing.recorded_options(past.config)
    with _faults(options):
        options, _, problems = _prepared(options, notify)
        _check_problems(past, problems)
        first = past.attempts[0]
        assert isinstance(first, RunStarted)
        tokenizers = await _tokenizers(options)
        engines: dict[Role, Engine] = {
            role: RecordedEngine(getattr(options, role.value) or role.value, tokenizer, first.context_max[role.value])
            for role, tokenizer in tokenizers.items()
            if role.value in first.context_max
        }

        async def parts(stack: AsyncExitStack) -> Parts:
            exact = _simulated(options)
            return Parts(engines, ExactEquivalence() if exact else await stack.enter_async_context(GraderOfAThread()))

        before, now = _Fold(), _Fold()
        for event in read_trace(directory / TRACE_FILE):
            before.add(event)
        async with _Runtime(parts) as runtime:
            playback = await runtime.replay(
                past, problems, lambda attempt: _recorded_strategy(past.attempts[attempt].config, settings), [now]
            )
    report = continuing.report(playback, past, before.summary().samples, now, settings)
    return Replayed(report, playback.kept(), options)


async def go_on(
    replayed: Replayed,
    settings: Mapping[str, Any],
    directory: Path,
    *,
    sinks: Sequence[Sink] = (),
    notify: Notify = _quiet,
    plan: Callable[[int], None] | None = None,
) -> RunReport:
    """A new run in a folder of its own that begins with what a replay under other settings could tell."""
    past = replayed.past
    options = replayed.options.model_copy(update={"output_dir": directory})
    run_directory.check_free(directory)
    with _faults(options):
        options, _, problems = _prepared(options, notify)
        chosen, seed = _recorded_strategy(past.config, settings)
        if plan is not None:
            plan(len(problems) * options.repeats)
        resumption = Resumption(past, lambda _: (chosen, seed), anew=True)
        sized = await _size(options, chosen, _work(chosen, problems, options), notify, problems)
        async with _Runtime(lambda stack: _open(stack, options, sized, notify)) as runtime:
            extra: dict[str, JsonValue] = {"continued_from": past.run}
            return await run_in(
                runtime, chosen, problems, options, directory, sinks, resumption=resumption, extra=extra
            )


def _recorded_strategy(
    config: Mapping[str, JsonValue], settings: Mapping[str, Any] | None = None
) -> tuple[Family, int | None]:
    """The strategy and the seed of a run's configuration, with some options of the recipe set anew."""
    recipe, seed = config.get("recipe"), config.get("seed")
    given: dict[str, Any] = {**recipe} if isinstance(recipe, dict) else {}
    return strategy(str(config["strategy"]), **{**given, **(settings or {})}), seed if isinstance(seed, int) else None


def _check_problems(past: Past, problems: Sequence[Problem]) -> None:
    """Raises ResumeError where a problem of the trace has another text now, or another answer."""
    named = {problem.id: problem for problem in problems}
    for sample in past.samples.values():
        first = sample.events[0] if sample.events else None
        problem = named.get(sample.problem)
        if not isinstance(first, ProblemStarted) or problem is None:
            continue
        if (first.text, first.gold) != (problem.text, problem.answer):
            raise ResumeError(
                f"Problem {sample.problem} has another text or answer than when the run was started. Put the dataset "
                "back as it was, or start a new run."
            )


async def _tokenizers(options: RunOptions) -> Mapping[Role, Tokenizer]:
    names = {role: getattr(options, role.value) for role in Role if getattr(options, role.value) is not None}
    if _simulated(options):
        engines = simulated_engines(names, _world(options, ()), shared_device=False)
        return {role: engine.tokenizer for role, engine in engines.items()}
    from speclrm.runtime.tokenizer import load_tokenizer

    paths = {role: models.find_local(name) for role, name in names.items()}
    for role, path in paths.items():
        if path is None:
            raise ModelError(
                f"The tokenizer of {names[role]} is not here, and a replay needs it. `speclrm models pull {names[role]}`."
            )
    return {role: await asyncio.to_thread(load_tokenizer, path) for role, path in paths.items() if path is not None}


def preview(options: RunOptions, notify: Notify = _quiet) -> Preview:
    """What a run would do, from settings, problems and tokenizers alone: nothing is loaded, fetched or written.

    Prompts are shown as the models' chat templates make them where a model is here, and as plain turns where it is not.

    Raises:
        UsageError: as ``run`` would.
    """
    from speclrm.runtime.tokenizer import load_tokenizer

    with _faults(options):
        options, chosen, problems = _prepared(options, notify)
        run_directory.check_free(options.output_dir or _new_folder(options.strategy))
        first = problems[0]
        question = chosen.question(first)
        plan = chosen.plan(first, 0, options.seed)[0]
        prompts: dict[str, str] = {}
        for role in sorted(chosen.roles):
            name = getattr(options, role.value)
            path = None if is_simulated(name) else models.find_local(name)
            tokenizer = None if path is None else load_tokenizer(path)
            if question is not None and role is Role.TARGET:
                prompts["target, choosing methods"] = (
                    tokenizer.decode(question_ids(tokenizer, question))
                    if tokenizer
                    else _plain(question.messages) + question.reply
                )
            prompts[f"{role.value}, first step of track {plan.track}"] = (
                tokenizer.decode(open_prompt(tokenizer, plan)) if tokenizer else _plain(plan.messages)
            )
            if role is Role.TARGET and Role.DRAFT in chosen.roles and chosen.prompts.scorer == "judge":
                words = chosen.prompts
                prompts["target, behind each drafted step"] = (
                    tokenizer.decode(judge_suffix(tokenizer, words).ids)
                    if tokenizer
                    else words.judge + words.judge_reply
                )
        return Preview(
            options=options, recipe=chosen.recipe.model_dump(mode="json"), problems=len(problems), prompts=prompts
        )


def _plain(messages: Sequence[Message]) -> str:
    return "\n".join(f"[{message['role']}] {message['content']}" for message in messages)


async def calibrate(
    options: CalibrateOptions,
    *,
    sinks: Sequence[Sink] = (),
    notify: Notify = _quiet,
    plan: Callable[[int], None] | None = None,
) -> CalibrationReport:
    """Measures what the engines cost, looks at the judge's scores on a few problems, and keeps both: the threshold for
    ``--score-threshold auto``, and a preset for simulated engines.
    """
    chosen, problems = _calibration_work(options)
    if plan is not None:
        plan(len(problems))
    work = Work(options.tracks * len(problems), 0, options.token_budget, options.max_step_tokens, suffix_tokens=0)
    machine = read_machine()
    sized = await _size(options, chosen, work, notify, problems)
    async with _Runtime(lambda stack: _open(stack, options, sized, notify)) as runtime:
        engines = {role: lane.engine for role, lane in runtime.scheduler.lanes.items()}
        fits = await measure_engines(engines, sized.settings, machine, quick=options.quick, notify=notify)
        calibration, seen = await _calibrated(runtime, options, sinks)
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


async def calibrate_in(runtime: _Runtime, options: CalibrateOptions, sinks: Sequence[Sink] = ()) -> Calibration:
    """The threshold alone, on a runtime that is open already."""
    calibration, _ = await _calibrated(runtime, options, sinks)
    return calibration


async def _calibrated(runtime: _Runtime, options: CalibrateOptions, sinks: Sequence[Sink]) -> tuple[Calibration, _Fold]:
    """The threshold, and the run that it was drawn from."""
    first = await _scored(runtime, options, sinks, RANGES[options.scorer][0], options.seed)
    # The second pass sees the contexts that the first one's threshold gives: rewritten steps raise the scores of those
    # behind them, so a threshold drawn from drafts alone would keep far more in a run (77 % where 55 % were meant).
    threshold, _ = choose_threshold(sorted(first.scores), options.acceptance)
    second = await _scored(runtime, options, sinks, threshold, options.seed + 1)
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


async def _scored(
    runtime: _Runtime, options: CalibrateOptions, sinks: Sequence[Sink], threshold: float, seed: int
) -> _Fold:
    """The scores of one pass over the problems. Raises SettingsError where there are none."""
    chosen, problems = _calibration_work(options, threshold)
    fold = _Fold()
    await runtime.run(problems, chosen, seed=seed, sinks=[*sinks, fold])
    if not fold.scores:
        raise SettingsError("No step was scored, so there is nothing to calibrate on. Give a larger --limit.")
    return fold


# ------------------------------------------------------------------------------------------------------- preparations


def _calibration_work(options: CalibrateOptions, threshold: float | None = None) -> tuple[Family, list[Problem]]:
    if options.draft is None:
        raise SettingsError("Calibration needs a draft model, whose steps are judged. Give --draft MODEL.")
    _simulated(options)  # names of simulated engines are told before anything starts
    chosen = strategy(
        "speculative",
        speculate="always",
        tracks=options.tracks,
        score_threshold=threshold,
        score_method=options.score_method,
        scorer=options.scorer,
        judge=options.judge,
        token_budget=options.token_budget,
        max_step_tokens=options.max_step_tokens,
        closing=False,
    )
    return chosen, load(options.dataset, limit=options.limit, seed=options.seed)


def _faults(options: RunOptions) -> AbstractContextManager[None]:
    if not options.reproduce_fault:
        return nullcontext()
    from speclrm import faults  # it reaches into every part, this one too

    return faults.reproduced(options.reproduce_fault)


def _prepared(options: RunOptions, notify: Notify) -> tuple[RunOptions, Family, list[Problem]]:
    """The options with names in their one form, the strategy, and the problems. Raises UsageError."""
    chosen = _strategy(options)
    if options.compress_trace:
        check_compression()
    selection = Selection(options.problem_ids, options.sample, options.limit)
    if options.dataset.startswith(DATA_PREFIX):
        _check_simulated(options)
        return options, chosen, select(options.dataset, _simulated_problems(options), selection, options.seed or 0)
    problems = load(
        options.dataset,
        selection=selection,
        seed=options.seed or 0,
        data_dir=options.data_dir,
        columns=Columns(options.problem_column, options.answer_column, options.id_column),
        notify=lambda what: notify(what, None, None),
    )
    fixed: dict[str, Any] = {"strategy": chosen.name, "dataset": canonical(options.dataset)}
    if Role.DRAFT not in chosen.roles:
        fixed["draft"] = None  # nothing would ever ask it
    return options.model_copy(update=fixed), chosen, problems


def _simulated(options: EngineOptions) -> bool:
    """Whether the engines are simulated. Raises SettingsError where some are and some are not, ModelError for an unknown one."""
    kinds = {is_simulated(name) for name in (options.target, options.draft) if name is not None}
    if len(kinds) > 1:
        raise SettingsError(
            f"{options.target} and {options.draft}: one is simulated and one is real, and their times have nothing to do "
            "with each other. Give two of one kind."
        )
    if kinds == {True}:
        check_names(_names(options))
    return kinds == {True}


def _names(options: EngineOptions) -> dict[Role, str]:
    return {role: getattr(options, role.value) for role in Role if getattr(options, role.value) is not None}


def _check_simulated(options: RunOptions) -> None:
    if not _simulated(options):
        raise SettingsError(
            f"{options.dataset} is a world of simulated engines, which real models know nothing of. Give --target "
            "sim/qwq-32b (and --draft sim/r1-1.5b), or another dataset."
        )


def _mix(dataset: str) -> str:
    """The name of a simulated dataset's world."""
    return dataset.removeprefix(DATA_PREFIX).partition("?")[0]


def _simulated_problems(options: RunOptions) -> list[Problem]:
    """The problems of ``sim:MIX`` or ``sim:MIX?size=N``."""
    settings = world_settings(_mix(options.dataset))
    query = options.dataset.partition("?")[2]
    size = query.removeprefix("size=") or "11"
    if not size.isdigit() or query.partition("=")[0] not in ("", "size"):
        raise SettingsError(
            f"There is no dataset {options.dataset!r}. Behind the name of a simulated one may stand ?size=N, for another "
            "number of problems."
        )
    return SimulatedWorld(settings, options.seed or 0).problems(int(size))


def _world(options: EngineOptions, problems: Iterable[Problem]) -> SimulatedWorld:
    """What simulated models say: as the dataset's world has it, the engines' own preset, or the default, in this order."""
    dataset = options.dataset if isinstance(options, RunOptions) else ""
    seed = options.seed or 0 if isinstance(options, RunOptions) else 0
    if dataset.startswith(DATA_PREFIX):
        settings = world_settings(_mix(dataset))
    else:
        settings = engines_world(_names(options).values()) or world_settings(DEFAULT_MIX)
    truths = {problem.id: problem.answer for problem in problems if problem.answer is not None}
    return SimulatedWorld(settings, seed, truths)


def _strategy(options: RunOptions) -> Family:
    given = {name: getattr(options, name) for name in RecipeOptions.model_fields}
    if given["score_threshold"] == "auto":
        given["score_threshold"] = None
    chosen = strategy(options.strategy, **given)
    needs = {role.value for role in chosen.roles}
    for role in ("target", "draft"):
        if role in needs and getattr(options, role) is None:
            raise SettingsError(
                f"Strategy {options.strategy} needs a {role} model. Give --{role} MODEL; `speclrm models list` shows "
                "models that are known by a short name."
            )
    if options.score_threshold == "auto" and Role.DRAFT in chosen.roles:
        chosen = strategy(
            options.strategy,
            **{
                **given,
                "score_threshold": kept_threshold(
                    options.target or "",
                    options.draft or "",
                    scorer=chosen.recipe.scorer,
                    judge=chosen.recipe.judge,
                    method=chosen.recipe.score_method,
                ),
            },
        )
    return chosen


def _work(chosen: Family, problems: Sequence[Problem], options: RunOptions) -> Work:
    recipe = chosen.recipe
    samples = min(len(problems) * options.repeats, options.concurrency)
    return Work(samples * recipe.tracks, 0, recipe.token_budget, recipe.max_step_tokens, suffix_tokens=0)


class _Sized:
    """Models found, tokenizers read, settings made: all that is known before anything is loaded."""

    def __init__(
        self,
        settings: Mapping[Role, EngineSettings],
        tokenizers: Mapping[Role, Tokenizer],
        simulated: Mapping[Role, SimulatedEngine] | None = None,
    ) -> None:
        self.settings = settings
        self.tokenizers = tokenizers
        self.simulated = simulated


async def _size(
    options: EngineOptions, chosen: Family, work: Work, notify: Notify, problems: Iterable[Problem] = ()
) -> _Sized:
    from speclrm.runtime.tokenizer import load_tokenizer

    names = _names(options)
    if Role.TARGET not in names:
        raise SettingsError("A draft model alone solves nothing: a target judges its steps. Give --target MODEL.")
    if _simulated(options):
        engines = simulated_engines(names, _world(options, problems), shared_device=options.shared_device)
        return _Sized({}, {}, engines)
    machine = read_machine()
    check_gpus(machine, options.tensor_parallel_size)
    for name in names.values():
        if models.find_local(name) is None:  # a wrong name is told before another model is fetched
            check_room(machine, name, options.tensor_parallel_size)
    paths = {role: await models.pull(name, notify) for role, name in names.items()}
    tokenizers = {role: await asyncio.to_thread(load_tokenizer, path) for role, path in paths.items()}
    target = tokenizers[Role.TARGET]
    prompts: list[int] = []
    for problem in problems:
        plans = [*chosen.plan(problem, 0, 0)]
        if (question := chosen.question(problem)) is not None:
            plans += chosen.plan(problem, 0, 0, [LONGEST_METHOD])  # whatever the target will choose, it is no longer
            # The question stands alone: no budget of steps follows it, only the reply.
            length = len(question_ids(target, question)) + question.max_tokens
            prompts.append(length - work.token_budget - work.max_step_tokens)
        prompts += [
            len(open_prompt(tokenizer, plan)) + len(tokenizer.encode(plan.opening))
            for plan in plans
            for tokenizer in tokenizers.values()
        ]
    suffixes = [len(target.encode(chosen.prompts.closing)) + chosen.limits.closing_tokens]
    if Role.DRAFT in names and (judge := judge_of(target, chosen.prompts)) is not None:
        suffixes.append(len(judge.ids) + 1)
    fingerprints = {tokenizer.vocabulary.fingerprint for tokenizer in tokenizers.values()}
    settings = engine_settings(
        machine,
        {role: read_facts(names[role], path) for role, path in paths.items()},
        replace(
            work,
            prompt_tokens=max([work.prompt_tokens, *prompts]),
            suffix_tokens=max(suffixes),
            same_tokenizer=len(fingerprints) == 1,
        ),
        dtype=options.dtype,
        kv_cache_bytes=None if options.kv_cache_gib is None else int(options.kv_cache_gib * (1 << 30)),
        tensor_parallel=options.tensor_parallel_size,
        gpu_share=options.gpu_memory_utilization,
    )
    extra = {Role.TARGET: options.target_args, Role.DRAFT: options.draft_args}
    settings = {role: one.model_copy(update={"extra": {**one.extra, **extra[role]}}) for role, one in settings.items()}
    return _Sized(settings, tokenizers)


async def _open(stack: AsyncExitStack, options: EngineOptions, sized: _Sized, notify: Notify) -> Parts:
    if sized.simulated is not None:

        async def close_simulated() -> None:
            await asyncio.gather(*(engine.aclose() for engine in (sized.simulated or {}).values()))

        stack.push_async_callback(close_simulated)
        # Answers of the simulated world are numbers; worker processes have no place under virtual time.
        return Parts(dict(sized.simulated), ExactEquivalence())
    from speclrm.runtime.engines.vllm import start_engines

    notify("starting the graders", None, None)
    _quiet_tracker()
    grader = await stack.enter_async_context(Grader())
    started = await start_engines(
        sized.settings,
        sized.tokenizers,
        log_path=options.engine_log or _new_engine_log(),
        notify=lambda what: notify(what, None, None),
    )
    engines: dict[Role, Engine] = {}
    for role, engine in started.items():
        engines[role] = engine

    async def close() -> None:
        await asyncio.gather(*(engine.aclose() for engine in started.values()))

    stack.push_async_callback(close)
    return Parts(engines, grader)


def _quiet_tracker() -> None:
    """Starts Python's resource tracker in a form that cleans up without a word.

    Engines are killed where they do not end at once; what they leave in shared memory is then removed by
    the tracker, and its warning about that would stand under the results.
    """
    saved = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        if saved is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = saved


def _new_engine_log() -> Path:
    """A log of its own for each start; only the newest are kept."""
    folder = models.cache_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("engines-*.log"))[: -ENGINE_LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return folder / f"engines-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"


def _new_folder(name: str) -> Path:
    return RUNS_FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"


class _Fold(Summary):
    """A sink that keeps the run's summary, and the scores as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[float] = []
        self.masses: list[float] = []
        self.lengths: dict[str, list[int]] = {"draft": [], "target": []}
        self._scored: list[tuple[tuple[str, int], float]] = []

    def emit(self, event: Event) -> None:
        self.add(event)
        if isinstance(event, StepScored):
            self.scores.append(event.value)
            self.masses.append(event.mass)
            self._scored.append(((event.problem, event.repeat), event.value))
        elif isinstance(event, StepDrafted):
            self.lengths["draft"].append(len(event.ids))
        elif isinstance(event, StepWritten) and event.write_kind != "closing":
            self.lengths["target"].append(len(event.ids))

    def labelled(self) -> list[tuple[float, bool]]:
        """The scores of steps of samples that were graded, with whether the sample was right."""
        outcomes = {(row.problem, row.repeat): row.outcome for row in self.summary().samples}
        return [
            (score, outcomes[sample] == "correct")
            for sample, score in self._scored
            if outcomes.get(sample) in ("correct", "wrong")
        ]

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


__all__ = [
    "CalibrateOptions",
    "Calibration",
    "CalibrationReport",
    "EngineOptions",
    "Notify",
    "Preview",
    "RecipeOptions",
    "RunOptions",
    "RunReport",
    "Runtime",
    "calibrate",
    "calibrate_in",
    "calibration_path",
    "choose_threshold",
    "defaults",
    "go_on",
    "is_simulated",
    "prepare",
    "preview",
    "recipe_options",
    "replay",
    "resume",
    "run",
    "run_in",
    "runtime_for",
    "solve",
    "strategy",
    "way_of_scoring",
]
