"""Provides the facade for programs: a runtime on named models, strategies by name, and whole runs. ``app/`` does all the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speclrm.app.calibrate import CalibrationReport, calibrate
from speclrm.app.engine_options import ENGINE_RESTARTS
from speclrm.app.engines import Engines, MakeEngines, make_engines
from speclrm.app.options import CalibrateOptions, EngineOptions, RunOptions
from speclrm.app.preview import Preview, preview
from speclrm.app.progress import Notify, quiet
from speclrm.app.provenance import engine_facts
from speclrm.app.replay import Replayed, go_on, replay
from speclrm.app.resolve import make_strategy as strategy
from speclrm.app.resume import resume
from speclrm.app.runs import RunReport, run
from speclrm.app.weights import weights
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.machine.sizing import Work
from speclrm.runtime.protocols import Problem
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime as _Runtime
from speclrm.runtime.scheduling.lanes import STALL_LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.engines.http.hints import RouterHints
    from speclrm.runtime.protocols import Equivalence, Role
    from speclrm.runtime.settings import EngineDtype, Sharing
    from speclrm.runtime.state import SampleState

PROMPT_TOKENS = 1024
"""Room for a problem of unknown length."""


class Runtime(_Runtime):
    """Reasons with two models: ``async with speclrm.Runtime(target=..., draft=...) as runtime``.

    ``tracks``: how many are expected at once. Lengths in tokens. The other options are those of ``speclrm run``. Models
    that are not here are downloaded first. The engines' processes and the graders live as long as the block.
    ``engines``: used instead of models by name, and left open at the end; ``same`` then says which answers are equal,
    by default those with equal texts.

    Raises:
        SettingsError: neither a target nor engines are given, or both.

    Raises, on entry:
        UsageError: a model cannot be loaded, or the work does not fit this machine.
        EngineError: an engine did not start.
    """

    def __init__(
        self,
        *,
        target: str | None = None,
        draft: str | None = None,
        engines: Mapping[Role, Engine] | None = None,
        same: Equivalence | None = None,
        tracks: int = 32,
        prompt_tokens: int = PROMPT_TOKENS,
        token_budget: int = 8192,
        max_step_tokens: int = 512,
        dtype: EngineDtype = "auto",
        kv_cache_gib: float | None = None,
        target_dtype: EngineDtype | None = None,
        draft_dtype: EngineDtype | None = None,
        target_devices: tuple[int, ...] = (),
        draft_devices: tuple[int, ...] = (),
        tensor_parallel_size: int | None = None,
        target_tensor_parallel_size: int | None = None,
        draft_tensor_parallel_size: int | None = None,
        target_pipeline_parallel_size: int = 1,
        draft_pipeline_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        target_gpu_memory_utilization: float | None = None,
        draft_gpu_memory_utilization: float | None = None,
        share_gpu: Sharing = "auto",
        engine_log: Path | None = None,
        target_args: dict[str, JsonValue] | None = None,
        draft_args: dict[str, JsonValue] | None = None,
        shared_device: bool = False,
        target_url: tuple[str, ...] = (),
        draft_url: tuple[str, ...] = (),
        target_tokenizer: str | None = None,
        draft_tokenizer: str | None = None,
        target_connections: int | None = None,
        draft_connections: int | None = None,
        router_hints: RouterHints = "none",
        stall_timeout: float = STALL_LIMIT_S,
        engine_restarts: int = ENGINE_RESTARTS,
        target_replicas: int = 1,
        draft_replicas: int = 1,
        notify: Notify = quiet,
    ) -> None:
        if (target is None) == (engines is None):
            raise SettingsError("A runtime is made of a target model's name, or of engines. Give one of the two.")
        options = EngineOptions(
            target=target,
            draft=draft,
            dtype=dtype,
            kv_cache_gib=kv_cache_gib,
            target_dtype=target_dtype,
            draft_dtype=draft_dtype,
            target_devices=target_devices,
            draft_devices=draft_devices,
            tensor_parallel_size=tensor_parallel_size,
            target_tensor_parallel_size=target_tensor_parallel_size,
            draft_tensor_parallel_size=draft_tensor_parallel_size,
            target_pipeline_parallel_size=target_pipeline_parallel_size,
            draft_pipeline_parallel_size=draft_pipeline_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            target_gpu_memory_utilization=target_gpu_memory_utilization,
            draft_gpu_memory_utilization=draft_gpu_memory_utilization,
            share_gpu=share_gpu,
            engine_log=engine_log,
            target_args=target_args or {},
            draft_args=draft_args or {},
            shared_device=shared_device,
            target_url=target_url,
            draft_url=draft_url,
            target_tokenizer=target_tokenizer,
            draft_tokenizer=draft_tokenizer,
            target_connections=target_connections,
            draft_connections=draft_connections,
            router_hints=router_hints,
            stall_timeout=stall_timeout,
            engine_restarts=engine_restarts,
            target_replicas=target_replicas,
            draft_replicas=draft_replicas,
        )
        work = Work(tracks, prompt_tokens, token_budget, max_step_tokens, suffix_tokens=0)

        async def open_components(stack: AsyncExitStack) -> Components:
            if engines is not None:
                return Components(engines, same or ExactEquivalence())
            named = make_engines(options)
            await named.size(strategy("speculative" if draft else "baseline"), work, (), notify)
            models = await weights(options)
            self.facts = lambda seed: models | engine_facts(named, seed)
            return await named.open(stack, notify)

        super().__init__(open_components)

    async def __aenter__(self) -> Runtime:
        await super().__aenter__()
        return self


async def solve(
    problem: str | Problem, *, target: str, draft: str | None = None, notify: Notify = quiet, **options: Any
) -> SampleState:
    """Makes one attempt at one problem, with engines of its own. For more problems, keep a ``Runtime`` open.

    ``options`` are the recipe's; the strategy is ``speculative`` with a draft and ``baseline`` without.
    """
    chosen = strategy("speculative" if draft else "baseline", **options)
    recipe = chosen.recipe
    asked = Problem("problem", problem) if isinstance(problem, str) else problem
    async with Runtime(
        target=target,
        draft=draft,
        tracks=recipe.tracks,
        token_budget=recipe.token_budget,
        max_step_tokens=recipe.max_step_tokens,
        notify=notify,
    ) as runtime:
        return await runtime.solve(asked, chosen)


__all__ = [
    "CalibrateOptions",
    "CalibrationReport",
    "EngineOptions",
    "Engines",
    "MakeEngines",
    "Notify",
    "Preview",
    "Replayed",
    "RunOptions",
    "RunReport",
    "Runtime",
    "calibrate",
    "go_on",
    "preview",
    "replay",
    "resume",
    "run",
    "solve",
    "strategy",
]
