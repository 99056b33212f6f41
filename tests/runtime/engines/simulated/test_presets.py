"""Presets in files: what a calibration writes is what a simulation takes, and nothing else passes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from speclrm.runtime.engines.simulated import presets
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.presets import (
    EngineFit,
    Preset,
    read_preset,
    simulated_engines,
    slices,
    world_settings,
    write_preset,
)
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import ModelError
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from pathlib import Path

COST = EngineCost(w=0.05, p=0.002, k=1e-7, kv_tokens=20_000, max_model_len=2048, chunked_prefill=False, request_s=0.002)
WORLD = WorldSettings((0.6,), steps=7.5, scores=(1.5, 4.0, 6.25), draft_lengths=(3.0, 20.0, 60.0))
PRESET = Preset(
    engines={
        "target": EngineFit(cost=COST, share=0.6, residual=0.04, measurements=80),
        "draft": EngineFit(cost=EngineCost(w=0.02, p=0.001, k=0.0, kv_tokens=20_000), share=0.5, parameters=9),
    },
    one_device=True,
    measured={"machine": "two cores", "date": "2026-11-25"},
    world=WORLD,
)
NAMES = {Role.TARGET: "sim/mine", Role.DRAFT: "sim/mine"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(presets, "presets_dir", lambda: tmp_path)
    return tmp_path


def test_a_preset_reads_back_as_it_was_written(folder: Path) -> None:
    write_preset(PRESET, folder / "mine.json")
    assert read_preset("mine") == PRESET
    assert read_preset(str(folder / "mine.json")) == PRESET
    assert [path.name for path in folder.iterdir()] == ["mine.json"]


def test_each_role_gets_its_own_engine_and_one_device_stays_one(folder: Path) -> None:
    write_preset(PRESET, folder / "mine.json")
    engines = simulated_engines(NAMES, SimulatedWorld(WORLD), shared_device=False)
    target, draft = engines[Role.TARGET], engines[Role.DRAFT]
    assert (target.cost, target.share, draft.cost.w, draft.share) == (COST, 0.6, 0.02, 0.5)
    assert (target.stats().parameters, draft.stats().parameters) == (None, 9)
    assert target._device is draft._device  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("shared", "mps", "slowdowns", "sliced"),
    [
        (False, False, [0, 0], False),
        (True, False, [0.55 / 0.45, 0.45 / 0.55], True),
        (True, True, [1 / 9, 1 / 9], False),
    ],
)
def test_built_in_engines_have_a_device_each_or_share_one_by_slices_or_side_by_side(
    shared: bool, mps: bool, slowdowns: list[float], sliced: bool
) -> None:
    names = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
    engines = simulated_engines(names, SimulatedWorld(WORLD), shared_device=shared, mps=mps)
    assert [engine.known_costs.slowdown for engine in engines.values()] == pytest.approx(slowdowns)
    assert slices(engines) == sliced


def test_a_preset_brings_its_world(folder: Path) -> None:
    write_preset(PRESET, folder / "mine.json")
    assert world_settings("mine") == WORLD
    write_preset(PRESET.model_copy(update={"world": None}), folder / "costs.json")
    with pytest.raises(ModelError, match="holds costs alone"):
        world_settings("costs")


def test_an_unknown_preset_is_told_with_those_that_there_are(folder: Path) -> None:
    write_preset(PRESET, folder / "mine.json")
    names = {Role.TARGET: "sim/yours"}
    with pytest.raises(
        ModelError, match=r"no simulated engine 'sim/yours'. There are: sim/qwq-32b, sim/r1-1.5b, sim/mine;"
    ):
        simulated_engines(names, SimulatedWorld(WORLD), shared_device=False)
    with pytest.raises(ModelError, match=r"Simulated ones are sim:aime-mix, sim:a70, sim:a85, sim:mine;"):
        world_settings("yours")
    with pytest.raises(ModelError, match=r"There is no preset at /nowhere/x.json"):
        simulated_engines({Role.TARGET: "sim//nowhere/x.json"}, SimulatedWorld(WORLD), shared_device=False)


def test_a_preset_without_the_role_is_refused(folder: Path) -> None:
    write_preset(PRESET.model_copy(update={"engines": {"target": PRESET.engines["target"]}}), folder / "mine.json")
    with pytest.raises(ModelError, match="sim/mine has no draft engine"):
        simulated_engines(NAMES, SimulatedWorld(WORLD), shared_device=False)


def broken(change: dict[str, Any]) -> str:
    data = json.loads(PRESET.model_dump_json())
    for name, value in change.items():
        place = data
        *path, last = name.split(".")
        for part in path:
            place = place[part]
        place[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: Invalid JSON"),
        ("{}", "engines: Field required"),
        (broken({"schema_version": 2}), "schema_version: Input should be 1"),
        (broken({"engines.target.cost.w": 0}), "engines.target.cost.w: Input should be greater than 0"),
        (broken({"engines.target.share": 1.5}), "engines.target.share: Input should be less than or equal to 1"),
        (broken({"engines.judge": {}}), "engines.judge"),
        (broken({"world.acceptance": []}), "world.acceptance"),
        (broken({"world.scores": [11]}), "world.scores.0"),
        (broken({"colour": "red"}), "colour: Extra inputs are not permitted"),
    ],
)
def test_a_broken_preset_says_what_is_wrong_with_it(folder: Path, text: str, message: str) -> None:
    (folder / "mine.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        read_preset("mine")
    assert "mine.json is not a preset of this version" in str(caught.value)
    assert message in str(caught.value)
    assert "speclrm calibrate" in str(caught.value)
