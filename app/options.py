"""Declares the options of data, runs and calibrations; all are checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, field_validator, model_validator

from speclrm.app.engine_options import EngineOptions, Options
from speclrm.runtime.events import Scorer
from speclrm.runtime.settings import CONCURRENCY
from speclrm.strategies.option import FIDELITY, LENGTHS, PROBLEMS, RUN, SCORES, Option, declared
from speclrm.strategies.prompts import JudgeLayout
from speclrm.strategies.recipe import Recipe
from speclrm.strategies.scoring import ScoreMethod

CALIBRATION_DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"
"""Sums of three numbers: a 0.5B target takes four to five steps and about 130 tokens, and solves about two in three."""


class DataOptions(Options):
    """Options that select the problems."""

    dataset: Annotated[
        str,
        Option(
            "Benchmark (aime, aime25, math500, gpqa, livemathbench, gsm8k, amc23), reasoning-gym:TASK, sim:NAME (simulated), "
            "or a JSONL, CSV or Parquet file.",
            PROBLEMS,
            "task",
            flags=("--dataset-name",),
            complete="dataset",
        ),
    ]
    data_dir: Annotated[
        Path | None,
        Option(
            "Folder with the benchmark's rows (JSONL, CSV or Parquet).",
            PROBLEMS,
            "problems",
            shown="downloaded from the hub",
        ),
    ] = None
    problem_ids: Annotated[
        str | None,
        Option(
            "Problems to run, such as 60-89,95: ids, or row numbers from 0 if ids are not numbers.",
            PROBLEMS,
            "problems",
            name="problem_id",
            shown="all",
        ),
    ] = None
    sample: Annotated[
        int | None, Field(ge=1), Option("Random sample of N problems (seeded).", PROBLEMS, "problems", shown="all")
    ] = None
    limit: Annotated[
        int | None, Field(ge=1), Option("Maximum number of problems.", PROBLEMS, "problems", shown="all")
    ] = None
    problem_column: Annotated[
        str | None,
        Option("Column that holds the problems.", PROBLEMS, "problems", shown="problem, question or prompt"),
    ] = None
    answer_column: Annotated[
        str | None, Option("Column that holds the answers.", PROBLEMS, "problems", shown="answer, gold or expected")
    ] = None
    id_column: Annotated[
        str | None, Option("Column that holds the ids.", PROBLEMS, "problems", shown="id, unique_id or problem_id")
    ] = None


class RunOptions(EngineOptions, DataOptions):
    """All options of ``speclrm run``.

    ``recipe``: the options of the strategy that are given, by the names of ``Recipe``, which checks them; they may also
    be given flat, beside the others. ``score_threshold`` may be ``auto``: the threshold that a calibration kept.
    """

    strategy: str
    recipe: dict[str, Any] = Field(default_factory=dict[str, Any])
    repeats: Annotated[
        int, Field(ge=1), Option("Samples per problem.", PROBLEMS, "draw", flags=("--repeat-id", "--num-repeats"))
    ] = 1
    shard: Annotated[
        str | None,
        Option(
            "Part of the selected problems to run: 2/8 is the second of eight. `speclrm merge` puts the parts together.",
            PROBLEMS,
            "problems",
            metavar="K/N",
            shown="all",
        ),
    ] = None
    reproduce_fault: Annotated[
        tuple[str, ...],
        Option(
            "Faults of the original code to reproduce, separated by commas; `speclrm faults` lists them.",
            FIDELITY,
            "method",
            metavar="NAMES",
            complete="fault",
        ),
    ] = ()
    output_dir: Annotated[
        Path | None,
        Option("Folder of the run; must be new or empty.", RUN, "place", shown="runs/<time>-<strategy>"),
    ] = None
    seed: Annotated[
        int | None,
        Option(
            "Random seed: a whole number, or none for unseeded sampling.",
            RUN,
            "draw",
            words=("none",),
            metavar="NUMBER|none",
        ),
    ] = 0
    concurrency: Annotated[
        int,
        Field(ge=1),
        Option(
            "Maximum number of samples in progress. The next one starts when as many tracks have ended as it has.",
            RUN,
            "place",
        ),
    ] = CONCURRENCY
    max_errors: Annotated[
        int | None,
        Field(ge=0),
        Option(
            "Samples that may end in an error (every track failed, or the grader did); one more ends the run, which can be "
            "resumed.",
            RUN,
            "place",
            shown="no limit",
        ),
    ] = None
    sinks: Annotated[
        tuple[str, ...],
        Option(
            "Sinks of other packages that get the run's events, separated by commas: a name, MODULE:NAME or FILE.py:NAME.",
            RUN,
            "place",
            name="sink",
            metavar="NAMES",
        ),
    ] = ()
    compress_trace: Annotated[
        bool, Option("Compress closed trace segments of 256 MiB with zstd (needs pyarrow).", RUN, "place")
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _recipe_apart(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = cast("dict[str, Any]", values)
        flat = {name: value for name, value in given.items() if name in Recipe.model_fields and value is not None}
        rest = {name: value for name, value in given.items() if name not in Recipe.model_fields}
        recipe: dict[str, Any] = rest.get("recipe") or {}
        return rest | {"recipe": flat | recipe}

    @field_validator("reproduce_fault")
    @classmethod
    def _with_dashes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.replace("_", "-") for name in names)


class CalibrateOptions(EngineOptions):
    """All options of ``speclrm calibrate``."""

    dataset: Annotated[
        str,
        Option("Problems to calibrate on; use others than those of later runs.", PROBLEMS, "task", complete="dataset"),
    ] = CALIBRATION_DATASET
    limit: Annotated[int, Field(ge=1), Option("Number of problems.", PROBLEMS, "problems")] = 4
    tracks: Annotated[int, Field(ge=1), Option("Parallel tracks per problem.")] = 2
    token_budget: Annotated[int, Field(ge=1), Option("Maximum tokens per track.", LENGTHS)] = 256
    max_step_tokens: Annotated[int, Field(ge=1), Option("Maximum tokens per step.", LENGTHS)] = 128
    score_method: Annotated[
        ScoreMethod,
        Option("The judge's most probable digit (greedy), or the expected value over digits (average).", SCORES),
    ] = "average"
    scorer: Annotated[
        Scorer,
        Option(
            "Score of a draft step: a digit written by the target, or its mean log-likelihood (experimental).", SCORES
        ),
    ] = "judge"
    judge: Annotated[
        JudgeLayout,
        Option(
            "Where the judge's question stands: in a turn of its own, or inline after the step (experimental).", SCORES
        ),
    ] = "auto"
    risk: Annotated[
        float,
        Field(gt=0, lt=1),
        Option("Share of the target's right answers that drafts may cost under the threshold, 0 to 1.", SCORES),
    ] = 0.05
    confidence: Annotated[float, Field(gt=0, lt=1), Option("Confidence with which --risk is kept, 0 to 1.", SCORES)] = (
        0.9
    )
    checks: Annotated[
        int,
        Field(ge=0),
        Option("Problems that --risk is checked on; 0: take the threshold that keeps --acceptance, unchecked.", SCORES),
    ] = 80
    acceptance: Annotated[
        float,
        Field(gt=0, lt=1),
        Option(
            "Share of draft steps accepted while scores are collected, and by the threshold with --checks 0.", SCORES
        ),
    ] = 0.6
    quick: Annotated[bool, Option("Take fewer measurements of the engines.", RUN)] = False
    preset_file: Annotated[
        Path | None,
        Option("File for the preset of simulated engines.", RUN, shown="in the cache, named after the models"),
    ] = None
    seed: int = 1_000_003


RUN_DECLARED = declared(DataOptions, EngineOptions, Recipe, RunOptions)
"""The options of a run, including those of its recipe, by their fields' names."""
