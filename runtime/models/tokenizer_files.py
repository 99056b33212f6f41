"""Finds and fetches a model's tokenizer alone, for a model whose weights are elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from speclrm.runtime.errors import ModelError
from speclrm.runtime.models import store
from speclrm.runtime.models.online import hub_answers

if TYPE_CHECKING:
    from speclrm.runtime.models.store import Notify

TOKENIZER_FILE = "tokenizer.json"
PATTERNS = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template*",
    "generation_config.json",
    "config.json",
)
"""A few megabytes of a repository on the hub."""


def find_tokenizer(name: str) -> Path | None:
    """Returns the folder with a model's tokenizer, None if it would have to be fetched. Raises ModelError for a folder without
    one.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / TOKENIZER_FILE).is_file():
            raise ModelError(f"{folder} has no {TOKENIZER_FILE}. Give the folder of a model with a fast tokenizer.")
        return folder.resolve()
    model = store.known(name)
    if model is not None and (path := store.find_local(name)) is not None:
        return path
    if model is None and name.count("/") != 1:
        return None
    return _hub(model.hub if model else name, local=True)


async def pull_tokenizer(name: str, notify: Notify, *, option: str) -> Path:
    """Returns the folder with a model's tokenizer, fetched if it is not here. ``option``: where the user names another.

    Raises:
        ModelError: there is none.
    """
    if (path := await asyncio.to_thread(find_tokenizer, name)) is not None:
        return path
    model = store.known(name)
    if model is None and name.count("/") != 1:
        raise ModelError(
            f"There is no tokenizer for {name!r}, which a server knows by that name: it is no folder, no repository on the "
            f"Hugging Face hub (org/name) and no known name. Say which one it has with {option} NAME."
        )
    if await asyncio.to_thread(hub_answers):
        notify(f"fetching the tokenizer of {name} from the hub", None, None)
        path = await asyncio.to_thread(_hub, model.hub if model else name, local=False)
        if path is not None:
            return path
    if model is not None:
        return await store.pull(name, notify)
    raise ModelError(
        f"The tokenizer of {name} is not here and cannot be fetched from the Hugging Face hub. Copy its folder to this "
        f"machine and give the path: {option} FOLDER."
    )


def _hub(repository: str, *, local: bool) -> Path | None:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        path = Path(
            snapshot_download(
                name,
                revision=revision or None,
                local_files_only=local,
                allow_patterns=None if local else list(PATTERNS),
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
    return path if (path / TOKENIZER_FILE).is_file() else None
