"""Defines what an iteration of a simulated engine costs, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

_Seconds = Annotated[float, Field(ge=0, le=3600)]
_Tokens = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class EngineCost:
    """The seconds that an iteration takes: ``w`` for itself, ``p`` for each new token, ``k`` for each token of context.

    ``kv_tokens``: size of the KV cache in tokens. The limits are those of vLLM's scheduler; ``chunked_prefill``:
    whether a prompt may be computed in parts. Measured engines have two more constants: ``s`` for each sampled token,
    which costs on a CPU, and ``request_s`` from a request's call until the engine has it.
    """

    w: Annotated[float, Field(gt=0, le=3600)]
    p: _Seconds
    k: _Seconds
    kv_tokens: _Tokens
    max_num_seqs: _Tokens = 256
    max_num_batched_tokens: _Tokens = 8192
    max_model_len: _Tokens = 32_768
    block_size: _Tokens = 16
    chunked_prefill: bool = True
    s: _Seconds = 0.0
    request_s: _Seconds = 0.0
