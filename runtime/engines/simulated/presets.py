"""Finds simulated engines by name: built in, each number with its source, or measured on some machine and kept in a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.device import Device
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.engines.simulated.text_world import MIXES, WorldSettings
from speclrm.runtime.errors import ModelError
from speclrm.runtime.events import RoleName
from speclrm.runtime.files import write_whole
from speclrm.runtime.models.store import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from speclrm.runtime.engines.simulated.text_world import SimulatedWorld
    from speclrm.runtime.protocols import Role

PREFIX = "sim/"
DATA_PREFIX = "sim:"

PRESETS: dict[str, EngineCost] = {
    # Measured on one H200 with vLLM 0.26.0 (bfloat16, CUDA graphs, models of these shapes with random weights, 2026-11-26), by
    # what `speclrm calibrate` does: 16 and 15 measurements, each engine by itself. Room for keys and values, not measured: what
    # 141 GB leave beside the weights.
    "qwq-32b": EngineCost(w=18.4e-3, p=87e-6, k=1.4e-7, kv_tokens=240_000, s=1.9e-6, request_s=6.0e-3),
    "r1-1.5b": EngineCost(w=2.4e-3, p=25e-6, k=0.0, kv_tokens=400_000, s=1.4e-6, request_s=9.9e-3),
}
"""By the name after ``sim/``."""

PARAMETERS = {"qwq-32b": 32_800_000_000, "r1-1.5b": 1_800_000_000}
"""Of the models that the built-in costs stand for, Qwen/QwQ-32B and deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B: 32.76e9 and
1.78e9 as stored on the hub (sizing.py has them in full), rounded as the costs above are."""

SHARED = {"draft": 0.55, "target": 0.45}
"""The speed of each role's engine on a shared device while the other works, measured with the costs above: two processes share a
GPU by time slices. A measured preset brings its own."""

MPS_SHARED = {"draft": 0.9, "target": 0.9}
"""The same side by side, under NVIDIA's MPS. **Assumed, not measured**: of an iteration's 2.4 and 18.4 ms above, reading the
weights takes 0.74 and 13.7 ms, which nearly fit together, and small models were reported 7 to 20 % slower side by side."""


class EngineFit(BaseModel):
    """One engine of a preset. ``share``: its speed, 0 to 1, while the other engine works too. ``residual``: of the fit
    of its costs, root mean square over the measurements, relative to each; ``measurements``: how many. ``parameters``:
    of the model, None if unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cost: EngineCost
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    residual: Annotated[float, Field(ge=0)] | None = None
    measurements: int = 0
    parameters: Annotated[int, Field(gt=0)] | None = None


class Preset(BaseModel):
    """The form of a preset's file: what two engines cost on some machine, and what their models write.

    ``one_device``: whether both worked on the same device. ``measured``: where and when, in words: machine, models,
    versions, date. ``world``: what ``--dataset sim:NAME`` takes from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    engines: dict[RoleName, EngineFit]
    one_device: bool = False
    measured: dict[str, str] = {}
    world: WorldSettings | None = None


def is_simulated(name: str) -> bool:
    return name.startswith(PREFIX)


def check_names(names: Mapping[Role, str]) -> None:
    """Raises ModelError for an unknown simulated engine."""
    for role, name in names.items():
        _fit(name, role)


def presets_dir() -> Path:
    """Returns the folder where measured presets are kept by name."""
    return cache_dir() / "presets"


def kept_presets() -> list[str]:
    return sorted(path.stem for path in presets_dir().glob("*.json"))


def read_preset(name: str) -> Preset:
    """Reads a preset. ``name``: a path that ends in .json, or a name in the user's cache. Raises ModelError."""
    path = Path(name).expanduser() if name.endswith(".json") else presets_dir() / f"{name}.json"
    try:
        return Preset.model_validate_json(path.read_bytes())
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"
        raise ModelError(f"There is no preset at {path}{why}. {_known()}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(
            f"{path} is not a preset of this version: {where}: {first['msg']}. Make it anew with `speclrm calibrate`. {_known()}"
        ) from error


def write_preset(preset: Preset, path: Path) -> None:
    """Writes the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, preset.model_dump_json(indent=2) + "\n")


def preset_digest(name: str) -> str | None:
    """Returns a digest of an engine from a preset's file; None for a built-in one. Raises ModelError."""
    short = name.removeprefix(PREFIX)
    if short in PRESETS:
        return None
    return hashlib.sha256(read_preset(short).model_dump_json().encode()).hexdigest()[:16]


def settings_digest(name: str) -> str:
    """Returns a digest of all that a simulated engine goes by, built-in or not. Raises ModelError."""
    short = name.removeprefix(PREFIX)
    settings = EngineFit(cost=PRESETS[short]) if short in PRESETS else read_preset(short)
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()


def world_settings(name: str) -> WorldSettings:
    """Returns the world of a dataset ``sim:NAME``: a mix, or a preset's. Raises ModelError."""
    if name in MIXES:
        return MIXES[name]
    if not name.endswith(".json") and name not in kept_presets():
        raise ModelError(f"There is no simulated dataset {DATA_PREFIX + name!r}. {_known_data()}")
    world = read_preset(name).world
    if world is None:
        raise ModelError(f"The preset {name} holds costs alone and no world of problems. {_known_data()}")
    return world


def engines_world(names: Iterable[str]) -> WorldSettings | None:
    """Returns the world that was measured with the engines, if they come from a preset that has one."""
    for short in (name.removeprefix(PREFIX) for name in names):
        if short not in PRESETS and (world := read_preset(short).world) is not None:
            return world
    return None


def simulated_engines(
    names: Mapping[Role, str], world: SimulatedWorld, *, shared_device: bool, mps: bool = False
) -> dict[Role, SimulatedEngine]:
    """Returns an engine for each role, each on a device of its own or both on one. Raises ModelError for an unknown preset.

    Two engines of one measured preset share a device if they did so when they were measured. ``mps``: they share it side by
    side, with ``MPS_SHARED``, instead of by time slices.
    """
    fits = {role: _fit(name, role) for role, name in names.items()}
    one_device = len(set(names.values())) == 1 and all(together for _, together in fits.values())
    device = Device(slices=not mps) if shared_device or one_device else None
    return {
        role: SimulatedEngine(
            name,
            fit.cost,
            world,
            world.tokenizer,
            device,
            share=MPS_SHARED[role.value] if mps else fit.share,
            parameters=fit.parameters,
        )
        for role, name in names.items()
        for fit, _ in [fits[role]]
    }


def slices(engines: Mapping[Role, SimulatedEngine]) -> bool:
    """Whether they share a device by time slices."""
    return len(engines) > 1 and all(engine.sliced for engine in engines.values())


def _fit(name: str, role: Role) -> tuple[EngineFit, bool]:
    """Returns what is known of an engine, and whether it was measured beside the other on one device."""
    short = name.removeprefix(PREFIX)
    if (cost := PRESETS.get(short)) is not None:
        return EngineFit(cost=cost, share=SHARED[role.value], parameters=PARAMETERS[short]), False
    if not short.endswith(".json") and short not in kept_presets():
        raise ModelError(f"There is no simulated engine {name!r}. {_known()}")
    preset = read_preset(short)
    fit = preset.engines.get(role.value)
    if fit is None:
        raise ModelError(f"The preset {name} has no {role.value} engine. {_known()}")
    return fit, preset.one_device


def _known() -> str:
    names = ", ".join(PREFIX + name for name in (*PRESETS, *kept_presets()))
    return f"There are: {names}; {PREFIX}PATH.json takes a file written by `speclrm calibrate`."


def _known_data() -> str:
    names = ", ".join(DATA_PREFIX + name for name in (*MIXES, *kept_presets()))
    return f"Simulated ones are {names}; {DATA_PREFIX}PATH.json takes a preset's file."
