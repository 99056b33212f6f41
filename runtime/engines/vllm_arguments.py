"""Says what vLLM's engines are told."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from speclrm.runtime.errors import SettingsError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from speclrm.runtime.settings import EngineSettings


def arguments(settings: EngineSettings) -> dict[str, JsonValue]:
    """Returns everything that vLLM's engine is told; the rest are its own defaults."""
    options: dict[str, JsonValue] = {
        "model": str(settings.path),
        "served_model_name": settings.name,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": True,
        # Without it priorities are silently ignored (config/scheduler.py).
        "scheduling_policy": "priority",
        "disable_log_stats": True,  # no periodic lines; our own logger is passed separately
        "generation_config": "vllm",  # only we choose the sampling
        "seed": 0,
    }
    if settings.device == "cpu":
        # A seeded request whose prompt is computed in parts kills the CPU engine: the runner rewinds its generator,
        # which CPU generators cannot do (v1/worker/gpu_model_runner.py, _bookkeeping_sync).
        options["enable_chunked_prefill"] = False
    if settings.kv_cache_bytes is not None:
        options["kv_cache_memory_bytes"] = settings.kv_cache_bytes
    if settings.gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return {**options, **settings.extra}


OURS = frozenset(
    {
        *("model", "served_model_name", "max_model_len", "scheduling_policy", "generation_config", "seed"),
        *("tensor_parallel_size", "pipeline_parallel_size"),
    }
)
"""Arguments that the runtime relies on, or that have an option of their own."""


def check_arguments(settings: EngineSettings, known: set[str]) -> None:
    """Raises SettingsError for an additional argument that vLLM does not know, or that the user may not set."""
    for name in settings.extra:
        if name in OURS:
            raise SettingsError(f"{settings.name}: the engine argument {name!r} is set by SpecLRM. Leave it out.")
        if name not in known:
            close = difflib.get_close_matches(name, known - OURS, n=3)
            meant = f" Close to it: {', '.join(close)}." if close else ""
            raise SettingsError(f"{settings.name}: vLLM has no engine argument {name!r}.{meant}")
    if settings.device == "cpu" and settings.extra.get("distributed_executor_backend") == "ray":
        # v1/executor/ray_utils.py: "current platform cpu does not support ray"
        raise SettingsError(
            f"{settings.name}: vLLM runs on Ray with GPUs only. Leave distributed_executor_backend out."
        )
