"""Stands for a recorded engine in a replay, whose trace answers everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.engine import Delta, EngineStats, Request, Tokenizer
from speclrm.runtime.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class RecordedEngine:
    """Has a tokenizer and limits, and no model: a request to it is an error."""

    def __init__(self, name: str, tokenizer: Tokenizer, max_model_len: int) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.max_num_seqs = 1

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        raise RequestError(f"{self.name} only stands for a recorded engine, and was asked for {request.id}.")
        yield Delta(())  # makes this a generator

    def stats(self) -> EngineStats:
        return EngineStats(self.name, 0, 0, 0, 0, 0)

    async def aclose(self) -> None:
        pass
