"""Adds the seven commands of the original experiments: `run` and `eval` under their old names and defaults.

Names, flags and defaults are those of SSR's scripts (github.com/YuanlinChu/SSR-Spec_Scale_Reasoning, readme.md and the
scripts' parsers). Each also takes all options of `run` or `eval`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from speclrm.app.run_filter import Wanted
from speclrm.commands.config_file import configurable
from speclrm.commands.evaluate import evaluate, evaluate_into
from speclrm.commands.from_options import defaulting
from speclrm.commands.run import run

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer

PANEL = "The original experiments"
TARGET = "Qwen/QwQ-32B"
DRAFT = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


@dataclass(frozen=True, slots=True)
class Original:
    """A script that solves problems. ``defaults``: of options of `run`."""

    name: str
    strategy: str
    what: str
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class OriginalEvaluation:
    """A script that evaluates results of these strategies."""

    name: str
    strategies: tuple[str, ...]
    results_dir: str
    what: str


_COMMON: dict[str, Any] = {"dataset": "aime", "problem_id": "60", "target": TARGET}
_PAIR = {**_COMMON, "draft": DRAFT, "speculate": "always"}

ORIGINALS = (
    Original(
        "base-test",
        "baseline",
        "Run the target alone on one track (base_test.py).",
        {**_COMMON, "output_dir": Path("results/baseline_vllm_test")},
    ),
    Original(
        "scale-reason",
        "parallel",
        "Run the target alone on several tracks (scale_reason.py).",
        {**_COMMON, "output_dir": Path("results/scale_reason")},
    ),
    Original(
        "spec-scale-reason",
        "speculative",
        "Draft, score and rewrite on several tracks (spec_scale_reason.py).",
        {**_PAIR, "output_dir": Path("results/spec_scale_Inf")},
    ),
    Original(
        "spec-scale-reason-async",
        "speculative",
        "Do the same as spec-scale-reason (spec_scale_reason_async.py).",
        {**_PAIR, "output_dir": Path("results/asyn_spec_scale")},
    ),
    Original(
        "spec-scale-reason-2",
        "speculative-methods",
        "Do the same with methods that the target chooses for each problem (spec_scale_reason_2.py).",
        {**_PAIR, "output_dir": Path("results/spec_scale_Inf")},
    ),
)
EVALUATIONS = (
    OriginalEvaluation(
        "baseline-eval",
        ("baseline", "parallel"),
        "results/baseline_vllm_test",
        "Evaluate results of base_test and scale_reason (baseline_eval.py).",
    ),
    OriginalEvaluation(
        "spec-eval",
        ("speculative", "speculative-methods"),
        "results/spec_scale_Inf",
        "Evaluate results of the speculative scripts (spec_eval.py).",
    ),
)


def add_to(app: typer.Typer) -> None:
    """Adds the seven commands."""
    for original in ORIGINALS:
        command = configurable(original.name, inherits="run")(_solving(original))
        app.command(original.name, rich_help_panel=PANEL, help=original.what)(command)
    for original in EVALUATIONS:
        command = configurable(original.name, inherits="eval")(_evaluating(original))
        app.command(original.name, rich_help_panel=PANEL, help=original.what)(command)


def _solving(original: Original) -> Callable[..., None]:
    """Makes `run` without its first argument, with the script's defaults.

    Results go into a new folder each time, by model, dataset and time: the scripts add to what is there, and a run's
    folder is never overwritten.
    """

    def command(**values: Any) -> None:
        model = str(values["target"]).rstrip("/").rpartition("/")[2]
        now = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        values["output_dir"] = values["output_dir"] / model / str(values["dataset"]).replace("/", "_") / now
        run(strategy=original.strategy, **values)

    return _shaped(command, run, "strategy", original.defaults)


def _evaluating(original: OriginalEvaluation) -> Callable[..., None]:
    """Makes `eval` without its folders, with the script's."""

    def command(**values: Any) -> None:
        wanted = Wanted(values["dataset"], values["model"], values["model_size"], original.strategies)
        evaluate_into([values["results_dir"]], wanted, json=values["json"])

    defaults = {"results_dir": Path(original.results_dir), "dataset": "aime"}
    return _shaped(command, evaluate, "directories", defaults)


def _shaped(
    command: Callable[..., None], like: Callable[..., None], without: str, defaults: dict[str, Any]
) -> Callable[..., None]:
    """Returns the command with the options of another, except one, and with defaults of its own."""
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(like, eval_str=True).parameters.values():
        if parameter.name != without:
            default = defaults.get(parameter.name)
            shaped = parameter if default is None else defaulting(parameter, default)
            parameters.append(shaped.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    cast("Any", command).__signature__ = inspect.Signature(parameters)
    return command
