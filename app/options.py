"""What a run and a calibration can be told: checked as a whole before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from speclrm.runtime.protocols import Speculate
from speclrm.runtime.runtime import CONCURRENCY
from speclrm.strategies.plan import PlanKind
from speclrm.strategies.prompts import JudgeLayout
from speclrm.strategies.recipe import Fidelity, PromptStyle, WorkAhead
from speclrm.strategies.scoring import ScoreMethod, Scorer
from speclrm.strategies.stopping import Fast

EngineDtype = Literal["auto", "bfloat16", "float16", "float32"]


class Options(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EngineOptions(Options):
    """The models and how they are loaded.

    ``kv_cache_gib``: for each engine; by default as much as the work needs. ``tensor_parallel_size``: GPUs that share an
    engine. ``gpu_memory_utilization``: the share of a GPU's memory that all engines together may take.
    """

    target: str | None = None
    draft: str | None = None
    dtype: EngineDtype = "auto"
    kv_cache_gib: float | None = Field(default=None, gt=0)
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    engine_log: Path | None = None
    target_args: dict[str, JsonValue] = {}
    """Further arguments of vLLM's engine, by their names there, for the target; and for the draft."""
    draft_args: dict[str, JsonValue] = {}
    shared_device: bool = False
    """Whether simulated engines share one device; real ones always run on what this machine has."""


class RecipeOptions(Options):
    """Parameters of a strategy; None leaves one at the strategy's default (``strategies/recipe.py``)."""

    tracks: int | None = None
    plan: PlanKind | None = None
    methods: tuple[str, ...] | None = None
    duplicates: bool | None = None
    prompt_style: PromptStyle | None = None
    fast: Fast | None = None
    speculate: Speculate | None = None
    draft_ahead: WorkAhead | None = None
    rewrite_ahead: WorkAhead | None = None
    fidelity: Fidelity | None = None
    scorer: Scorer | None = None
    judge: JudgeLayout | None = None
    score_threshold: float | Literal["auto"] | None = None
    score_method: ScoreMethod | None = None
    token_budget: int | None = None
    max_step_tokens: int | None = None
    min_step_tokens: int | None = None
    gate_sure: float | None = None
    gate_doubt: float | None = None
    gate_entropy: float | None = None
    gate_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    step_limit: int | None = None
    closing: bool | None = None


class DataOptions(Options):
    """Which problems. ``problem_ids``: as in ``60-89,95``. ``sample``: so many at random, by the seed. ``limit``: the first
    so many of what is left. The columns are those of a file of one's own.
    """

    dataset: str
    data_dir: Path | None = None
    problem_ids: str | None = None
    sample: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    problem_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None


class RunOptions(EngineOptions, RecipeOptions, DataOptions):
    """Everything that ``speclrm run`` can be told. ``reproduce_fault``: names in ``speclrm/faults.py``."""

    strategy: str
    output_dir: Path | None = None
    reproduce_fault: tuple[str, ...] = ()
    repeats: int = Field(default=1, ge=1)
    concurrency: int = Field(default=CONCURRENCY, ge=1)
    seed: int | None = 0
    compress_trace: bool = False


class CalibrateOptions(EngineOptions):
    """Everything that ``speclrm calibrate`` can be told. ``acceptance``: the share of drafts that should be kept."""

    dataset: str = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"
    limit: int = Field(default=4, ge=1)
    tracks: int = Field(default=2, ge=1)
    token_budget: int = Field(default=256, ge=1)
    max_step_tokens: int = Field(default=128, ge=1)
    score_method: ScoreMethod = "average"
    scorer: Scorer = "judge"
    judge: JudgeLayout = "auto"
    acceptance: float = Field(default=0.6, gt=0, lt=1)
    quick: bool = False
    """Fewer measurements of what the engines cost."""
    preset_file: Path | None = None
    """Where the preset for simulated engines goes; by default into the cache, under a name made of the models."""
    seed: int = 1_000_003
