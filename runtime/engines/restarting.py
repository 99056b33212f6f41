"""Stands for an engine of our own that is started anew when it failed: behind it is one engine after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Engine, EngineCosts, EngineStats, KnowsItsCosts, Paceable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pydantic import JsonValue

    from speclrm.runtime.engine import Delta, Request, Tokenizer
    from speclrm.runtime.errors import FailureReason

StartAnew = Callable[[Engine, int], Awaitable[tuple[Engine, Mapping[str, "JsonValue"]]]]
"""Starts an engine in place of one that is closed; returns it with the settings that are others than that one's. The number says
how often memory ran out so far: the settings are made smaller as often. Raises EngineError, and leaves nothing behind then.
"""

CACHE_SHARE = 0.75
"""Of its KV cache an engine keeps so much each time that its memory runs out. What runs out is mostly memory for activations,
which is small beside the cache, and halving that at once would cost tracks more room than needed."""

SUMS = ("prompt_tokens", "output_tokens", "progress", "iterations", "batched", "preemptions")
"""The counters of EngineStats that never fall."""


class EngineBehind:
    """Passes on what an engine is. ``engine``: the one that is behind now."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer

    @property
    def max_model_len(self) -> int:
        return self.engine.max_model_len

    @property
    def max_num_seqs(self) -> int:
        return self.engine.max_num_seqs

    @property
    def known_costs(self) -> EngineCosts | None:
        return self.engine.known_costs if isinstance(self.engine, KnowsItsCosts) else None


class RestartingEngine(EngineBehind):
    """An engine behind the protocols ``Engine`` and ``Restartable``; its counters go on from one engine to the next.

    ``restarts``: how often in a row, without a token between, it may be started anew; at least 1.
    """

    def __init__(self, engine: Engine, start: StartAnew, *, restarts: int) -> None:
        super().__init__(engine)
        self.restarts = restarts
        self._start = start
        self._out_of_memory = 0
        self._before = dict.fromkeys(SUMS, 0)
        self._pace_s = 0.0
        self._away = False

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        return self.engine.stream(request)

    def stats(self) -> EngineStats:
        stats = self.engine.stats()
        sums = {name: before + getattr(stats, name) for name, before in self._before.items()}
        if self._away:
            return dataclasses.replace(stats, running=0, waiting=0, alive=False, **sums)
        return dataclasses.replace(stats, **sums)

    def pace(self, interval_s: float) -> None:
        """Passes it on to an engine that can be paced; does nothing for another."""
        self._pace_s = interval_s
        if isinstance(self.engine, Paceable):
            self.engine.pace(interval_s)

    async def restart(self, reason: FailureReason) -> Mapping[str, JsonValue]:
        self._away = True
        await self.engine.aclose()
        if reason == "out_of_memory":
            self._out_of_memory += 1
        before = self.stats()
        self.engine, changed = await self._start(self.engine, self._out_of_memory)
        begun = self.engine.stats()  # what warmed it up is no part of a run's work
        self._before = {name: getattr(before, name) - getattr(begun, name) for name in SUMS}
        self.pace(self._pace_s)
        self._away = False
        return changed

    async def aclose(self) -> None:
        await self.engine.aclose()


def restarting(engine: Engine, start: StartAnew, restarts: int) -> Engine:
    """Returns the engine so that it is started anew when it fails; as it is if ``restarts`` is 0."""
    return RestartingEngine(engine, start, restarts=restarts) if restarts else engine


def inner(engine: Engine) -> Engine:
    """Returns the engine itself where it is one that is started anew, for measurements that know its kind."""
    return engine.engine if isinstance(engine, RestartingEngine) else engine
