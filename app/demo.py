"""Runs the demonstration: solves problems with a draft and a target, then with the target alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from speclrm.app.calibrate import calibrate_in
from speclrm.app.engines import MakeEngines, make_engines, open_runtime
from speclrm.app.options import CALIBRATION_DATASET, CalibrateOptions, EngineOptions, RunOptions
from speclrm.app.resolve import make_strategy, resolve
from speclrm.app.runs import run_in
from speclrm.app.thresholds import Calibration
from speclrm.evaluators.metrics import RunSummary
from speclrm.runtime.ledger import TokenCounts
from speclrm.runtime.machine.sizing import Work
from speclrm.runtime.trace.run_directory import check_free

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.app.progress import Notify
    from speclrm.runtime.protocols import Sink

TARGET = "qwen2.5-coder-0.5b-instruct"
DRAFT = "smollm2-135m-instruct"
PROMPT_TOKENS = 512
"""Room for a problem of the demonstration."""


class DemoOptions(BaseModel):
    """Options of the demonstration; their defaults suit two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = TARGET
    draft: str = DRAFT
    dataset: str = CALIBRATION_DATASET
    limit: int = 6
    checks: int = 32
    tracks: int = 3
    token_budget: int = 160
    max_step_tokens: int = 64
    seed: int = 7


class Comparison(BaseModel):
    """The same problems twice: with drafts, and by the target alone with as many tracks."""

    model_config = ConfigDict(frozen=True)

    calibration: Calibration
    drafted_under: float
    """The threshold of the run with drafts. If none is safe, it is drafted all the same, to show what that costs."""
    speculative: RunSummary
    alone: RunSummary


async def compare(
    options: DemoOptions,
    directory: Path,
    *,
    sinks: list[Sink],
    notify: Notify,
    plan: Any = None,
    make: MakeEngines = make_engines,
) -> Comparison:
    """Calibrates on other problems, then runs both. Writes their traces to two folders below ``directory``."""
    for name in ("speculative", "baseline"):
        check_free(directory / name)
    recipe: dict[str, Any] = {
        "tracks": options.tracks,
        "token_budget": options.token_budget,
        "max_step_tokens": options.max_step_tokens,
        "score_method": "average",
    }
    common: dict[str, Any] = {
        "dataset": options.dataset,
        "target": options.target,
        "limit": options.limit,
        "seed": options.seed,
    }
    alone = resolve(RunOptions(strategy="baseline", recipe=recipe, **common), make=make)
    engines = make(EngineOptions(target=options.target, draft=options.draft), "", 0)
    calibration_options = CalibrateOptions(
        target=options.target,
        draft=options.draft,
        dataset=options.dataset,
        limit=6,
        tracks=2,
        acceptance=0.5,
        risk=0.1,
        checks=options.checks,
        token_budget=min(128, options.token_budget),
        max_step_tokens=options.max_step_tokens,
    )
    tracks = options.limit * options.tracks
    work = Work(tracks, PROMPT_TOKENS, options.token_budget, options.max_step_tokens, suffix_tokens=0)
    async with open_runtime(engines, make_strategy("speculative"), work, (), notify) as runtime:
        calibration, by_share = await calibrate_in(runtime, calibration_options, sinks, notify=notify, plan=plan)
        threshold = by_share if calibration.threshold is None else calibration.threshold
        if plan is not None:
            plan(options.limit)
        with_threshold = recipe | {"speculate": "always", "score_threshold": threshold}
        drafted = resolve(
            RunOptions(strategy="speculative", draft=options.draft, recipe=with_threshold, **common), make=make
        )
        with_drafts = await run_in(runtime, drafted, directory / "speculative", sinks)
        without = await run_in(runtime, alone, directory / "baseline", sinks)
    return Comparison(
        calibration=calibration, drafted_under=threshold, speculative=with_drafts.summary, alone=without.summary
    )


def verdict(comparison: Comparison) -> list[str]:
    """Returns lines that say which was faster here, and why: what each model had to compute, in tokens."""
    with_drafts, alone = comparison.speculative, comparison.alone
    lines = [
        f"with drafts   {with_drafts.seconds:6.1f} s, accuracy {with_drafts.accuracy or 0:.0%}, "
        f"{_committed(with_drafts)} tokens committed, {with_drafts.acceptance or 0:.0%} of the steps by the draft",
        f"target alone  {alone.seconds:6.1f} s, accuracy {alone.accuracy or 0:.0%}, {_committed(alone)} tokens committed, "
        "with as many tracks at once",
    ]
    if comparison.calibration.threshold is None:
        lines.append(
            "`--score-threshold auto` would not draft with this pair. Here steps were drafted under "
            f"{comparison.drafted_under:.3f} all the same, to show what that costs."
        )
    if not with_drafts.seconds or not alone.seconds:
        return lines
    if with_drafts.seconds < alone.seconds:
        lines.append(f"On this machine drafting was faster: {alone.seconds / with_drafts.seconds:.2f} times.")
    else:
        lines.append(
            f"On this machine the target alone was faster: {with_drafts.seconds / alone.seconds:.2f} times, for "
            f"{_committed(alone) / max(1, _committed(with_drafts)):.2f} times the tokens."
        )
    draft, target, single = (
        summary.tokens.get(role, TokenCounts())
        for summary, role in ((with_drafts, "draft"), (with_drafts, "target"), (alone, "target"))
    )
    saved = single.generated / max(1, _committed(alone)) * _committed(with_drafts) - target.generated
    lines.append(
        f"Why: drafts saved the target about {max(0, round(saved))} tokens of writing. In return it read "
        f"{target.prompt - target.cached} tokens that were not cached (steps to be scored, and the judge's question behind "
        f"each), where alone it read {single.prompt - single.cached}; and the draft wrote {draft.generated} and read "
        f"{draft.prompt - draft.cached} on the same cores. Reading is cheap on a GPU and costs nearly as much as writing on "
        "a CPU; the bigger the target beside the draft, the sooner drafting pays."
    )
    lines.append(
        f"{len(alone.samples)} problems say little about accuracy; `speclrm run` with more problems and --repeats says more."
    )
    return lines


def _committed(summary: RunSummary) -> int:
    return sum(counts.kept for counts in summary.tokens.values())
