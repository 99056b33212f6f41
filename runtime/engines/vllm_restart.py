"""Starts one of vLLM's engines anew in place of one that failed, with smaller settings if its memory ran out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import structlog

from speclrm.runtime.engines.restarting import CACHE_SHARE
from speclrm.runtime.engines.vllm_start import start_engines
from speclrm.runtime.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.runtime.engine import Engine, EngineCosts, Request, Tokenizer
    from speclrm.runtime.engines.restarting import StartAnew
    from speclrm.runtime.engines.vllm_nursery import Nursery
    from speclrm.runtime.settings import EngineSettings

log = structlog.get_logger(__name__)

BATCHED_TOKENS_LEAST = 512
"""Tokens of an iteration that a GPU engine keeps at least: fewer read prompts too slowly."""


def smaller(settings: EngineSettings, times: int) -> EngineSettings:
    """Returns the settings after memory ran out so many times: each time half the sequences, three quarters of the KV cache (not
    less than one context needs) and, on a GPU, half the tokens of an iteration and nine tenths of the share of memory.

    On a CPU a whole prompt must fit into one iteration, so its tokens stay. What ``extra`` says stays.
    """
    for _ in range(times):
        update: dict[str, Any] = {"max_num_seqs": max(1, settings.max_num_seqs // 2)}
        if settings.kv_cache_bytes is not None:
            least = min(settings.kv_cache_bytes, settings.kv_cache_least)
            update["kv_cache_bytes"] = max(least, int(CACHE_SHARE * settings.kv_cache_bytes))
        if settings.device == "cuda":
            tokens = settings.max_num_batched_tokens
            update["max_num_batched_tokens"] = max(min(tokens, BATCHED_TOKENS_LEAST), tokens // 2)
            if settings.gpu_memory_utilization is not None:
                update["gpu_memory_utilization"] = round(0.9 * settings.gpu_memory_utilization, 6)
        settings = settings.model_copy(update=update)
    return settings


def changes(before: EngineSettings, now: EngineSettings) -> dict[str, JsonValue]:
    """Returns those of ``now`` that differ."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    return {name: value for name, value in new.items() if value != old[name]}


class Starter:
    """Starts engines anew, one at a time: processes are told apart by when they appear, and the environment is everybody's.

    While one starts, the environment is changed for about a second, until its process is there, and a grader that is started in
    that second has the engines' libraries too, which does no harm.
    """

    def __init__(
        self,
        *,
        log_path: Path,
        notify: Callable[[str], None],
        variables: Mapping[str, str] | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self._log_path = log_path
        self._notify = notify
        self._variables = variables
        self._nursery = nursery
        self._one = asyncio.Lock()

    def of(
        self,
        label: str,
        settings: EngineSettings,
        tokenizer: Tokenizer,
        warm_up: Sequence[Request],
        costs: EngineCosts | None,
    ) -> StartAnew:
        """Returns what starts this engine. ``label``: names it for the user."""
        now = settings

        async def start(old: Engine, times: int) -> tuple[Engine, Mapping[str, JsonValue]]:
            nonlocal now
            if remains := cast("Any", old).remains:
                pids = ", ".join(map(str, sorted(remains)))
                raise EngineError(f"The processes {pids} of engine {settings.name} do not end, and hold its memory.")
            wanted = smaller(settings, times)
            changed = changes(now, wanted)
            log.info("engine_restart", engine=settings.name, **changed)
            async with self._one:
                started = await start_engines(
                    {label: wanted},
                    {label: tokenizer},
                    log_path=self._log_path,
                    warm_up={label: warm_up},
                    notify=self._notify,
                    variables=self._variables,
                    nursery=self._nursery,
                )
            engine = started[label]
            engine.known_costs = costs
            now = wanted
            return engine, changed

        return start
