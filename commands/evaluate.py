"""``eval``: evaluates runs from their traces."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speclrm.app.run_filter import Wanted
from speclrm.commands.errors import guard, say
from speclrm.commands.from_options import complete_dataset
from speclrm.commands.screen import run_async, stdout
from speclrm.runtime.engines.simulated.presets import is_simulated
from speclrm.runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from speclrm.evaluators.evaluation import Evaluation

WIDTH = 100
"""Characters that a line has at most, but for paths, which stay whole."""
OUTCOMES = ("correct", "wrong", "no_answer", "truncated", "grader_failed", "ungraded", "error")


def evaluate(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Folders of runs, or folders that contain some.")
    ] = None,
    results_dir: Annotated[Path | None, typer.Option(help="Folder to search for runs at any depth, like DIR.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "--dataset-name", help="Only runs on this dataset.", autocompletion=complete_dataset),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "--model-name", help="Only runs with this target: its name, or the last part of it."),
    ] = None,
    model_size: Annotated[
        str | None, typer.Option(help="Only runs with targets of this size, such as 32b: the end of the name.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Rewrite results.jsonl and summary.json if they are missing or stale."),
    ] = False,
) -> None:
    """Evaluate runs from their traces: accuracy, pass@k, majority, outcomes, acceptance, tokens, time.

    Runs with the same configuration are combined into one row.
    """
    folders = [*(directories or ()), *filter(None, [results_dir])]
    evaluate_into(folders, Wanted(dataset, model, model_size), json=json, rebuild=rebuild)


def evaluate_into(folders: Sequence[Path], wanted: Wanted, *, json: bool, rebuild: bool = False) -> None:
    def start() -> None:
        from speclrm.app import evaluation
        from speclrm.commands.logs import configure

        if not folders:
            raise UsageError(
                "Nothing to evaluate was named. Give the --output-dir of a run, or a folder of such: DIR..."
            )

        configure("error")
        notices: list[str] = []

        def notice(text: str) -> None:
            notices.append(text)
            say(f"note: {text}", err=True)

        found = run_async(lambda: evaluation.evaluate_runs(folders, wanted, notice=notice, rebuild=rebuild))
        if json:
            from speclrm.commands.display import print_json

            print_json({"notices": notices, "evaluations": [one.model_dump(mode="json") for one in found]})
        else:
            console = stdout()
            console.width = min(console.width, WIDTH)
            _print_evaluations(console, found)

    guard(start)


# -------------------------------------------------------------------------------------------------------------- printing


def _print_evaluations(console: Console, found: Sequence[Evaluation]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("strategy", "dataset", "samples", "accuracy", "majority", "time", "chain", "FLOPs"):
        table.add_column(name, overflow="fold")
    for one in found:
        table.add_row(
            one.strategy,
            one.dataset,
            f"{one.samples} of {one.problems} problems",
            _percent(one.accuracy),
            _percent(one.majority),
            f"{one.seconds:.0f} {'virtual s' if is_simulated(one.target) else 's'}",
            _chain(one),
            _flops(one),
        )
    console.print(table)
    for one in found:
        console.print()
        for line in _details(one):
            folded = textwrap.fill(
                line, WIDTH, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False
            )
            console.print(folded, markup=False, highlight=False, soft_wrap=True)


def _details(one: Evaluation) -> list[str]:
    budget = one.recipe.get("token_budget")
    models = one.target if one.draft is None else f"{one.target} + {one.draft}"
    lines = [
        f"{one.strategy} on {one.dataset} by {models}, budget {budget} tokens a track",
        f"runs        {', '.join(one.runs)}",
        "outcomes    " + ", ".join(f"{one.outcomes[name]} {name}" for name in OUTCOMES if name in one.outcomes),
    ]
    if one.pass_at:
        lines.append("pass@k      " + ", ".join(f"{k}: {value:.1%}" for k, value in _some(one.pass_at)))
    if one.reproduce_fault:
        lines.append(f"faults      {', '.join(one.reproduce_fault)}")
    if one.by_repeat:
        repeats = ", ".join(f"{r.repeat}: {r.accuracy:.1%} ({r.correct}/{r.graded})" for r in one.by_repeat)
        lines.append(f"by repeat   {repeats}; {one.solved} of {one.problems} problems solved at least once")
    if one.acceptance is not None:
        lines.append(
            f"steps       {one.acceptance:.1%} accepted ({one.token_acceptance or 0:.1%} of tokens), rewrite rate "
            f"{_percent(one.rewrite_rate)} of steps, {_percent(one.track_rewrite_rate)} mean of tracks"
        )
        scores = " ".join(f"{digit}:{count}" for digit, count in enumerate(one.scores) if count)
        lines.append(f"scores      {scores}")
    for role, counts in one.tokens.items():
        fates = ", ".join(
            f"{name} {value}"
            for name, value in counts.model_dump().items()
            if value and name not in ("generated", "prompt", "cached")
        )
        lines.append(
            f"{role:<12}{counts.generated} tokens generated: {fates}; prompts {counts.prompt}, of that cached {counts.cached}"
        )
    if one.sample_seconds is not None:
        virtual = "; virtual seconds" if is_simulated(one.target) else ""
        lines.append(
            f"time        {one.seconds:.1f} s of runs, {one.sample_seconds:.1f} s a sample on average{virtual}"
        )
    if one.decode_flops is not None and one.all_flops is not None:
        lines.append(f"FLOPs       {one.decode_flops:.3g} to decode, {one.all_flops:.3g} with what was read of prompts")
    lines += _intervals(one)
    if one.compared is not None and one.compared.refused is not None:
        lines.append(
            f"ratios      none to {one.compared.to}, which is of other work ({one.compared.refused}). `speclrm compare` of the "
            "two with --common compares what both have"
        )
    elif one.compared is not None:
        lines.append(f"ratios      to {one.compared.to}")
    return lines


def _intervals(one: Evaluation) -> list[str]:
    """Shows the 95 % intervals of the figures above."""
    if one.intervals is None:
        return []
    k, chance = max(one.pass_at_intervals.items(), default=(1, None))
    shares = {
        "accuracy": one.intervals.accuracy,
        f"pass@{k}": chance if k > 1 else None,
        "majority": one.majority_interval if k > 1 else None,
        "acceptance": one.intervals.acceptance,
    }
    means = {"tokens a sample": one.intervals.tokens, "seconds a sample": one.intervals.seconds}
    said = [f"{name} {found.low:.0%} to {found.high:.0%}" for name, found in shares.items() if found is not None]
    said += [f"{found.low:,.0f} to {found.high:,.0f} {name}" for name, found in means.items() if found is not None]
    return [f"{name:<12}{', '.join(part)}" for name, part in (("95 %", said[:4]), ("", said[4:])) if part]


def _some(pass_at: dict[int, float]) -> list[tuple[int, float]]:
    """Selects k = 1, 2, 4, ... and the last."""
    last = max(pass_at, default=0)
    return [(k, value) for k, value in pass_at.items() if k & (k - 1) == 0 or k == last]


def _chain(one: Evaluation) -> str:
    ratio = one.compared.chain_length if one.compared else None
    length = "-" if one.chain_length is None else f"{one.chain_length:.0f}"
    return length if ratio is None else f"{length} ({ratio:.2f}x)"


def _flops(one: Evaluation) -> str:
    """Shows decode FLOPs and all FLOPs, as ratios if there is a baseline."""
    if one.compared is not None and one.compared.decode_flops is not None and one.compared.all_flops is not None:
        return f"{one.compared.decode_flops:.2f}x, {one.compared.all_flops:.2f}x"
    if one.decode_flops is None or one.all_flops is None:
        return "-"
    return f"{one.decode_flops:.2g}, {one.all_flops:.2g}"


def _percent(value: Any) -> str:
    return "-" if value is None else f"{value:.1%}"
