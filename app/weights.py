"""Says which weights a run was made with: a name does not pin them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from speclrm.app.settings_diff import WEIGHTS
from speclrm.app.simulation import model_names
from speclrm.runtime.engines.simulated.presets import is_simulated, preset_digest
from speclrm.runtime.errors import ModelError
from speclrm.runtime.models import store

if TYPE_CHECKING:
    from pydantic import JsonValue

    from speclrm.app.options import EngineOptions


async def weights(options: EngineOptions) -> dict[str, JsonValue]:
    """What a run's configuration says of the models' weights: nothing for built-in simulated engines."""
    found: dict[str, JsonValue] = {}
    for role, name in model_names(options).items():
        with suppress(ModelError):  # an engine of the caller's own has a name that is nowhere else
            if (value := await asyncio.to_thread(_digest, name)) is not None:
                found[role.value] = value
    return {WEIGHTS: found} if found else {}


def _digest(name: str) -> str | None:
    if is_simulated(name):
        return preset_digest(name)
    path = store.find_local(name, weights=False)
    return None if path is None else store.weights_digest(path)
