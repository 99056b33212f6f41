"""Simulated engines by name, each number with its source, and the devices that they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.engines.simulated import Device, EngineCost, SimulatedEngine
from speclrm.runtime.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speclrm.runtime.engines.world import SimulatedWorld
    from speclrm.runtime.protocols import Role

PREFIX = "sim/"

PRESETS: dict[str, EngineCost] = {
    # Assumed from first principles for a card of the H200 class, not measured: 65.5 GB of bfloat16 weights read at about 4.1 TB/s
    # make w; 2 * 32.8e9 operations a token at about 500 TFLOP/s make p; 256 KiB of keys and values a token (64 layers, 8 heads of
    # 128, two bytes, both) read at about 4.8 TB/s make k. Room for keys and values: what 141 GB leave.
    "qwq-32b": EngineCost(w=16.1e-3, p=0.13e-3, k=5.5e-8, kv_tokens=240_000),
    # The same for 1.8e9 parameters; its iterations are bound by the host rather than by memory, hence 3.6 ms.
    "r1-1.5b": EngineCost(w=3.6e-3, p=0.006e-3, k=0.6e-8, kv_tokens=400_000),
}
"""By the name behind ``sim/``."""

SHARED = {"draft": 0.40, "target": 0.75}
"""The speed of each role's engine on a shared device while the other works: time slicing, in which the draft, bound by its host,
leaves gaps. Assumed, to be replaced by a measurement."""


def is_simulated(name: str) -> bool:
    return name.startswith(PREFIX)


def simulated_engines(
    names: Mapping[Role, str], world: SimulatedWorld, *, shared_device: bool
) -> dict[Role, SimulatedEngine]:
    """An engine for each role, each on a device of its own or both on one. Raises ModelError for an unknown preset."""
    device = Device({names[role]: SHARED[role.value] for role in names}) if shared_device else None
    engines: dict[Role, SimulatedEngine] = {}
    for role, name in names.items():
        cost = PRESETS.get(name.removeprefix(PREFIX))
        if cost is None:
            known = ", ".join(f"{PREFIX}{preset}" for preset in PRESETS)
            raise ModelError(f"There is no simulated engine {name!r}. There are: {known}.")
        engines[role] = SimulatedEngine(name, cost, world, world.tokenizer, device)
    return engines
