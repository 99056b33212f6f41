"""Runs the demonstration: solves problems with a draft and a target, and with the target alone, in turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from speclrm.app.calibrate import calibrate_in
from speclrm.app.engines import MakeEngines, make_engines, open_runtime
from speclrm.app.options import CALIBRATION_DATASET, CalibrateOptions, EngineOptions, RunOptions
from speclrm.app.resolve import make_strategy, resolve
from speclrm.app.runs import run_in
from speclrm.app.thresholds import Calibration
from speclrm.evaluators.metrics import RunSummary
from speclrm.runtime.events import ModeChanged, StepCommitted, StepDrafted, StepScored, StepWritten
from speclrm.runtime.machine.sizing import Work
from speclrm.runtime.scheduling.controller import PROBE_REASON
from speclrm.runtime.trace.run_directory import check_free

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.app.progress import Notify
    from speclrm.app.resolve import Resolved
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink

TARGET = "qwen2.5-coder-0.5b-instruct"
DRAFT = "smollm2-135m-instruct"
PROMPT_TOKENS = 512
"""Room for a problem of the demonstration."""
AGAIN_LIMIT_S = 90.0
"""Seconds that both ways may have taken to be run again, the other way round. Longer runs depend less on the moment."""

LINE = 100
"""Characters of a step that are shown."""

Way = Literal["speculative", "baseline"]


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


class Example(BaseModel):
    """A step that was drafted. ``instead``: what the target wrote, if it rewrote the step."""

    model_config = ConfigDict(frozen=True)

    text: str
    score: float
    instead: str | None


class Drafts(BaseModel):
    """What became of the steps that were drafted in the calibration, with an example of each fate."""

    model_config = ConfigDict(frozen=True)

    kept: int
    rewritten: int
    examples: tuple[Example, ...]


class Comparison(BaseModel):
    """The same problems both ways: with drafts, and by the target alone with as many tracks."""

    model_config = ConfigDict(frozen=True)

    calibration: Calibration
    drafted_under: float
    """The threshold of the run with drafts. If none is safe, the one that keeps the share asked for."""
    decision: str
    """Why ``--speculate auto`` drafted, or left steps to the target; empty if it decided nothing."""
    drafts: Drafts
    speculative: tuple[RunSummary, ...]
    """One a turn. Further turns have the same chains, at another time."""
    alone: tuple[RunSummary, ...]
    folders: tuple[str, ...]
    """Those of the turns, in their order."""


async def compare(
    options: DemoOptions,
    directory: Path,
    *,
    sinks: list[Sink],
    notify: Notify,
    plan: Any = None,
    make: MakeEngines = make_engines,
) -> Comparison:
    """Calibrates on other problems, then runs both, and again in the other order if they are quick: the first turn of a pair
    finds the machine as it is then. Writes a folder for each turn below ``directory``.
    """
    for folder in ("speculative", "baseline", "speculative-2", "baseline-2"):
        check_free(directory / folder)
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
        drafts = _Drafts()
        calibration, by_share = await calibrate_in(
            runtime, calibration_options, [*sinks, drafts], notify=notify, plan=plan
        )
        threshold = by_share if calibration.threshold is None else calibration.threshold
        if plan is not None:
            plan(options.limit)
        # Without hints, so that both runs write alike: hints cost a small model more answers than drafts do.
        with_threshold = recipe | {"speculate": "auto", "score_threshold": threshold, "plan": "plain"}
        drafted = resolve(
            RunOptions(strategy="speculative", draft=options.draft, recipe=with_threshold, **common), make=make
        )
        decisions = _Decisions()
        ways: dict[Way, Resolved] = {"speculative": drafted, "baseline": alone}
        found: dict[Way, list[RunSummary]] = {"speculative": [], "baseline": []}
        folders: list[str] = []

        async def turn(way: Way) -> None:
            folders.append(f"{way}-2" if found[way] else way)
            done = await run_in(runtime, ways[way], directory / folders[-1], [*sinks, decisions])
            found[way].append(done.summary)

        began = asyncio.get_running_loop().time()
        await turn("speculative")
        await turn("baseline")
        if asyncio.get_running_loop().time() - began < AGAIN_LIMIT_S:
            notify("once more, the other way round", None, None)
            await turn("baseline")
            await turn("speculative")
    return Comparison(
        calibration=calibration,
        drafted_under=threshold,
        decision=decisions.last,
        drafts=drafts.found,
        speculative=tuple(found["speculative"]),
        alone=tuple(found["baseline"]),
        folders=tuple(folders),
    )


class _Ready:
    """What a sink that is always ready has beside ``emit``."""

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class _Decisions(_Ready):
    """Keeps the reason of the last decision to draft or not."""

    def __init__(self) -> None:
        self.last = ""

    def emit(self, event: Event) -> None:
        if isinstance(event, ModeChanged) and event.reason != PROBE_REASON:
            self.last = event.reason


class _Drafts(_Ready):
    """Counts drafted steps by their fate, and keeps an example of each: a long one, as "1." says little."""

    def __init__(self) -> None:
        self._drafted: dict[tuple[str, str], str] = {}
        self._score: dict[tuple[str, str], float] = {}
        self._instead: dict[tuple[str, str], str] = {}
        self._counts = {"draft": 0, "rewrite": 0}
        self._examples: dict[str, Example] = {}

    def emit(self, event: Event) -> None:
        match event:
            case StepDrafted():
                self._drafted[event.problem, event.track] = event.text
                self._score.pop((event.problem, event.track), None)
            case StepScored():
                self._score[event.problem, event.track] = event.value
            case StepWritten():
                self._instead[event.problem, event.track] = event.text
            case StepCommitted(origin="draft" | "rewrite" as origin):
                key = event.problem, event.track
                self._counts[origin] += 1
                if key not in self._score:
                    return  # an engine refused to score it
                instead = self._instead[key] if origin == "rewrite" else None
                example = Example(text=self._drafted[key], score=self._score[key], instead=instead)
                self._examples[origin] = max(self._examples.get(origin, example), example, key=_length)
            case _:
                pass

    @property
    def found(self) -> Drafts:
        examples = (self._examples[origin] for origin in ("draft", "rewrite") if origin in self._examples)
        return Drafts(kept=self._counts["draft"], rewritten=self._counts["rewrite"], examples=tuple(examples))


def _length(example: Example) -> int:
    return min(len(example.text), len(example.text if example.instead is None else example.instead))


def drafted_lines(comparison: Comparison) -> list[str]:
    """Returns lines about the drafted steps of the calibration."""
    drafts = comparison.drafts
    lines = [
        f"The calibration drafted and scored {drafts.kept + drafts.rewritten} steps on other problems: "
        f"{drafts.kept} were kept and {drafts.rewritten} rewritten. For example:"
    ]
    for example in drafts.examples:
        fate = "kept" if example.instead is None else "rewritten"
        lines.append(f"  {fate:10} {example.score:4.2f}  {_line(example.text)}")
        if example.instead is not None:
            lines.append(f"  {'as':10}       {_line(example.instead)}")
    return lines


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= LINE else words[: LINE - 3] + "..."


def verdict(comparison: Comparison) -> list[str]:
    """Returns lines that say which was faster here, and why."""
    auto, alone = comparison.speculative[0], comparison.alone[0]
    drafted = auto.acceptance is not None
    lines = [
        f"auto          {_figures(comparison.speculative)}, "
        + (f"{auto.acceptance:.0%} of the drafted steps kept" if drafted else "no step drafted"),
        f"target alone  {_figures(comparison.alone)}, with as many tracks at once",
    ]
    if comparison.calibration.threshold is None:
        lines.append(
            "`--score-threshold auto` would not draft with this pair: no threshold is safe. Here the threshold is "
            f"{comparison.drafted_under:.3f} all the same, so that the time alone decides."
        )
    if rate(comparison.alone):
        ratio = rate(comparison.speculative) / rate(comparison.alone)
        lines.append(
            f"On this machine `--speculate auto` made {ratio:.2f} times the tokens a second of the target alone."
        )
    if comparison.decision:
        lines.append(f"Its last decision: {comparison.decision} (docs/scheduling.md has the arithmetic).")
    lines.append(
        f"{len(alone.samples)} problems say little about accuracy; `speclrm run` with more problems and --repeats says more."
    )
    return lines


def rate(turns: tuple[RunSummary, ...]) -> float:
    """Returns committed tokens a second of all turns together; 0 if they took no time."""
    seconds = sum(turn.seconds for turn in turns)
    return sum(map(_committed, turns)) / seconds if seconds else 0.0


def _figures(turns: tuple[RunSummary, ...]) -> str:
    seconds = " and ".join(f"{turn.seconds:.1f} s" for turn in turns)
    return f"{seconds}, accuracy {turns[0].accuracy or 0:.0%}, {_committed(turns[0])} tokens committed"


def _committed(summary: RunSummary) -> int:
    return sum(counts.kept for counts in summary.tokens.values())
