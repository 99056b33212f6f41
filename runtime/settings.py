"""Defines the settings of an engine. ``machine/sizing.py`` makes them, the engines read them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

EngineDtype = Literal["auto", "bfloat16", "float16", "float32"]
CONCURRENCY = 16
"""Default number of samples at work at the same time."""


class EngineSettings(BaseModel):
    """Everything that one vLLM engine is started with.

    ``cores``: the processor numbers that the engine's threads run on (CPU only). ``preload``: shared libraries put into
    LD_PRELOAD while the engine's processes are spawned, and only then. ``kv_cache_bytes``: memory for keys and values;
    None leaves it to ``gpu_memory_utilization``. ``parameters``: of the model, where known. ``extra``: further arguments of
    vLLM's EngineArgs, as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The model's name as the user wrote it; shown in events and messages."""
    path: Path
    """A folder with config.json, safetensors and a tokenizer."""
    device: Literal["cpu", "cuda"]
    dtype: EngineDtype
    max_model_len: int = Field(gt=0)
    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    block_size: int = Field(gt=0)
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    enforce_eager: bool = True
    cores: tuple[int, ...] = ()
    preload: tuple[str, ...] = ()
    parameters: int | None = Field(default=None, gt=0)
    extra: dict[str, JsonValue] = {}
