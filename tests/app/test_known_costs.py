"""What is known of a pair's costs before a run: by a calibration, by a glance, or not at all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speclrm.app import known_costs
from speclrm.app.engines import RealEngines
from speclrm.app.known_costs import glance_at, kept_costs
from speclrm.app.options import CalibrateOptions, EngineOptions
from speclrm.app.presets import provenance
from speclrm.app.progress import quiet
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engine import EngineCosts
from speclrm.runtime.engines import vllm_start
from speclrm.runtime.engines.scripted import ByteTokenizer, ScriptedEngine, by_step
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.device import Device
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.engines.simulated.presets import EngineFit, Preset, presets_dir, write_preset
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld
from speclrm.runtime.errors import EngineDeadError
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.protocols import Role
from speclrm.runtime.settings import EngineSettings

TARGET = EngineCost(w=0.11, p=0.005, k=0.0, kv_tokens=30_000, max_num_seqs=32)
DRAFT = EngineCost(w=0.04, p=0.002, k=0.0, kv_tokens=30_000, max_num_seqs=32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(tmp_path))
    return tmp_path


def settings(**changes: Any) -> dict[Role, EngineSettings]:
    one = EngineSettings(
        name="m", path=Path("/m"), device="cpu", dtype="bfloat16", max_model_len=512, max_num_seqs=4,
        max_num_batched_tokens=512, block_size=16, cores=(0, 1),
    )  # fmt: skip
    return {Role.TARGET: one.model_copy(update=changes), Role.DRAFT: one}


def glanced(
    told: list[str] | None = None, *, target: EngineCost = TARGET, of: dict[Role, EngineSettings] | None = None
) -> dict[Role, EngineCosts]:
    """A glance at a simulated pair that shares a device."""

    def tell(stage: str, done: float | None, total: float | None) -> None:
        if told is not None:
            told.append(stage)

    async def main() -> dict[Role, EngineCosts]:
        world, device = SimulatedWorld(MIXES["a70"]), Device()
        engines = {
            role: SimulatedEngine(role.value, cost, world, world.tokenizer, device, share=0.5)
            for role, cost in ((Role.TARGET, target), (Role.DRAFT, DRAFT))
        }
        try:
            return await glance_at("big", "small", read_machine(), engines, of or settings(), tell)
        finally:
            for engine in engines.values():
                await engine.aclose()

    return run_virtual(main())


def test_what_a_glance_saw_is_known_to_later_runs_of_the_same_engines(folder: Path) -> None:
    machine, told = read_machine(), list[str]()
    assert kept_costs("big", "small", machine) == {}
    found = glanced(told)
    assert told == ["measuring both engines, once for this pair on this machine"]
    assert (found[Role.TARGET].w, found[Role.TARGET].p) == pytest.approx((TARGET.w, TARGET.p), rel=0.1)
    assert (found[Role.DRAFT].w, found[Role.DRAFT].p) == pytest.approx((DRAFT.w, DRAFT.p), rel=0.1)
    assert [one.slowdown for one in found.values()] == pytest.approx([1.0, 1.0], rel=0.1)
    assert kept_costs("big", "small", machine, settings()) == kept_costs("big", "small", machine) == found
    # Other engines, another pair, another machine: nothing is known of them.
    assert kept_costs("big", "small", machine, settings(dtype="float32")) == {}
    assert kept_costs("big", "small", machine, settings(path=Path("/other"))) == {}
    assert kept_costs("big", "small", machine, settings(extra={"quantization": "awq"})) == {}
    assert kept_costs("big", "other", machine) == {}
    assert kept_costs("big", "small", replace(machine, processor="another")) == {}


def test_what_another_version_saw_or_a_damaged_file_is_as_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glanced()
    (file,) = (folder / "costs").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(known_costs, "versions_words", lambda: "vllm 99")
        assert kept_costs("big", "small", read_machine()) == {}
    assert kept_costs("big", "small", read_machine())
    file.write_text(file.read_text()[:-20])
    assert kept_costs("big", "small", read_machine()) == {}


def test_engines_on_devices_of_their_own_are_not_measured_together(folder: Path) -> None:
    apart = settings(device="cuda", devices=("0",))
    apart[Role.DRAFT] = apart[Role.DRAFT].model_copy(update={"device": "cuda", "devices": ("1",)})
    assert [one.slowdown for one in glanced(of=apart).values()] == [0.0, 0.0]


def test_a_glance_that_takes_too_long_is_given_up_and_said(folder: Path) -> None:
    told: list[str] = []
    assert glanced(told, target=replace(TARGET, w=20.0)) == {}
    assert "it took over 60 s; `speclrm calibrate` takes its time" in told[-1]
    assert not (folder / "costs").exists()


async def test_an_engine_that_fails_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise EngineDeadError("Engine big is gone.")

    monkeypatch.setattr(known_costs, "glance", fails)
    told: list[str] = []
    machine = read_machine()

    def tell(stage: str, done: float | None, total: float | None) -> None:
        told.append(stage)

    assert await glance_at("big", "small", machine, {}, settings(), tell) == {}
    assert told[-1].endswith("the engines were not measured: Engine big is gone.")


def test_costs_that_cannot_be_kept_serve_this_run(folder: Path) -> None:
    (folder / "costs").write_text("a file where a folder should be")
    told: list[str] = []
    assert glanced(told)[Role.TARGET].w == pytest.approx(TARGET.w, rel=0.1)
    assert "what was measured is not kept" in told[-1]


class Started(ScriptedEngine):
    """An engine as it comes from its start."""

    processes: frozenset[int] = frozenset()
    known_costs: EngineCosts | None = None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    found: list[Started] = []

    async def start_engines(each: Any, tokenizers: Any, **given: Any) -> dict[str, Started]:
        engines = {label: Started(by_step(["x"]), name=label) for label in each}
        found.extend(engines.values())
        return engines

    monkeypatch.setattr(vllm_start, "start_engines", start_engines)
    return found


def pair(*, auto: bool, log: Path) -> RealEngines:
    engines: Any = RealEngines(EngineOptions(target="big", draft="small", engine_log=log))
    engines._settings, engines._tokenizers, engines._auto = settings(), dict.fromkeys(Role, ByteTokenizer()), auto
    return engines


@pytest.mark.parametrize("auto", [True, False])
async def test_only_auto_wants_to_know_costs_and_only_once(
    auto: bool, folder: Path, started: list[Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    glances: list[list[str]] = []

    async def glance(engines: list[Started], *, together: bool) -> list[EngineCosts]:
        glances.append([engine.name for engine in engines])
        return [EngineCosts(0.1 if engine.name == "target" else 0.02) for engine in engines]

    monkeypatch.setattr(known_costs, "glance", glance)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            parts: Any = await pair(auto=auto, log=folder / "log").open(stack, quiet)
            assert {role: engines[0].known_costs for role, engines in parts.engines.items()} == {
                Role.TARGET: EngineCosts(0.1) if auto else None,
                Role.DRAFT: EngineCosts(0.02) if auto else None,
            }
    assert [set(names) for names in glances] == [{"target", "draft"}] * auto


async def test_engines_are_closed_if_the_caller_gives_up_during_a_glance(
    folder: Path, started: list[Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def glance(engines: list[Started], *, together: bool) -> list[EngineCosts]:
        begun.set()
        await asyncio.sleep(1000)
        raise AssertionError

    monkeypatch.setattr(known_costs, "glance", glance)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await pair(auto=True, log=folder / "log").open(stack, quiet)

    task = asyncio.create_task(main())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [engine.closed for engine in started] == [True, True]


def test_costs_that_a_calibration_measured_here_are_known_to_later_runs_of_the_pair(
    folder: Path,
) -> None:
    machine = read_machine()
    assert kept_costs("big", "small", machine) == {}
    cost = EngineCost(w=0.2, p=0.01, k=1e-6, kv_tokens=1000, s=0.001)
    fits = {"target": EngineFit(cost=cost, share=0.5), "draft": EngineFit(cost=cost, share=0.8)}
    measured = provenance(machine, CalibrateOptions(target="big", draft="small"))
    preset = Preset(engines=fits, one_device=True, measured=measured)  # type: ignore[arg-type]
    write_preset(preset, presets_dir() / "big__small.json")
    assert kept_costs("big", "small", machine) == {
        Role.TARGET: EngineCosts(0.2, 0.011, 1e-6, 1.0),
        Role.DRAFT: EngineCosts(0.2, 0.011, 1e-6, 0.25),
    }
    assert kept_costs("big", "other", machine) == {}
    elsewhere = preset.model_copy(update={"measured": {**measured, "machine": "another"}})
    write_preset(elsewhere, presets_dir() / "big__small.json")
    assert kept_costs("big", "small", machine) == {}
    # Nothing that a glance saw counts beside it.
    glanced()
    assert kept_costs("big", "small", machine)[Role.TARGET].w == pytest.approx(TARGET.w, rel=0.1)
    write_preset(preset, presets_dir() / "big__small.json")
    assert kept_costs("big", "small", machine)[Role.TARGET] == EngineCosts(0.2, 0.011, 1e-6, 1.0)
