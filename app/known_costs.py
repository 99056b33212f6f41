"""Keeps what the engines of a pair cost on a machine, so that ``--speculate auto`` need not find it out in the run.

A calibration measures it well. Where there was none, a glance does, once, when both engines have been loaded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from speclrm.app.presets import machine_words, today_words, versions_words
from speclrm.app.progress import note
from speclrm.app.thresholds import pair_name
from speclrm.runtime.engine import EngineCosts
from speclrm.runtime.engines.cost_probe import glance
from speclrm.runtime.engines.simulated.presets import kept_presets, read_preset
from speclrm.runtime.errors import EngineError, ModelError
from speclrm.runtime.events import RoleName
from speclrm.runtime.files import write_whole
from speclrm.runtime.machine.placement import by_slices
from speclrm.runtime.models.store import cache_dir
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from speclrm.app.progress import Notify
    from speclrm.runtime.engine import Engine
    from speclrm.runtime.machine.hardware import Machine
    from speclrm.runtime.settings import EngineSettings

GLANCE_LIMIT_S = 60.0
"""Seconds for a glance at both engines. It takes one or two on a GPU, and some twenty with a model of 1.5B on two cores."""


class Glanced(BaseModel):
    """The form of the file: what a glance saw. ``machine``, ``versions``, ``date``: where, with what and when, in words.
    ``settings``: those of each engine that change its costs, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    machine: str
    versions: str
    date: str
    settings: dict[RoleName, str]
    costs: dict[RoleName, EngineCosts]


def kept_costs(
    target: str, draft: str, machine: Machine, settings: Mapping[Role, EngineSettings] | None = None
) -> dict[Role, EngineCosts]:
    """Returns what was measured of this pair on this machine: by a calibration, else by a glance; nothing if there was neither.

    ``settings``: of the engines. What was seen of engines with others is not returned then.
    """
    return _calibrated(target, draft, machine) or _seen(target, draft, machine, settings)


async def glance_at(
    target: str,
    draft: str,
    machine: Machine,
    engines: Mapping[Role, Engine],
    settings: Mapping[Role, EngineSettings],
    notify: Notify,
) -> dict[Role, EngineCosts]:
    """Measures the engines of a pair and keeps what was seen. Returns nothing if that takes too long, or if an engine fails: the
    run finds out by itself then.
    """
    notify("measuring both engines, once for this pair on this machine", None, None)
    together = by_slices(settings) or any(one.mps for one in settings.values())
    try:
        async with asyncio.timeout(GLANCE_LIMIT_S):
            found = dict(zip(engines, await glance(list(engines.values()), together=together), strict=True))
    except TimeoutError:
        note(
            notify,
            f"the engines were not measured: it took over {GLANCE_LIMIT_S:.0f} s; `speclrm calibrate` takes its time",
        )
        return {}
    except EngineError as error:
        note(notify, f"the engines were not measured: {error}")
        return {}
    seen = Glanced(
        machine=machine_words(machine),
        versions=versions_words(),
        date=today_words(),
        settings={role.value: _words(one) for role, one in settings.items()},
        costs={role.value: one for role, one in found.items()},
    )
    path = _path(target, draft)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, seen.model_dump_json(indent=2) + "\n")
    except OSError as error:
        note(notify, f"what was measured is not kept: {path} cannot be written ({error.strerror})")
    return found


def _calibrated(target: str, draft: str, machine: Machine) -> dict[Role, EngineCosts]:
    name = pair_name(target, draft)
    if name not in kept_presets():
        return {}
    try:
        preset = read_preset(name)
    except ModelError:  # of another version: what a run finds out by itself serves as well
        return {}
    if preset.measured.get("machine") != machine_words(machine):
        return {}
    costs: dict[Role, EngineCosts] = {}
    for role, fit in preset.engines.items():
        slowdown = 1 / fit.share - 1 if preset.one_device else 0.0
        costs[Role(role)] = EngineCosts(fit.cost.w, fit.cost.p + fit.cost.s, fit.cost.k, slowdown, fit.cost.request_s)
    return costs


def _seen(
    target: str, draft: str, machine: Machine, settings: Mapping[Role, EngineSettings] | None
) -> dict[Role, EngineCosts]:
    try:
        seen = Glanced.model_validate_json(_path(target, draft).read_bytes())
    except (OSError, ValidationError):  # none, or of another version: another glance is cheap
        return {}
    if seen.machine != machine_words(machine) or seen.versions != versions_words():
        return {}
    if settings is not None and seen.settings != {role.value: _words(one) for role, one in settings.items()}:
        return {}
    return {Role(name): one for name, one in seen.costs.items()}


def _path(target: str, draft: str) -> Path:
    return cache_dir() / "costs" / f"{pair_name(target, draft)}.json"


def _words(settings: EngineSettings) -> str:
    """Says what of an engine's settings changes what its iterations cost."""
    extra = ", ".join(f"{name}={value}" for name, value in sorted(settings.extra.items()))
    return (
        f"{settings.path}, {settings.device} {', '.join(settings.devices)} {settings.dtype}, {len(settings.cores)} cores, "
        f"tensor parallel {settings.tensor_parallel_size}, pipeline parallel {settings.pipeline_parallel_size}"
        f"{', eager' if settings.enforce_eager else ''}{', MPS' if settings.mps else ''}{', ' if extra else ''}{extra}"
    )
