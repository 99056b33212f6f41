"""Says what made a run's figures: models, data, engines, devices, and how far the run can be had again."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

from speclrm.app.simulation import is_simulated_dataset
from speclrm.app.weights import weights
from speclrm.evaluators.datasets import origin
from speclrm.runtime.machine.hardware import read_devices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from speclrm.app.engines import Engines
    from speclrm.app.resolve import Resolved
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.settings import EngineSettings

Reproducibility = Literal["simulated: byte for byte", "batch-invariant", "seeded, batch-dependent", "replay only"]
"""How far a run can be had again, beside its replay, which is always the same.

``simulated``: all of it. ``batch-invariant``: vLLM computes the same for a request whatever else it computes with it.
``seeded, batch-dependent``: requests are drawn with the same seeds, and what they come to depends in its last bits on what
stands beside them. ``replay only``: nothing draws it again.
"""

BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""What is in the name of a variable that nobody is to read."""


async def provenance(found: Resolved) -> dict[str, JsonValue]:
    """Returns what a run's configuration says beside the settings. The engines must have been sized."""
    facts = await weights(found.options) | await asyncio.to_thread(engine_facts, found.engines, found.seed)
    options = found.options
    if not is_simulated_dataset(options.dataset):
        facts["data"] = await asyncio.to_thread(origin, options.dataset, options.data_dir)
    return facts


def engine_facts(engines: Engines, seed: int | None) -> dict[str, JsonValue]:
    """Describes engines that have been sized: reproducibility level, start arguments, and devices or servers."""
    settings, servers = engines.settings, engines.servers
    level: dict[str, JsonValue] = {
        "reproducibility": reproducibility(settings, seed, simulated=engines.simulated, servers=servers)
    }
    if servers:
        level["servers"] = dict(servers)
    if not settings:
        return level
    return {**level, "engines": _engines(settings), **read_devices()}


def reproducibility(
    settings: Mapping[Role, EngineSettings],
    seed: int | None,
    *,
    simulated: bool,
    servers: Mapping[str, JsonValue] | None = None,
) -> Reproducibility:
    """Returns the level of a run on such engines. Engines of the caller's own have no settings, and promise nothing."""
    if simulated:
        return "simulated: byte for byte"
    if seed is None or not (settings or servers):
        return "replay only"
    if servers:  # what a server computes with is its own affair
        return "seeded, batch-dependent" if _take_seeds(servers) else "replay only"
    on_gpu = all(one.device == "cuda" for one in settings.values())
    switched_on = os.environ.get(BATCH_INVARIANT, "0").strip() not in ("", "0")
    return "batch-invariant" if on_gpu and switched_on else "seeded, batch-dependent"


def _take_seeds(servers: Mapping[str, JsonValue]) -> bool:
    several = [one for found in servers.values() if isinstance(found, list) for one in found]
    return all(isinstance(one, dict) and bool(one.get("seeds")) for one in several)


def _engines(settings: Mapping[Role, EngineSettings]) -> dict[str, JsonValue]:
    """Returns what each engine was started with, and what of the environment vLLM reads."""
    from speclrm.runtime.engines.vllm_arguments import arguments

    environment: dict[str, JsonValue] = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("VLLM_") and not any(word in name for word in SECRET)
    }
    found: dict[str, JsonValue] = {
        role.value: {
            "device": one.device,
            "cores": list(one.cores),
            "preload": list(one.preload),
            "arguments": arguments(one),
            **({"mps": one.mps} if one.device == "cuda" else {}),
        }
        for role, one in settings.items()
    }
    if environment:
        found["environment"] = environment
    return found
