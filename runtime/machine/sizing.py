"""Computes the engines' settings from the machine, the models and the work, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.errors import CapacityError, ModelError
from speclrm.runtime.models.store import tensor_bytes
from speclrm.runtime.settings import EngineDtype, EngineSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from speclrm.runtime.machine.hardware import Machine
    from speclrm.runtime.protocols import Role

GIB = 1 << 30

PROCESS_BYTES = int(1.5 * GIB)
"""Memory that an engine's processes need beside weights and cache on a CPU: the interpreter, torch, and room for activations."""
RESERVE_BYTES = 1 * GIB
"""Memory left to this program, its graders, and the rest of the machine."""
GPU_PROCESS_BYTES = 2 * GIB
"""The same on a GPU: CUDA's context, graphs, activations."""

CPU_BLOCK = 32
"""Tokens in a KV cache block on a CPU. vLLM's default of 128 hardly ever hits inside a short track: only full blocks
are cached."""
GPU_BLOCK = 16
CPU_SEQUENCES_MAX = 32
GPU_SEQUENCES_MAX = 256
"""Beyond these an engine gains little and each step only gets slower."""
CPU_BATCHED_TOKENS = 1024
GPU_BATCHED_TOKENS = 8192
SLACK_TOKENS = 32
TRANSLATION = 1.5
"""Room for a text that another tokenizer wrote, in this one's tokens, as a factor."""


PAIRS = (
    ("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"),
    ("qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct"),
)
"""Pairs of target and draft that go well together and need no hub."""
PARAMETERS = {"Qwen/QwQ-32B": 32_763_876_352, "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000}
"""Parameters of the original experiments' models, counted from the shapes in their config.json: known before anything
is fetched."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts about a model that decide its memory. ``parameters``: their number, as stored."""

    name: str
    path: Path
    parameters: int
    layers: int
    kv_heads: int
    head_size: int
    context: int

    def kv_bytes(self, dtype_bytes: int) -> int:
        """Returns the bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * dtype_bytes


@dataclass(frozen=True, slots=True)
class Work:
    """What the engines will be asked. Lengths in tokens.

    ``suffix_tokens``: the longer of the judge's turn and the closing request. ``tracks``: how many are at work at once.
    """

    tracks: int
    prompt_tokens: int
    token_budget: int
    max_step_tokens: int
    suffix_tokens: int
    same_tokenizer: bool = True


def read_facts(name: str, path: Path) -> ModelFacts:
    """Reads a model's facts. Raises ModelError if the configuration lacks what every decoder has."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    stored = 2 if str(config.get("dtype", config.get("torch_dtype"))) in ("bfloat16", "float16") else 4
    try:
        heads: int = config["num_attention_heads"]
        return ModelFacts(
            name=name,
            path=path,
            parameters=sum(tensor_bytes(file) for file in path.glob("*.safetensors")) // stored,
            layers=config["num_hidden_layers"],
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            context=config["max_position_embeddings"],
        )
    except KeyError as error:
        raise ModelError(f"{path}/config.json has no {error}; this kind of model is not supported.") from error


def check_gpus(machine: Machine, tensor_parallel: int) -> None:
    """Raises CapacityError if an engine is to be shared by more GPUs than there are."""
    if tensor_parallel > max(1, len(machine.gpus)):
        there = f"{len(machine.gpus)} GPU{'' if len(machine.gpus) == 1 else 's'}"
        raise CapacityError(
            f"--tensor-parallel-size {tensor_parallel} needs as many GPUs, and this machine has {there}. Leave it out."
        )


def check_room(machine: Machine, name: str, tensor_parallel: int) -> None:
    """Raises CapacityError for a model whose weights alone are larger than the machine, before they are fetched."""
    parameters = PARAMETERS.get(name.removeprefix("vllm/"))
    room = machine.gpus[0].total_bytes * tensor_parallel if machine.gpus else machine.memory_total
    if parameters is not None and parameters * 2 > room:
        raise CapacityError(
            f"{name} has {parameters * 2 / GIB:.0f} GiB of weights, and this machine has {room / GIB:.0f} GiB of "
            f"{'GPU memory' if machine.gpus else 'memory and no GPU'}. Give a smaller --target (and --draft), for "
            f"instance --target {PAIRS[0][0]} --draft {PAIRS[0][1]}; `speclrm doctor` says what this machine can run."
        )


def context_tokens(work: Work) -> int:
    """Returns the length of the longest request: prompt, a whole track, one more step, and the judge or the closing after it."""
    budget = work.token_budget if work.same_tokenizer else int(work.token_budget * TRANSLATION)
    need = work.prompt_tokens + budget + work.max_step_tokens + work.suffix_tokens + SLACK_TOKENS
    return -(-need // CPU_BLOCK) * CPU_BLOCK


def engine_settings(
    machine: Machine,
    models: Mapping[Role, ModelFacts],
    work: Work,
    *,
    dtype: EngineDtype = "auto",
    kv_cache_bytes: int | None = None,
    tensor_parallel: int = 1,
    gpu_share: float | None = None,
) -> dict[Role, EngineSettings]:
    """Computes the settings of all engines together, within the memory that is free now.

    ``kv_cache_bytes``: for each engine, instead of what the work needs. ``tensor_parallel``: GPUs that share each
    engine. ``gpu_share``: the part of a GPU's memory, 0 to 1, that all engines together may take.

    Raises:
        CapacityError: the work is longer than a model's context, or the memory does not suffice.
    """
    length = context_tokens(work)
    for facts in models.values():
        if length > facts.context:
            room = facts.context - (length - work.token_budget)
            raise CapacityError(
                f"The work needs {length} tokens of context (prompt {work.prompt_tokens}, budget {work.token_budget}, and "
                f"room for one step and the judge), and {facts.name} takes {facts.context}. "
                + (f"Use --token-budget {room} or less." if room > 0 else "The problem is too long for this model.")
            )
    on_gpu = bool(machine.gpus)
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu or machine.fast_bfloat16 else "float32"
    width = 4 if dtype == "float32" else 2
    process = GPU_PROCESS_BYTES if on_gpu else PROCESS_BYTES
    sequences = max(1, min(work.tracks, GPU_SEQUENCES_MAX if on_gpu else CPU_SEQUENCES_MAX))
    total = machine.gpus[0].total_bytes if on_gpu else machine.memory_total
    free = machine.gpus[0].free_bytes if on_gpu else machine.memory_available - RESERVE_BYTES
    if on_gpu and gpu_share is not None:
        free = min(free, int(gpu_share * total))

    # Per GPU: each GPU of an engine holds its part of weights and cache.
    fixed = {role: facts.parameters * width // tensor_parallel + process for role, facts in models.items()}
    least = {role: facts.kv_bytes(width) * (length + CPU_BLOCK) // tensor_parallel for role, facts in models.items()}
    wanted = {role: kv_cache_bytes or least[role] * sequences for role in models}
    spare = free - sum(fixed.values())
    if spare < sum(kv_cache_bytes or need for need in least.values()):
        raise CapacityError(_too_little(machine, models, fixed, least, free, length))
    share = min(1.0, spare / sum(wanted.values()))
    settings: dict[Role, EngineSettings] = {}
    for role, facts in models.items():
        kv = max(least[role], int(wanted[role] * share))
        settings[role] = EngineSettings(
            name=facts.name,
            path=facts.path,
            device="cuda" if on_gpu else "cpu",
            dtype=dtype,
            max_model_len=length,
            max_num_seqs=sequences,
            # Without chunked prefill (see runtime/engines/vllm.py) a whole prompt must fit into one iteration.
            max_num_batched_tokens=GPU_BATCHED_TOKENS if on_gpu else max(CPU_BATCHED_TOKENS, length),
            block_size=GPU_BLOCK if on_gpu else CPU_BLOCK,
            kv_cache_bytes=kv,
            gpu_memory_utilization=min(0.95, (fixed[role] + kv) / total) if on_gpu else None,
            enforce_eager=not on_gpu,
            cores=() if on_gpu else machine.cores,
            preload=() if on_gpu else machine.preload,
            parameters=facts.parameters or None,
            extra={"tensor_parallel_size": tensor_parallel} if tensor_parallel > 1 else {},
        )
    return settings


def _too_little(
    machine: Machine,
    models: Mapping[Role, ModelFacts],
    fixed: Mapping[Role, int],
    least: Mapping[Role, int],
    free: int,
    length: int,
) -> str:
    parts = [
        f"{facts.name} {(fixed[role] + least[role]) / GIB:.1f} GiB (of that {least[role] / GIB:.1f} for {length} tokens)"
        for role, facts in models.items()
    ]
    needed = (sum(fixed.values()) + sum(least.values())) / GIB
    return (
        f"Not enough memory: {' and '.join(parts)} need {needed:.1f} GiB together, and {max(free, 0) / GIB:.1f} GiB are "
        f"free for engines ({machine.memory_total / GIB:.1f} GiB in all). Use smaller models, a smaller --token-budget or "
        "--max-step-tokens, or free memory."
    )
