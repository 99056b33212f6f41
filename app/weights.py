"""Says which models a run was made with: a name does not pin them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from speclrm.app.remote import tokenizer_name
from speclrm.app.settings_diff import MODELS, WEIGHTS
from speclrm.app.simulation import model_names
from speclrm.runtime.engines.http.address import is_remote
from speclrm.runtime.engines.simulated.presets import is_simulated, preset_digest, settings_digest
from speclrm.runtime.errors import ModelError
from speclrm.runtime.models import store
from speclrm.runtime.models.tokenizer_files import find_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.app.options import EngineOptions


async def weights(options: EngineOptions) -> dict[str, JsonValue]:
    """Returns what a run's configuration says of its models, by role: where each is from, and digests of all that decides what it
    answers. An engine of the caller's own has a name alone.
    """
    digests: dict[str, JsonValue] = {}
    models: dict[str, JsonValue] = {}
    config: dict[str, JsonValue] = {MODELS: models}
    for role, name in model_names(options).items():
        found: dict[str, JsonValue] = {"name": name}
        with suppress(ModelError):  # an engine of the caller's own has a name that is nowhere else
            of_server = tokenizer_name(options, role) if is_remote(name) else None
            digest, facts = await asyncio.to_thread(_facts, name, of_server)
            found |= facts
            if digest is not None:
                digests[role.value] = digest
        models[role.value] = found
    if digests:
        config[WEIGHTS] = digests
    return config


def _facts(name: str, of_server: str | None = None) -> tuple[str | None, dict[str, JsonValue]]:
    """Returns the digest that older versions compare too, and all facts. ``of_server``: the model whose tokenizer a server
    has; its weights are not here.
    """
    if of_server is not None:
        folder = find_tokenizer(of_server)
        return None, {} if folder is None else _of_tokenizer(folder)
    if is_simulated(name):
        return preset_digest(name), {"preset": settings_digest(name)}
    path = store.find_local(name, weights=False)
    return (None, {}) if path is None else (store.weights_digest(path), _of_folder(path))


def _of_folder(path: Path) -> dict[str, JsonValue]:
    return {**store.origin(path), "tensors": store.tensors_digest(path), **_of_tokenizer(path)}


def _of_tokenizer(path: Path) -> dict[str, JsonValue]:
    from speclrm.runtime.tokens.tokenizer import template_digest, tokenizer_digest

    return {"tokenizer": tokenizer_digest(path), "chat_template": template_digest(path)}
