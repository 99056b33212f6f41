"""Declares the options of engines, data, runs and calibrations; all are checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from speclrm.app.addresses import with_addresses
from speclrm.runtime.engines.http.hints import RouterHints
from speclrm.runtime.events import Scorer
from speclrm.runtime.scheduling.lanes import STALL_LIMIT_S
from speclrm.runtime.settings import CONCURRENCY, EngineDtype, Sharing
from speclrm.strategies.option import FIDELITY, LENGTHS, MODELS, PROBLEMS, RUN, SCORES, Option, declared
from speclrm.strategies.prompts import JudgeLayout
from speclrm.strategies.recipe import Recipe
from speclrm.strategies.scoring import ScoreMethod

CALIBRATION_DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"
"""Sums of three numbers: a 0.5B target takes four to five steps and about 130 tokens, and solves about two in three."""


FIRST_FREE = "the first that are free"


class Options(BaseModel):
    """Base class: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EngineOptions(Options):
    """Options of the models, and of how they are loaded or where they are."""

    target: Annotated[
        str | None,
        Option(
            "Target model: a known name, a Hugging Face repository, a folder, http/NAME@URL (a server), or sim/NAME (simulated).",
            MODELS,
            "task",
            flags=("--model-name",),
            complete="model",
        ),
    ] = None
    draft: Annotated[
        str | None,
        Option(
            "Draft model: a known name, a Hugging Face repository, a folder, http/NAME@URL (a server), or sim/NAME (simulated).",
            MODELS,
            "method",
            complete="model",
        ),
    ] = None
    target_url: Annotated[
        tuple[str, ...],
        Option("Addresses of servers that have the target, separated by commas.", MODELS, "place", metavar="URL,URL"),
    ] = ()
    draft_url: Annotated[
        tuple[str, ...],
        Option("Addresses of servers that have the draft, separated by commas.", MODELS, "place", metavar="URL,URL"),
    ] = ()
    target_tokenizer: Annotated[
        str | None,
        Option("Model whose tokenizer the target's server has.", MODELS, "task", metavar="NAME", shown="the target"),
    ] = None
    draft_tokenizer: Annotated[
        str | None,
        Option("Model whose tokenizer the draft's server has.", MODELS, "method", metavar="NAME", shown="the draft"),
    ] = None
    target_connections: Annotated[
        int | None,
        Field(ge=1),
        Option("Requests in flight at each server of the target.", MODELS, "place", shown="what it runs at once"),
    ] = None
    draft_connections: Annotated[
        int | None,
        Field(ge=1),
        Option("Requests in flight at each server of the draft.", MODELS, "place", shown="what it runs at once"),
    ] = None
    router_hints: Annotated[
        RouterHints,
        Option("Fields for a router in front of servers: none, session (vLLM) or nvext (Dynamo).", MODELS, "place"),
    ] = "none"
    dtype: Annotated[
        EngineDtype,
        Option("Data type: auto (by the processor), bfloat16, float16 or float32.", MODELS, "task", metavar="TYPE"),
    ] = "auto"
    kv_cache_gib: Annotated[
        float | None,
        Field(gt=0),
        Option("KV cache size per engine, in GiB.", MODELS, "place", shown="what the work needs"),
    ] = None
    target_dtype: Annotated[
        EngineDtype | None,
        Option("Data type of the target alone.", MODELS, "task", metavar="TYPE", shown="that of --dtype"),
    ] = None
    draft_dtype: Annotated[
        EngineDtype | None,
        Option("Data type of the draft alone.", MODELS, "method", metavar="TYPE", shown="that of --dtype"),
    ] = None
    target_devices: Annotated[
        tuple[int, ...],
        Option("GPUs of the target, by number, separated by commas.", MODELS, "place", metavar="N,N", shown=FIRST_FREE),
    ] = ()
    draft_devices: Annotated[
        tuple[int, ...],
        Option("GPUs of the draft, by number, separated by commas.", MODELS, "place", metavar="N,N", shown=FIRST_FREE),
    ] = ()
    tensor_parallel_size: Annotated[
        int | None,
        Field(ge=1),
        Option("GPUs that share each layer of an engine.", MODELS, "place", shown="1, or all devices of the engine"),
    ] = None
    target_tensor_parallel_size: Annotated[
        int | None,
        Field(ge=1),
        Option("GPUs that share each layer of the target.", MODELS, "place", shown="--tensor-parallel-size"),
    ] = None
    draft_tensor_parallel_size: Annotated[
        int | None,
        Field(ge=1),
        Option("GPUs that share each layer of the draft.", MODELS, "place", shown="--tensor-parallel-size"),
    ] = None
    target_pipeline_parallel_size: Annotated[
        int, Field(ge=1), Option("Stages of the target's layers, each on GPUs of its own.", MODELS, "place")
    ] = 1
    draft_pipeline_parallel_size: Annotated[
        int, Field(ge=1), Option("Stages of the draft's layers, each on GPUs of its own.", MODELS, "place")
    ] = 1
    gpu_memory_utilization: Annotated[
        float | None,
        Field(gt=0, le=1),
        Option(
            "Fraction of GPU memory used by all engines together, 0 to 1.", MODELS, "place", shown="what the work needs"
        ),
    ] = None
    target_gpu_memory_utilization: Annotated[
        float | None,
        Field(gt=0, le=1),
        Option("Most of each GPU's memory for the target, 0 to 1.", MODELS, "place", shown="what the work needs"),
    ] = None
    draft_gpu_memory_utilization: Annotated[
        float | None,
        Field(gt=0, le=1),
        Option("Most of each GPU's memory for the draft, 0 to 1.", MODELS, "place", shown="what the work needs"),
    ] = None
    share_gpu: Annotated[
        Sharing,
        Option(
            "How engines on one GPU share it: side by side (mps), by time slices, or mps where it can be had (auto).",
            MODELS,
            "place",
        ),
    ] = "auto"
    engine_log: Annotated[
        Path | None, Option("Log file of the engines.", MODELS, "place", shown="a new file in the cache folder")
    ] = None
    target_args: Annotated[
        dict[str, JsonValue],
        Option(
            "Additional vLLM engine argument for the target, such as quantization=fp8, or field for its server; repeatable.",
            MODELS,
            "task",
            name="target_arg",
            metavar="NAME=VALUE",
        ),
    ] = {}
    draft_args: Annotated[
        dict[str, JsonValue],
        Option(
            "Additional vLLM engine argument for the draft, or field for its server; repeatable.",
            MODELS,
            "method",
            name="draft_arg",
            metavar="NAME=VALUE",
        ),
    ] = {}
    stall_timeout: Annotated[
        float,
        Field(gt=0),
        Option(
            "Seconds without progress after which an engine counts as hung, and that a run waits for one to return.",
            MODELS,
            "place",
        ),
    ] = STALL_LIMIT_S
    shared_device: Annotated[bool, Option("Run simulated engines (sim/...) on one shared device.", MODELS, "task")] = (
        False
    )

    @model_validator(mode="before")
    @classmethod
    def _addresses_apart(cls, values: Any) -> Any:
        return with_addresses(cast("dict[str, Any]", values)) if isinstance(values, dict) else values


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
    recipe: dict[str, Any] = {}
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
    concurrency: Annotated[int, Field(ge=1), Option("Maximum number of samples in progress.", RUN, "place")] = (
        CONCURRENCY
    )
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
