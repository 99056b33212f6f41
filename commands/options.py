"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from speclrm.commands.screen import DisplayKind, LogLevel

PROBLEMS, MODELS, STRATEGY, FIDELITY, RUN, SCREEN = (
    "Problems",
    "Models and engines",
    "Strategy",
    "The original experiments",
    "Run",
    "Screen and logs",
)
"""Panels of the help."""


def complete_model(incomplete: str) -> list[str]:
    from speclrm.runtime.known_models import KNOWN

    return [name for name in KNOWN if name.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[str]:
    from speclrm.evaluators.benchmarks import ALIASES, BENCHMARKS

    return [name for name in (*BENCHMARKS, *ALIASES) if name.startswith(incomplete)]


def complete_strategy(incomplete: str) -> list[str]:
    from speclrm.strategies.catalog import ALIASES, STRATEGIES

    return [name for name in (*STRATEGIES, *ALIASES) if name.startswith(incomplete)]


def complete_fault(incomplete: str) -> list[str]:
    from speclrm.app.original_faults import FAULTS

    return [name for name in FAULTS if name.startswith(incomplete)]


Draft = Annotated[
    str | None,
    typer.Option(
        help="Draft model: a known name, a hub repository, or a folder.",
        rich_help_panel=MODELS,
        autocompletion=complete_model,
    ),
]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    typer.Option(help="Data type of the engines; auto goes by the processor.", rich_help_panel=MODELS),
]
ScoreMethod = Annotated[
    Literal["greedy", "average"] | None,
    typer.Option(
        help="The judge's best digit, or the expected one over digits.", show_default="greedy", rich_help_panel=STRATEGY
    ),
]
Scorer = Annotated[
    Literal["judge", "likelihood"] | None,
    typer.Option(
        help="A digit of the target's, or how likely it finds the step.", show_default="judge", rich_help_panel=STRATEGY
    ),
]
Judge = Annotated[
    Literal["auto", "turn", "inline"] | None,
    typer.Option(
        help="Where the judge is asked: in a turn of its own, or in a short note behind the step.",
        show_default="auto",
        rich_help_panel=STRATEGY,
    ),
]
Display = Annotated[
    DisplayKind | None,
    typer.Option(
        help="rich: live view; plain: lines; json: one JSON object a sample on stdout; none: only the report.",
        show_default="rich on a terminal, plain elsewhere",
        rich_help_panel=SCREEN,
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(help="Diagnostics as JSON lines into this file instead of stderr.", rich_help_panel=SCREEN),
]
LogLevelOption = Annotated[LogLevel, typer.Option(help="Least level of diagnostics.", rich_help_panel=SCREEN)]
