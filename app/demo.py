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
from speclrm.runtime.events import ModeChanged
from speclrm.runtime.machine.sizing import Work
from speclrm.runtime.scheduling.controller import PROBE_REASON
from speclrm.runtime.trace.run_directory import check_free

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.app.progress import Notify
    from speclrm.runtime.events import Event
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
    checks: int = 16
    tracks: int = 3
    token_budget: int = 160
    max_step_tokens: int = 64
    seed: int = 7


class Comparison(BaseModel):
    """The same problems twice: with drafts, and by the target alone with as many tracks."""

    model_config = ConfigDict(frozen=True)

    calibration: Calibration
    drafted_under: float
    """The threshold of the run with drafts. If none is safe, the one that keeps the share asked for."""
    decision: str
    """Why ``--speculate auto`` drafted, or left steps to the target; empty if it decided nothing."""
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
        # Without hints, so that both runs write alike: hints cost a small model more answers than drafts do.
        with_threshold = recipe | {"speculate": "auto", "score_threshold": threshold, "plan": "plain"}
        drafted = resolve(
            RunOptions(strategy="speculative", draft=options.draft, recipe=with_threshold, **common), make=make
        )
        decisions = _Decisions()
        with_drafts = await run_in(runtime, drafted, directory / "speculative", [*sinks, decisions])
        without = await run_in(runtime, alone, directory / "baseline", sinks)
    return Comparison(
        calibration=calibration,
        drafted_under=threshold,
        decision=decisions.last,
        speculative=with_drafts.summary,
        alone=without.summary,
    )


class _Decisions:
    """A sink that keeps the reason of the last decision to draft or not."""

    def __init__(self) -> None:
        self.last = ""

    def emit(self, event: Event) -> None:
        if isinstance(event, ModeChanged) and event.reason != PROBE_REASON:
            self.last = event.reason

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def verdict(comparison: Comparison) -> list[str]:
    """Returns lines that say which was faster here, and why."""
    auto, alone = comparison.speculative, comparison.alone
    drafted = auto.acceptance is not None
    lines = [
        f"auto          {auto.seconds:6.1f} s, accuracy {auto.accuracy or 0:.0%}, {_committed(auto)} tokens committed, "
        + (f"{auto.acceptance:.0%} of the drafted steps kept" if drafted else "no step drafted"),
        f"target alone  {alone.seconds:6.1f} s, accuracy {alone.accuracy or 0:.0%}, {_committed(alone)} tokens committed, "
        "with as many tracks at once",
    ]
    if comparison.calibration.threshold is None:
        lines.append(
            "`--score-threshold auto` would not draft with this pair: no threshold is safe. Here the threshold is "
            f"{comparison.drafted_under:.3f} all the same, so that the time alone decides."
        )
    if auto.seconds and alone.seconds:
        ratio = alone.seconds / auto.seconds * _committed(auto) / max(1, _committed(alone))
        lines.append(
            f"On this machine `--speculate auto` made {ratio:.2f} times the tokens a second of the target alone."
        )
    if comparison.decision:
        lines.append(f"Its last decision: {comparison.decision} (docs/scheduling.md has the arithmetic).")
    lines.append(
        f"{len(alone.samples)} problems say little about accuracy; `speclrm run` with more problems and --repeats says more."
    )
    return lines


def _committed(summary: RunSummary) -> int:
    return sum(counts.kept for counts in summary.tokens.values())
