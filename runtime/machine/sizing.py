"""Computes the engines' settings from the machine, the models and the work, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from speclrm.runtime.errors import CapacityError, ModelError, SettingsError
from speclrm.runtime.machine.estimate import ModelShape, estimate
from speclrm.runtime.machine.placement import GIB, Placement, place, share_error
from speclrm.runtime.models.store import tensor_bytes
from speclrm.runtime.protocols import Role
from speclrm.runtime.settings import EngineDtype, EngineSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from speclrm.runtime.machine.hardware import Machine

PROCESS_BYTES = int(1.5 * GIB)
"""Memory that an engine's processes need beside weights and cache on a CPU: the interpreter, torch, and room for activations."""
RESERVE_BYTES = 1 * GIB
"""Memory left to this program, its graders, and the rest of the machine."""

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
ROOM_MIN = 48
"""Of a track: with less room for its steps there is no use in starting it."""
TRANSLATION = 1.5
"""Room for a text that another tokenizer wrote, in this one's tokens, as a factor."""


PAIRS = (
    ("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"),
    ("qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct"),
)
"""Pairs of target and draft that go well together and need no hub."""
SHAPES = {
    "smollm2-135m-instruct": ModelShape(134_515_008, 30, 3, 64, 8192, 576, 1536, 49_152),
    "qwen2.5-coder-0.5b-instruct": ModelShape(494_032_768, 24, 2, 64, 32_768, 896, 4864, 151_936),
    "qwen2.5-coder-1.5b-instruct": ModelShape(1_543_714_304, 28, 2, 128, 32_768, 1536, 8960, 151_936),
    "Qwen/QwQ-32B": ModelShape(32_763_876_352, 64, 8, 128, 40_960, 5120, 27_648, 152_064),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ModelShape(1_777_088_000, 28, 2, 128, 131_072, 1536, 8960, 151_936),
}
"""Shapes of models that may not be here yet, from their config.json."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that is to be loaded."""

    name: str
    path: Path
    shape: ModelShape

    @property
    def parameters(self) -> int:
        return self.shape.parameters


@dataclass(frozen=True, slots=True)
class Work:
    """The work that the engines are to do. Lengths in tokens.

    ``suffix_tokens``: the longer of the judge's turn and the closing request. ``tracks``: how many are at work at once.
    ``likelihood``: the target reads drafts for their likelihood.
    ``question_tokens``: the longest request that no track's budget stands behind, with its reply.
    """

    tracks: int
    prompt_tokens: int
    token_budget: int
    max_step_tokens: int
    suffix_tokens: int
    same_tokenizer: bool = True
    likelihood: bool = False
    question_tokens: int = 0


def read_facts(name: str, path: Path) -> ModelFacts:
    """Reads a model's facts. In a folder without weights (for load_format=dummy) parameters are counted from the shape.

    Raises ModelError if the configuration lacks what every decoder has.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    stored = 2 if str(config.get("dtype", config.get("torch_dtype"))) in ("bfloat16", "float16") else 4
    try:
        heads: int = config["num_attention_heads"]
        shape = ModelShape(
            parameters=sum(tensor_bytes(file) for file in path.glob("*.safetensors")) // stored,
            layers=config["num_hidden_layers"],
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            context=config["max_position_embeddings"],
            hidden=config["hidden_size"],
            intermediate=config.get("intermediate_size") or 4 * config["hidden_size"],
            vocabulary=config["vocab_size"],
        )
    except KeyError as error:
        raise ModelError(f"{path}/config.json has no {error}; this kind of model is not supported.") from error
    if not shape.parameters:
        shape = replace(shape, parameters=_counted(shape, heads, tied=bool(config.get("tie_word_embeddings"))))
    return ModelFacts(name, path, shape)


def _counted(shape: ModelShape, heads: int, *, tied: bool) -> int:
    """Counts the parameters of a dense decoder with gated layers."""
    attention = shape.hidden * shape.head_size * 2 * (heads + shape.kv_heads)
    layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    return shape.layers * layer + (1 if tied else 2) * shape.vocabulary * shape.hidden + shape.hidden


def check_room(machine: Machine, name: str, gpus: int) -> None:
    """Raises CapacityError for a model whose weights alone are larger than its GPUs, or the machine without one, before they
    are fetched.
    """
    shape = SHAPES.get(name.removeprefix("vllm/"))
    room = machine.gpus[0].total_bytes * gpus if machine.gpus else machine.memory_total
    if shape is not None and shape.parameters * 2 > room:
        raise CapacityError(
            f"{name} has {shape.parameters * 2 / GIB:.0f} GiB of weights, and this machine has {room / GIB:.0f} GiB of "
            f"{'GPU memory' if machine.gpus else 'memory and no GPU'}. Give a smaller --target (and --draft), for "
            f"instance --target {PAIRS[0][0]} --draft {PAIRS[0][1]}; `speclrm doctor` says what this machine can run."
        )


def context_tokens(work: Work) -> int:
    """Returns the length of the longest request: prompt, a whole track, one more step, and the judge or the closing after it."""
    budget = int(work.token_budget * _written_anew(work))
    need = max(work.prompt_tokens + budget + work.max_step_tokens + work.suffix_tokens, work.question_tokens)
    return -(-(need + SLACK_TOKENS) // CPU_BLOCK) * CPU_BLOCK


def _written_anew(work: Work) -> float:
    return 1.0 if work.same_tokenizer else TRANSLATION


def check_context(models: Mapping[Role, ModelFacts], work: Work) -> None:
    """Raises CapacityError where a model's context is too short for the work: which part of it is, and what would fit."""
    for facts in models.values():
        check_length(facts.name, facts.shape.context, work)


def check_length(name: str, context: int, work: Work) -> None:
    """Raises CapacityError where a context of that many tokens is too short for the work."""
    length = context_tokens(work)
    if length > context:
        raise CapacityError(
            f"The work needs {length} tokens of context (prompt {work.prompt_tokens}, budget {work.token_budget}, one "
            f"step {work.max_step_tokens}, judge or closing {work.suffix_tokens}), and {name} takes "
            f"{context}. {_what_fits(context // CPU_BLOCK * CPU_BLOCK - SLACK_TOKENS, work)}"
        )


def _what_fits(context: int, work: Work) -> str:
    """Returns what of the work is too long for that many tokens, and the options that make it fit."""
    room = context - work.prompt_tokens - work.suffix_tokens  # for the budget and one step
    budget = int((room - work.max_step_tokens) / _written_anew(work))
    if work.question_tokens > context:
        return (
            f"The question which methods to use takes {work.question_tokens} of them with its reply. Use --plan drawn, or "
            "name the --methods."
        )
    if budget >= work.max_step_tokens:
        return f"Use --token-budget {budget} or less."
    if room >= ROOM_MIN:
        step = min(work.max_step_tokens, room // 3)
        what = "one step" if work.max_step_tokens > room else "a budget of more than one step"
        budget = int((room - step) / _written_anew(work))
        return f"The problem fits; the room for {what} does not. Use --max-step-tokens {step} --token-budget {budget} or less."
    if work.prompt_tokens >= work.suffix_tokens:
        return (
            f"The longest problem alone takes {work.prompt_tokens} of them with its instructions: leave it out "
            "(--problem-id takes the others), or choose a model with a longer context."
        )
    return (
        f"What is asked behind the last step takes {work.suffix_tokens} of them with its reply. Use a smaller "
        "--closing-tokens, or --no-closing."
    )


def engine_settings(
    machine: Machine,
    models: Mapping[Role, ModelFacts],
    work: Work,
    *,
    placements: Mapping[Role, Placement] | None = None,
    kv_cache_bytes: int | None = None,
    gpu_share: float | None = None,
) -> dict[Role, EngineSettings]:
    """Computes the settings of all engines together, within the memory that is free now.

    ``placements``: where each engine runs; without one, side by side as far as there are GPUs. ``kv_cache_bytes``: for each
    engine, instead of what the work needs. ``gpu_share``: the part of each GPU's memory, 0 to 1, that all engines
    together may take.

    Raises:
        SettingsError: a placement, or a share of memory, that this machine does not have.
        CapacityError: the work is longer than a model's context, or the memory does not suffice.
    """
    check_context(models, work)
    length = context_tokens(work)
    placements = {role: (placements or {}).get(role) or Placement() for role in models}
    devices = place(machine, placements)
    needs = {
        role: _need(machine, facts, work, length, placements[role], likelihood=work.likelihood and role is Role.TARGET)
        for role, facts in models.items()
    }
    wanted = {role: kv_cache_bytes or need.least * need.sequences for role, need in needs.items()}
    share = dict.fromkeys(models, 1.0)
    for device, free in enumerate(_free(machine, gpu_share)):
        here = [role for role in models for _ in range(_engines_on(device, devices[role], placements[role]))]
        spare = free - sum(needs[role].fixed for role in here)
        if here and spare < sum(kv_cache_bytes or needs[role].least for role in here):
            raise CapacityError(
                _too_little(machine, device, [(models[role], needs[role]) for role in here], free, length)
            )
        for role in here:
            share[role] = min(share[role], spare / sum(wanted[other] for other in here))
    settings: dict[Role, EngineSettings] = {}
    for role, facts in models.items():
        need = needs[role]
        kv = max(need.least, int(wanted[role] * share[role]))
        gpus = [machine.gpus[device] for device in devices[role]]
        total = min((gpu.total_bytes for gpu in gpus), default=0)
        if gpus and (limit := placements[role].share) is not None:
            kv = min(kv, int(limit * total) - need.fixed)
            if kv < need.least:
                raise CapacityError(
                    f"--{role.value}-gpu-memory-utilization {limit:g} is {limit * total / GIB:.1f} GiB a GPU, and "
                    f"{facts.name} needs {(need.fixed + need.least) / GIB:.1f} GiB there ({need.told}). Give more, or more GPUs."
                )
        settings[role] = EngineSettings(
            name=facts.name,
            path=facts.path,
            device="cuda" if gpus else "cpu",
            dtype=need.dtype,
            max_model_len=length,
            max_num_seqs=need.sequences,
            max_num_batched_tokens=need.batched,
            block_size=GPU_BLOCK if gpus else CPU_BLOCK,
            kv_cache_bytes=kv if gpus else kv // need.tensor,
            kv_cache_least=min(kv, need.least) if gpus else min(kv, need.least) // need.tensor,
            gpu_memory_utilization=min(0.95, (need.fixed + kv) / total) if gpus else None,
            devices=tuple(gpu.id for gpu in gpus),
            tensor_parallel_size=need.tensor,
            pipeline_parallel_size=placements[role].pipeline_parallel,
            estimate={**need.parts, "cache": kv},
            enforce_eager=not gpus,
            cores=() if gpus else machine.cores,
            preload=() if gpus else machine.preload,
            parameters=facts.parameters or None,
            replicas=placements[role].replicas,
        )
    return settings


def _engines_on(device: int, devices: tuple[int, ...], placement: Placement) -> int:
    """Returns how many engines of a role take memory there; without GPUs all of them share one memory."""
    return devices.count(device) if devices else placement.replicas


@dataclass(frozen=True, slots=True)
class _Need:
    """The memory that one engine needs. ``parts``: bytes on each of its devices beside the cache, by purpose; ``least``:
    bytes of the cache for one track.
    """

    dtype: EngineDtype
    tensor: int
    sequences: int
    batched: int
    parts: dict[str, int]
    least: int

    @property
    def fixed(self) -> int:
        return sum(self.parts.values())

    @property
    def told(self) -> str:
        parts = {**self.parts, "cache": self.least}
        return ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())


def _need(
    machine: Machine, facts: ModelFacts, work: Work, length: int, placement: Placement, *, likelihood: bool
) -> _Need:
    on_gpu = bool(machine.gpus)
    dtype = placement.dtype
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu or machine.fast_bfloat16 else "float32"
    width = 4 if dtype == "float32" else 2
    sequences = max(1, min(work.tracks, GPU_SEQUENCES_MAX if on_gpu else CPU_SEQUENCES_MAX))
    # Without prefill in parts (see runtime/engines/vllm_arguments.py) a whole prompt must fit into one iteration.
    batched = GPU_BATCHED_TOKENS if on_gpu else max(CPU_BATCHED_TOKENS, length)
    pipeline = placement.pipeline_parallel
    tensor = placement.size // pipeline
    # Without GPUs all processes of an engine share one memory.
    processes = 1 if on_gpu else tensor
    parts = {"weights": facts.parameters * width, "process": PROCESS_BYTES * processes}
    if on_gpu:
        counted = estimate(
            facts.shape,
            dtype_bytes=width,
            batched_tokens=batched,
            sequences=sequences,
            tensor=tensor,
            pipeline=pipeline,
            likelihood=likelihood,
        )
        parts = asdict(counted)
    least = facts.shape.kv_bytes(width, tensor, pipeline) * (length + CPU_BLOCK) * processes
    return _Need(dtype, tensor, sequences, batched, parts, least)


def _free(machine: Machine, gpu_share: float | None) -> list[int]:
    """Returns the bytes that engines may take of each GPU, or of the one memory of a machine without."""
    if not machine.gpus:
        return [machine.memory_available - RESERVE_BYTES]
    found: list[int] = []
    for device, gpu in enumerate(machine.gpus):
        found.append(gpu.free_bytes if gpu_share is None else int(gpu_share * gpu.total_bytes))
        if found[-1] > gpu.free_bytes:
            flag = f"--gpu-memory-utilization {gpu_share:g}"
            raise SettingsError(share_error(flag, gpu_share or 0.0, machine, device))
    return found


def _too_little(machine: Machine, device: int, here: list[tuple[ModelFacts, _Need]], free: int, length: int) -> str:
    parts = [
        f"{facts.name} {(need.fixed + need.least) / GIB:.1f} GiB ({need.told} for {length} tokens)"
        for facts, need in here
    ]
    needed = sum(need.fixed + need.least for _, need in here) / GIB
    where, total = ("", machine.memory_total)
    if machine.gpus:
        where, total = f" on GPU {device}", machine.gpus[device].total_bytes
    return (
        f"Not enough memory{where}: {' and '.join(parts)} need {needed:.1f} GiB together, and {max(free, 0) / GIB:.1f} GiB are "
        f"free for engines ({total / GIB:.1f} GiB in all). Use smaller models, a smaller --token-budget or "
        "--max-step-tokens, or free memory"
        + (", or more GPUs (--target-devices, --draft-devices)." if machine.gpus else ".")
    )


def proposed(machine: Machine, models: Mapping[Role, ModelFacts], work: Work) -> dict[Role, tuple[int, ...]] | None:
    """Proposes GPUs for each model: as few for the target as hold it, one of its own for the draft if any is left.
    Returns None if they do not fit in any way.
    """
    count = len(machine.gpus)
    size = 1
    while size <= count:
        beside = tuple(range(min(size, count - 1), min(size, count - 1) + 1))
        devices = {Role.TARGET: tuple(range(size)), Role.DRAFT: beside}
        try:
            engine_settings(machine, models, work, placements={role: Placement(devices[role]) for role in models})
        except CapacityError:
            size *= 2
        else:
            return {role: devices[role] for role in models}
    return None
