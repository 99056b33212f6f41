"""The demonstration: a draft and a target solve problems together, beside the target alone on the same problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from speclrm import api
from speclrm.evaluators.datasets import load
from speclrm.evaluators.metrics import RunSummary
from speclrm.runtime.ledger import TokenCounts
from speclrm.runtime.run_directory import check_free

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.protocols import Sink

TARGET = "qwen2.5-coder-0.5b-instruct"
DRAFT = "smollm2-135m-instruct"
DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"
"""Sums of three numbers: the target takes four to five steps and about 130 tokens, and solves about two in three."""


class DemoOptions(BaseModel):
    """Small enough for two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = TARGET
    draft: str = DRAFT
    dataset: str = DATASET
    limit: int = 6
    tracks: int = 3
    token_budget: int = 160
    max_step_tokens: int = 64
    seed: int = 7


class Comparison(BaseModel):
    """The same problems twice: with drafts, and by the target alone with as many tracks."""

    model_config = ConfigDict(frozen=True)

    calibration: api.Calibration
    speculative: RunSummary
    alone: RunSummary


async def compare(
    options: DemoOptions, directory: Path, *, sinks: list[Sink], notify: api.Notify, plan: Any = None
) -> Comparison:
    """Calibrates on other problems, then runs both. Their traces are left in two folders below ``directory``."""
    for name in ("speculative", "baseline"):
        check_free(directory / name)
    recipe = {
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
        **recipe,
    }
    problems = load(options.dataset, limit=options.limit, seed=options.seed)
    calibration_options = api.CalibrateOptions(
        target=options.target,
        draft=options.draft,
        dataset=options.dataset,
        limit=6,
        tracks=2,
        acceptance=0.5,
        token_budget=min(128, options.token_budget),
        max_step_tokens=options.max_step_tokens,
    )
    async with api.Runtime(
        target=options.target,
        draft=options.draft,
        tracks=options.limit * options.tracks,
        prompt_tokens=512,
        token_budget=options.token_budget,
        max_step_tokens=options.max_step_tokens,
        notify=notify,
    ) as runtime:
        if plan is not None:
            plan(calibration_options.limit)
        calibration = await api.calibrate_in(runtime, calibration_options, sinks)
        if plan is not None:
            plan(options.limit)
        drafted = api.strategy("speculative", speculate="always", score_threshold=calibration.threshold, **recipe)
        run = api.RunOptions(
            strategy="speculative",
            speculate="always",
            draft=options.draft,
            score_threshold=calibration.threshold,
            **common,
        )
        speculative = await api.run_in(runtime, drafted, problems, run, directory / "speculative", sinks)
        direct = api.strategy("baseline", **recipe)
        run = api.RunOptions(strategy="baseline", **common)
        alone = await api.run_in(runtime, direct, problems, run, directory / "baseline", sinks)
    return Comparison(calibration=calibration, speculative=speculative.summary, alone=alone.summary)


def verdict(comparison: Comparison) -> list[str]:
    """Which was faster here, and why: what each model had to compute, in tokens."""
    with_drafts, alone = comparison.speculative, comparison.alone
    lines = [
        f"with drafts   {with_drafts.seconds:6.1f} s, accuracy {with_drafts.accuracy or 0:.0%}, "
        f"{_committed(with_drafts)} tokens committed, {with_drafts.acceptance or 0:.0%} of the steps by the draft",
        f"target alone  {alone.seconds:6.1f} s, accuracy {alone.accuracy or 0:.0%}, {_committed(alone)} tokens committed, "
        "with as many tracks at once",
    ]
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
