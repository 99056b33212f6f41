"""Estimates what an engine takes of a GPU's memory beside its cache, from the model's shape and the batch, before loading.

vLLM measures the same while it starts (v1/worker/gpu_worker.py); its figures are logged beside these.
"""

from __future__ import annotations

from dataclasses import dataclass

from speclrm.runtime.settings import UNREAD_MAX

MIB = 1 << 20

CONTEXT_BYTES = 600 * MIB
"""CUDA's context with the libraries' kernels and workspaces, of one process."""
PARALLEL_BYTES = 400 * MIB
"""Buffers for talking to other GPUs."""
SPARE = 1.25
"""On activations: the allocator's leftovers between tensors of different sizes."""
GRAPH_BYTES = MIB // 4
"""Of one layer in one captured CUDA graph."""
SAMPLING_BYTES = 24
"""Of one logit while it is sampled: as it comes, in float32, sorted with its place, as a probability and in a sum."""
LIKELIHOOD_BYTES = 12
"""Of one logit while a prompt is read for its likelihood: float32, its log-probability, and a copy."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The properties of a model that decide its memory. Lengths in elements; ``parameters``: their number."""

    parameters: int
    layers: int
    kv_heads: int
    head_size: int
    context: int
    hidden: int
    intermediate: int
    vocabulary: int

    def kv_bytes(self, dtype_bytes: int, tensor: int = 1, pipeline: int = 1) -> int:
        """Returns the bytes of keys and values of one token, on each GPU of an engine."""
        # Fewer heads than GPUs are there more than once.
        return 2 * -(-self.layers // pipeline) * max(1, self.kv_heads // tensor) * self.head_size * dtype_bytes


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on each of an engine's GPUs, without the cache."""

    weights: int
    activations: int
    graphs: int
    context: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.graphs + self.context


def estimate(
    shape: ModelShape,
    *,
    dtype_bytes: int,
    batched_tokens: int,
    sequences: int,
    tensor: int = 1,
    pipeline: int = 1,
    graphs: bool = True,
    likelihood: bool = False,
) -> Estimate:
    """Estimates one engine. ``batched_tokens``, ``sequences``: the most in one iteration. ``likelihood``: prompts are read
    for theirs.
    """
    attention = (shape.hidden + 2 * shape.kv_heads * shape.head_size) // tensor
    # Gate and up side by side, and their product; what attends is gone by then.
    inside = max(3 * shape.intermediate // tensor, attention)
    layer = batched_tokens * (2 * shape.hidden + inside) * dtype_bytes
    logits = sequences * shape.vocabulary * SAMPLING_BYTES
    read = UNREAD_MAX * shape.vocabulary * LIKELIHOOD_BYTES if likelihood else 0
    layers = -(-shape.layers // pipeline)
    return Estimate(
        weights=shape.parameters * dtype_bytes // (tensor * pipeline),
        activations=int(max(layer, logits, read) * SPARE),
        graphs=capture_sizes(sequences) * layers * GRAPH_BYTES if graphs else 0,
        context=CONTEXT_BYTES + (PARALLEL_BYTES if tensor * pipeline > 1 else 0),
    )


def capture_sizes(sequences: int) -> int:
    """Counts the batch sizes that vLLM captures CUDA graphs for (config/vllm.py): 1, 2, 4, each 8th to 256, each 16th beyond."""
    most = min(2 * sequences, 512)
    small = sum(size <= most for size in (1, 2, 4))
    return small + min(most, 255) // 8 + (max(0, most - 256) // 16 + 1 if most >= 256 else 0)
