"""Which GPUs engines get, what they will need there, and what is refused before anything is loaded. No GPU is needed here."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import speclrm
from speclrm.api import EngineOptions, RunOptions
from speclrm.app.engines import RealEngines, placement
from speclrm.app.progress import quiet
from speclrm.app.resolve import make_strategy
from speclrm.commands.errors import checked
from speclrm.runtime.engines.vllm_arguments import arguments, check_arguments
from speclrm.runtime.engines.vllm_processes import own_values
from speclrm.runtime.engines.vllm_restart import changes, smaller
from speclrm.runtime.errors import CapacityError, ModelError, SettingsError, UsageError
from speclrm.runtime.machine.doctor import ORIGINAL, examine
from speclrm.runtime.machine.estimate import capture_sizes, estimate
from speclrm.runtime.machine.hardware import Gpu, Machine, visible_gpus
from speclrm.runtime.machine.placement import Placement, by_slices, place
from speclrm.runtime.machine.sizing import GIB, SHAPES, ModelFacts, Work, engine_settings, read_facts
from speclrm.runtime.models import store
from speclrm.runtime.protocols import Role

CPU = Machine("cpu", (0, 1), frozenset({"avx512_bf16"}), 16 * GIB, 15 * GIB)
QWQ, R1 = (SHAPES[name] for name in ORIGINAL)
PAIR = {
    Role.TARGET: ModelFacts("qwq", Path("/qwq"), QWQ),
    Role.DRAFT: ModelFacts("r1", Path("/r1"), R1),
}
SMALL = {role: ModelFacts(role.value, Path("/m"), SHAPES["qwen2.5-coder-0.5b-instruct"]) for role in Role}
WORK = Work(tracks=20, prompt_tokens=500, token_budget=8192, max_step_tokens=512, suffix_tokens=128)


def machine(count: int, gib: int = 80, free: int | None = None) -> Machine:
    gpus = [Gpu("card", gib * GIB, (gib - 1 if free is None else free) * GIB, str(number)) for number in range(count)]
    return replace(CPU, gpus=tuple(gpus))


def asked(**options: Any) -> dict[Role, Placement]:
    given = EngineOptions(target="t", draft="d", **options)
    return {role: placement(given, role) for role in (Role.TARGET, Role.DRAFT)}


@pytest.mark.parametrize(
    ("count", "options", "target", "draft"),
    [
        (1, {}, (0,), (0,)),
        (2, {}, (0,), (1,)),
        (3, {"target_devices": (0, 1), "draft_devices": (2,)}, (0, 1), (2,)),
        (2, {"draft_devices": (0,)}, (1,), (0,)),
        (4, {"tensor_parallel_size": 2}, (0, 1), (2, 3)),
        (2, {"tensor_parallel_size": 2}, (0, 1), (0, 1)),
        (3, {"target_tensor_parallel_size": 2}, (0, 1), (2,)),
        (4, {"target_tensor_parallel_size": 2, "target_pipeline_parallel_size": 2}, (0, 1, 2, 3), (0,)),
        (2, {"target_devices": (1,)}, (1,), (0,)),
    ],
)
def test_engines_get_the_gpus_that_were_named_and_else_those_that_are_free(
    count: int, options: dict[str, Any], target: tuple[int, ...], draft: tuple[int, ...]
) -> None:
    assert place(machine(count), asked(**options)) == {Role.TARGET: target, Role.DRAFT: draft}


def test_a_machine_without_gpus_needs_no_placement() -> None:
    assert place(CPU, asked()) == {Role.TARGET: (), Role.DRAFT: ()}


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (2, {"target_devices": (0, 2)}, "--target-devices 0,2: this machine has 2 GPUs .0 to 1., so there is no 2"),
        (0, {"draft_devices": (0,)}, "--draft-devices 0: this machine has no GPU"),
        (2, {"target_devices": (1, 1)}, "names a GPU twice"),
        (4, {"target_devices": (0, 1), "tensor_parallel_size": 4}, "2 devices cannot hold a target of tensor parallel"),
        (4, {"target_devices": (0, 1, 2), "target_pipeline_parallel_size": 2}, "3 devices cannot hold a target"),
        (1, {"tensor_parallel_size": 2}, "A target of tensor parallel size 2 needs 2 GPUs, and this machine has 1 GPU"),
        (0, {"tensor_parallel_size": 99}, "needs 99 GPUs, or as many processor cores, and this machine has no GPU and"),
        (0, {"target_pipeline_parallel_size": 2}, "needs 2 GPUs, and this machine has no GPU"),
        (1, {"target_gpu_memory_utilization": 1.0}, "80.0 GiB of GPU 0 .card., and 79.0 of 80.0 GiB are free"),
        (
            1,
            {"target_gpu_memory_utilization": 0.8, "draft_gpu_memory_utilization": 0.3},
            "--target-gpu-memory-utilization 0.8 and --draft-gpu-memory-utilization 0.3",
        ),
    ],
)
def test_what_the_machine_has_not_is_one_paragraph(count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        place(machine(count), asked(**options))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


async def test_it_is_said_before_a_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speclrm.app.engines.read_machine", lambda: machine(2))

    def fetched(*_: object, **__: object) -> None:
        pytest.fail("fetched")

    monkeypatch.setattr(store, "pull", fetched)
    given = {"strategy": "baseline", "dataset": "x", "target": "qwen2.5-coder-0.5b-instruct"}
    options = checked(RunOptions, **given, target_devices=("0", "2"))
    with pytest.raises(SettingsError, match="--target-devices 0,2: this machine has 2 GPUs"):
        await RealEngines(options).size(make_strategy("baseline"), WORK, (), quiet)
    with pytest.raises(UsageError, match=r"^--draft-devices 'x': Input should be a valid integer"):
        checked(RunOptions, **given, draft_devices=("0", "x"))


def test_a_share_of_all_engines_over_what_is_free_is_refused_and_one_below_it_bounds_them() -> None:
    busy = machine(1, free=40)
    with pytest.raises(SettingsError, match=r"--gpu-memory-utilization 0.9: 72.0 GiB of GPU 0 .* Give at most 0.5"):
        engine_settings(busy, SMALL, WORK, gpu_share=0.9)
    chosen = engine_settings(machine(1), SMALL, replace(WORK, tracks=200), gpu_share=0.25)
    assert sum(one.gpu_memory_utilization or 0 for one in chosen.values()) <= 0.25


def test_a_role_takes_no_more_than_its_share_and_one_too_small_says_what_is_needed() -> None:
    share = {Role.TARGET: Placement(share=0.06)}
    free = engine_settings(machine(1), SMALL, replace(WORK, tracks=200))[Role.TARGET]
    bound = engine_settings(machine(1), SMALL, replace(WORK, tracks=200), placements=share)[Role.TARGET]
    assert (free.gpu_memory_utilization or 0) > 0.06 >= (bound.gpu_memory_utilization or 0)
    with pytest.raises(CapacityError, match=r"--target-gpu-memory-utilization 0.1 is 8.0 GiB a GPU, and qwq needs 6\d"):
        engine_settings(machine(2), PAIR, WORK, placements={Role.TARGET: Placement(share=0.1)})


def test_each_engines_processes_see_its_gpus_alone_and_vllm_gets_its_sizes() -> None:
    options = {"target_devices": (0, 1), "draft_devices": (2,), "draft_dtype": "float16"}
    chosen = engine_settings(machine(3), PAIR, WORK, placements=asked(**options))
    target, draft = chosen[Role.TARGET], chosen[Role.DRAFT]
    assert own_values(target, 10)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert own_values(draft, 10)["CUDA_VISIBLE_DEVICES"] == "2"
    assert own_values(draft, 10)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert arguments(target)["tensor_parallel_size"] == 2
    assert (arguments(draft)["tensor_parallel_size"], arguments(draft)["dtype"]) == (1, "float16")
    cpu = engine_settings(CPU, SMALL, WORK)[Role.TARGET]
    assert "CUDA_VISIBLE_DEVICES" not in own_values(cpu, 10)
    stages = {Role.TARGET: Placement((1, 2), pipeline_parallel=2)}
    deep = engine_settings(machine(3), {Role.TARGET: PAIR[Role.TARGET]}, WORK, placements=stages)[Role.TARGET]
    assert (deep.tensor_parallel_size, deep.pipeline_parallel_size, deep.devices) == (1, 2, ("1", "2"))
    with pytest.raises(SettingsError, match="'tensor_parallel_size' is set by SpecLRM"):
        check_arguments(deep.model_copy(update={"extra": {"tensor_parallel_size": 4}}), {"tensor_parallel_size"})


def test_each_gpu_is_filled_by_the_engines_on_it() -> None:
    apart = engine_settings(machine(2), PAIR, WORK)
    with pytest.raises(CapacityError, match=r"Not enough memory on GPU 0: qwq .*weights 61.0"):
        engine_settings(machine(1, gib=64), PAIR, WORK)
    assert (apart[Role.DRAFT].kv_cache_bytes or 0) > (apart[Role.TARGET].kv_cache_bytes or 0) * 0.1
    halves = engine_settings(machine(2, gib=48), PAIR, WORK, placements=asked(tensor_parallel_size=2))
    for one in halves.values():
        assert sum(one.estimate.values()) == pytest.approx((one.gpu_memory_utilization or 0) * 48 * GIB, rel=1e-6)
    assert halves[Role.TARGET].estimate["weights"] == QWQ.parameters  # two bytes each, on two GPUs


def test_without_gpus_the_parts_of_a_layer_are_dealt_to_cores_and_share_one_memory() -> None:
    whole = engine_settings(CPU, SMALL, WORK)[Role.TARGET]
    parted = engine_settings(CPU, SMALL, WORK, placements=asked(target_tensor_parallel_size=2))[Role.TARGET]
    assert (parted.device, parted.tensor_parallel_size) == ("cpu", 2)
    assert (
        own_values(whole, 10)["VLLM_CPU_OMP_THREADS_BIND"],
        own_values(parted, 10)["VLLM_CPU_OMP_THREADS_BIND"],
    ) == (
        "0,1",
        "0|1",
    )
    assert parted.estimate["weights"] == whole.estimate["weights"]
    assert parted.estimate["process"] == 2 * whole.estimate["process"]
    assert parted.kv_cache_bytes is not None
    assert whole.kv_cache_bytes is not None
    assert parted.kv_cache_bytes <= whole.kv_cache_bytes // 2 + 1


def test_the_estimate_follows_the_shape_the_batch_and_the_parallel_size() -> None:
    """QwQ-32B at 8,192 batched tokens was estimated at 2.5 to 3.4 GiB beside weights and cache, a flat 2 before."""
    known: dict[str, Any] = {"dtype_bytes": 2, "batched_tokens": 8192, "sequences": 256}
    large, small = estimate(QWQ, **known), estimate(R1, **known)
    assert 2.5 < (large.total - large.weights) / GIB < 3.6
    assert (small.total - small.weights) / GIB < 2.2
    assert estimate(QWQ, **known, tensor=2).weights == large.weights // 2
    assert estimate(QWQ, **known, tensor=2).activations < large.activations
    assert estimate(QWQ, **known, graphs=False).graphs == 0
    assert estimate(R1, **known, likelihood=True).activations > small.activations
    assert QWQ.kv_bytes(2) == 256 * 1024
    assert QWQ.kv_bytes(2, tensor=2, pipeline=2) == 64 * 1024
    assert R1.kv_bytes(2, tensor=4) == R1.kv_bytes(2) // 2  # two heads on four GPUs


@pytest.mark.parametrize(("sequences", "sizes"), [(1, 2), (2, 3), (20, 8), (128, 35), (256, 51), (1000, 51)])
def test_graphs_are_counted_as_vllm_captures_them(sequences: int, sizes: int) -> None:
    most = min(2 * sequences, 512)
    listed = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    assert capture_sizes(sequences) == sizes == sum(size <= most for size in listed)


LISTED = [["0", "GPU-aa1", "NVIDIA H200", "143771", "143000"], ["1", "GPU-bb2", "NVIDIA H200", "143771", "1000"]]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [("0", 143_000), ("1", 1000)]),
        ("1", [("1", 1000)]),
        ("1,0", [("1", 1000), ("0", 143_000)]),
        ("GPU-bb2", [("GPU-bb2", 1000)]),
        ("0,5,1", [("0", 143_000)]),
        ("", []),
        ("MIG-x", [("MIG-x", 143_000)]),
    ],
)
def test_only_gpus_that_this_program_may_use_are_found(visible: str | None, found: list[tuple[str, int]]) -> None:
    assert [(gpu.id, gpu.free_bytes >> 20) for gpu in visible_gpus(LISTED, visible)] == found


@pytest.mark.parametrize(
    ("gpus", "flags"),
    [
        (machine(1, gib=141), "--target-devices 0 --draft-devices 0"),
        (machine(2), "--target-devices 0 --draft-devices 1"),
        (machine(3, gib=48), "--target-devices 0,1 --draft-devices 2"),
        (machine(2, gib=48), "--target-devices 0,1 --draft-devices 1"),
        (machine(1, gib=24), "does not fit"),
    ],
)
def test_the_doctor_proposes_a_placement(
    gpus: Machine, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("speclrm.runtime.models.store.hub_answers", lambda: False)
    findings = {finding.what: finding for finding in examine(gpus).findings}
    assert findings[f"placement of {' and '.join(ORIGINAL)}"].found == flags
    assert f"{len(gpus.gpus) - 1}: card" in findings["accelerator"].found


def test_a_runtime_can_be_told_all_that_the_command_line_says_of_engines() -> None:
    told = inspect.signature(speclrm.Runtime.__init__).parameters
    for name, field in EngineOptions.model_fields.items():
        assert name in told, name
        assert told[name].default in (field.default, None), name


@pytest.fixture
def bare_folder(tmp_path: Path) -> Path:
    """A model's folder without weights."""
    from engines.tiny_models import make_tokenizer

    folder = tmp_path / "bare"
    make_tokenizer(folder, size=320)
    config = {
        "num_attention_heads": 40, "num_key_value_heads": 8, "num_hidden_layers": 64, "hidden_size": 5120,
        "intermediate_size": 27_648, "vocab_size": 152_064, "max_position_embeddings": 40_960, "dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


async def test_a_folder_without_weights_will_do_for_dummy_weights_and_is_sized_by_its_shape(
    bare_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = read_facts("bare", bare_folder).parameters
    assert counted == pytest.approx(QWQ.parameters, rel=1e-4)
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        store.find_local(str(bare_folder))
    monkeypatch.setattr("speclrm.app.engines.read_machine", lambda: machine(2))
    options = RunOptions(
        strategy="baseline", dataset="x", target=str(bare_folder), target_args={"load_format": "dummy"}
    )
    engines = RealEngines(options)
    await engines.size(make_strategy("baseline"), WORK, (), quiet)
    (settings,) = engines.settings.values()
    assert settings.estimate["weights"] == counted * 2
    assert arguments(settings)["load_format"] == "dummy"
    (bare_folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        store.find_local(str(bare_folder), weights=False)


@pytest.mark.parametrize(
    ("count", "options", "target", "draft"),
    [
        (4, {"target_replicas": 3}, (0, 1, 2), (3,)),
        (4, {"target_replicas": 2, "target_tensor_parallel_size": 2}, (0, 1, 2, 3), (0,)),
        (4, {"target_replicas": 2, "target_devices": (3, 1), "draft_replicas": 2}, (3, 1), (0, 2)),
        (2, {"target_replicas": 3}, (0, 1, 0), (0,)),
    ],
)
def test_replicas_go_to_devices_one_after_the_other(
    count: int, options: dict[str, Any], target: tuple[int, ...], draft: tuple[int, ...]
) -> None:
    found = place(machine(count), asked(**options))
    assert (found[Role.TARGET], found[Role.DRAFT]) == (target, draft)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_devices": (0,), "target_replicas": 2}, "1 device cannot hold 2 targets.*take 2 together"),
        ({"target_devices": (0, 1, 2), "target_replicas": 2}, "3 devices cannot hold 2 targets"),
        ({"draft_devices": (0, 1), "draft_replicas": 2, "draft_tensor_parallel_size": 2}, "2 devices.*take 4 together"),
    ],
)
def test_replicas_that_do_not_fit_the_devices_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        place(machine(4), asked(**options))


def test_replicas_have_names_and_devices_of_their_own_and_share_memory() -> None:
    work = replace(WORK, tracks=200)
    chosen = engine_settings(machine(4), SMALL, work, placements=asked(target_replicas=3))[Role.TARGET]
    each = chosen.each()
    assert [(one.name, one.devices, one.replicas) for one in each] == [
        ("target", ("0",), 1),
        ("target#2", ("1",), 1),
        ("target#3", ("2",), 1),
    ]
    assert {one.kv_cache_bytes for one in each} == {chosen.kv_cache_bytes}
    tight = replace(CPU, memory_available=8 * GIB)
    one, two = (
        engine_settings(tight, {Role.TARGET: SMALL[Role.TARGET]}, work, placements={Role.TARGET: Placement(replicas=n)})
        for n in (1, 2)
    )
    assert 0 < (two[Role.TARGET].kv_cache_bytes or 0) <= (one[Role.TARGET].kv_cache_bytes or 0) / 1.9
    assert len(two[Role.TARGET].each()) == 2
    assert by_slices(two)
    assert not by_slices(one)


def test_replicas_that_the_memory_cannot_hold_are_refused() -> None:
    with pytest.raises(CapacityError, match=r"need .* GiB together"):
        engine_settings(CPU, SMALL, WORK, placements=asked(target_replicas=8))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target": "http/m@http://h/v1", "target_replicas": 2}, "on a server.*--target-url"),
        ({"target": "t", "draft_replicas": 2}, "no draft model"),
        ({"target": "sim/qwq-32b", "target_replicas": 2, "shared_device": True}, "--shared-device"),
    ],
)
def test_replicas_that_this_program_does_not_start_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        EngineOptions(**given)


@pytest.mark.parametrize("name", ["target_replicas", "engine_restarts"])
def test_negative_numbers_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        checked(EngineOptions, target="t", **{name: -1})


def test_after_its_memory_ran_out_an_engine_gets_less_and_never_less_than_one_context_needs() -> None:
    for place_ in (CPU, machine(1)):
        before = engine_settings(place_, SMALL, replace(WORK, tracks=64))[Role.TARGET]
        assert smaller(before, 0) == before
        once = smaller(before, 1)
        assert once.max_num_seqs == before.max_num_seqs // 2
        assert before.kv_cache_least < (once.kv_cache_bytes or 0) < (before.kv_cache_bytes or 0)
        batched = before.max_num_batched_tokens // (1 if place_ is CPU else 2)  # a CPU reads a prompt in one piece
        assert once.max_num_batched_tokens == batched
        assert set(changes(before, once)) >= {"max_num_seqs", "kv_cache_bytes"}
        last = smaller(before, 50)
        assert (last.max_num_seqs, last.kv_cache_bytes) == (1, before.kv_cache_least)
