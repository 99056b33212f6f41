"""Compares the simulator with real runs on this machine, on problems that its calibration did not see.

    speclrm calibrate qwen2.5-coder-0.5b-instruct --draft smollm2-135m-instruct --acceptance 0.5 --checks 0 \\
        --preset-file preset.json
    python benchmarks/studies/simulator.py --preset preset.json --real 5 --json simulator.json

Each round solves the same problems with drafts and with the target alone, in one start of the engines; ``--json`` keeps
the measurements, and later calls add to it: rounds may be spread over quiet times. The same runs are then simulated
with the costs, the scores and the step lengths of the preset. Goal: the medians differ by no more than the larger of 15
% and the real runs' own spread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from speclrm import api
from speclrm.app.resolve import resolve
from speclrm.app.runs import run_in
from speclrm.evaluators.datasets import load
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.simulated.presets import PREFIX, read_preset

if TYPE_CHECKING:
    from speclrm.evaluators.metrics import RunSummary

DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"
PROBLEMS_SEED = 7
GOAL = 0.15
KINDS = ("speculative", "baseline")


@dataclass
class Run:
    """``load``: processes that wanted a core in the last minute, this run's own among them."""

    kind: str
    real: bool
    seconds: float
    kept: int
    steps: int
    acceptance: float | None
    load: float


def outcome(kind: str, summary: RunSummary, *, real: bool) -> Run:
    return Run(
        kind=kind,
        real=real,
        seconds=summary.seconds,
        kept=sum(counts.kept for counts in summary.tokens.values()),
        steps=summary.accepted + summary.rewritten + summary.written,
        acceptance=summary.acceptance,
        load=os.getloadavg()[0],
    )


def recipe(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    common = {"tracks": options.tracks, "token_budget": options.token_budget, "max_step_tokens": 128}
    if kind == "baseline":
        return common
    return common | {"score_method": "average", "score_threshold": options.threshold, "speculate": "always"}


def run_options(options: argparse.Namespace, kind: str, target: str, draft: str, seed: int) -> api.RunOptions:
    return api.RunOptions(
        strategy=kind,
        dataset=DATASET,
        target=target,
        draft=draft if kind == "speculative" else None,
        limit=options.limit,
        seed=seed,
        recipe=recipe(options, kind),
    )


async def add_real_runs(options: argparse.Namespace, target: str, draft: str, runs: list[Run]) -> None:
    """Adds each run as soon as it has ended: what stops a later one must not lose it."""
    first = len(runs) // len(KINDS)
    problems = load(DATASET, limit=options.limit, seed=PROBLEMS_SEED)
    async with api.Runtime(
        target=target,
        draft=draft,
        tracks=options.limit * options.tracks,
        prompt_tokens=256,
        token_budget=options.token_budget,
        max_step_tokens=128,
    ) as runtime:
        for seed in range(first, first + options.real):
            for kind in KINDS:
                with tempfile.TemporaryDirectory() as folder:
                    asked = run_options(options, kind, target, draft, seed)
                    found = replace(resolve(asked), problems=problems)
                    report = await run_in(runtime, found, Path(folder) / "run")
                runs.append(outcome(kind, report.summary, real=True))
                options.json.write_text(json.dumps([asdict(run) for run in runs], indent=2))


def simulated_runs(options: argparse.Namespace) -> list[Run]:
    found: list[Run] = []
    name = f"{PREFIX}{options.preset}"
    for seed in range(options.simulated):
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                asked = run_options(options, kind, name, name, seed)
                asked = asked.model_copy(update={"output_dir": Path(folder) / "run"})
                report = run_virtual(api.run(asked))
            found.append(outcome(kind, report.summary, real=False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="a file by `speclrm calibrate --preset-file`")
    parser.add_argument("--real", type=int, default=0, help="rounds of real runs to add")
    parser.add_argument("--simulated", type=int, default=5, help="simulated runs, by seed")
    parser.add_argument("--limit", type=int, default=6, help="problems")
    parser.add_argument("--tracks", type=int, default=2)
    parser.add_argument("--token-budget", type=int, default=160)
    parser.add_argument("--threshold", type=float, help="of the score; by default that of the calibration")
    parser.add_argument("--json", type=Path, default=Path("simulator.json"), help="keeps the real runs")
    options = parser.parse_args()
    preset = read_preset(options.preset)
    assert preset.world is not None
    target, draft = preset.measured["target"], preset.measured["draft"]
    if options.threshold is None:
        from speclrm.app.thresholds import kept_threshold

        options.threshold = kept_threshold(target, draft, scorer="judge", judge="auto", method="average").threshold
        if options.threshold is None:
            raise SystemExit("The calibration found no safe threshold; give --threshold a number.")
    runs = [Run(**row) for row in json.loads(options.json.read_text())] if options.json.exists() else []
    if options.real:
        asyncio.run(add_real_runs(options, target, draft, runs))
    report(runs, simulated_runs(options))


def report(real: list[Run], simulated: list[Run]) -> None:
    console = Console(width=150)
    table = Table(box=None, pad_edge=False)
    columns = ("run", "", "seconds", "median", "spread", "steps", "tokens", "tokens/s", "accepted", "load")
    for name in columns:
        table.add_column(name)
    for kind in KINDS:
        medians: list[float] = []
        allowed = GOAL
        for name, runs in (("real", real), ("simulated", simulated)):
            chosen = [run for run in runs if run.kind == kind]
            if not chosen:
                continue
            seconds = [run.seconds for run in chosen]
            medians.append(median(seconds))
            spread = (max(seconds) - min(seconds)) / medians[-1]
            if name == "real":
                allowed = max(GOAL, spread)
            accepted = [run.acceptance for run in chosen if run.acceptance is not None]
            table.add_row(
                kind,
                name,
                " ".join(f"{value:.1f}" for value in seconds),
                f"{medians[-1]:.1f}",
                f"{spread:.0%}",
                f"{median(run.steps for run in chosen):.0f}",
                f"{median(run.kept for run in chosen):.0f}",
                f"{median(run.kept / run.seconds for run in chosen):.1f}",
                f"{median(accepted):.0%}" if accepted else "",
                f"{median(run.load for run in chosen):.1f}",
            )
        if len(medians) == 2:
            ratio = medians[1] / medians[0]
            verdict = "within" if abs(ratio - 1) <= allowed else "outside"
            table.add_row(kind, "simulated / real", f"{ratio:.2f}", "", f"{verdict} {allowed:.0%}")
    console.print(table)


if __name__ == "__main__":
    main()
