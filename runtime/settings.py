"""Defines the settings of an engine. ``machine/sizing.py`` makes them, the engines read them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

EngineDtype = Literal["auto", "bfloat16", "float16", "float32"]
Sharing = Literal["auto", "mps", "slices"]
"""How engines share a GPU: side by side by NVIDIA's MPS, by time slices, or side by side where that can be had."""
CONCURRENCY = 16
"""Default number of samples at work at the same time."""
UNREAD_MAX = 1024
"""Tokens before a likelihood that may be uncached. vLLM computes logits over the whole vocabulary for each uncached one
at once (v1/worker/gpu_model_runner.py, _get_prompt_logprobs_dict): 0.6 MB a token for 150,000 ids, and two copies. So a
plain request first reads a longer context, which costs a block if it was cached, as it nearly always is."""


class EngineSettings(BaseModel):
    """Everything that one vLLM engine is started with.

    ``cores``: the processor numbers that the engine's threads run on (CPU only). ``preload``: shared libraries put into
    LD_PRELOAD while the engine's processes are spawned, and only then. ``kv_cache_bytes``: memory for keys and values;
    None leaves it to ``gpu_memory_utilization``. ``devices``: the GPUs that its processes see, by the names that CUDA takes;
    none: all. ``estimate``: bytes that each device should need, by what for. ``parameters``: of the model, where known.
    ``extra``: further arguments of vLLM's EngineArgs, as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The model's name as the user wrote it; shown in events and messages."""
    path: Path
    """A folder with config.json and a tokenizer, and with safetensors unless weights are made up (load_format=dummy)."""
    device: Literal["cpu", "cuda"]
    dtype: EngineDtype
    max_model_len: int = Field(gt=0)
    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    block_size: int = Field(gt=0)
    kv_cache_bytes: int | None = None
    kv_cache_least: int = 0
    """Bytes of the cache that one context needs: with less, an engine does not start."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    devices: tuple[str, ...] = ()
    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)
    mps: bool = False
    """Whether it works beside the other engine on the same GPU by NVIDIA's MPS, which served it when it was loaded."""
    estimate: dict[str, int] = {}
    enforce_eager: bool = True
    cores: tuple[int, ...] = ()
    preload: tuple[str, ...] = ()
    parameters: int | None = Field(default=None, gt=0)
    extra: dict[str, JsonValue] = {}
    replicas: int = Field(default=1, ge=1)
    """Engines with these settings; ``devices`` are then those of the first, those of the second, and so on."""

    def each(self) -> tuple[EngineSettings, ...]:
        """Returns the settings of each replica. All but the first have their number in their names: ``NAME#2``."""
        size = len(self.devices) // self.replicas
        return tuple(
            self.model_copy(
                update={
                    "name": self.name if number == 0 else f"{self.name}#{number + 1}",
                    "devices": self.devices[number * size : (number + 1) * size],
                    "replicas": 1,
                }
            )
            for number in range(self.replicas)
        )
