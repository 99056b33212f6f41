"""What tests ask of real engines."""

from __future__ import annotations

import os
from multiprocessing import spawn
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Delta, Request

if TYPE_CHECKING:
    from speclrm.runtime.engines.vllm import VllmEngine

PROMPT = "Solve the problem step by step. " * 8


async def collect(engine: VllmEngine, request: Request) -> list[Delta]:
    return [delta async for delta in engine.stream(request)]


def request(engine: VllmEngine, name: str = "r", **options: object) -> Request:
    values = {"max_tokens": 24, "temperature": 1.0, "seed": 3, **options}
    return Request(name, engine.tokenizer.encode(PROMPT), **values)  # type: ignore[arg-type]


def multiprocessing_executable() -> str:
    """Returns the program in which Python starts its processes."""
    return os.fsdecode(spawn.get_executable())
