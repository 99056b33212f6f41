"""What `bench gpu` measures, in which order, and how far its time goes; on simulated engines. The real thing needs vLLM."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from cli_runner import speclrm

from speclrm.app.resolve import resolve
from speclrm.benchmarks import gpu
from speclrm.benchmarks.coin import Coin
from speclrm.benchmarks.gpu import STEADY, Cell, Plan, closing_report, compared, rate, simulated, take_turns, turn
from speclrm.benchmarks.shapes import SHAPES, make_folder, read_pair
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.engines.simulated.presets import (
    PRESETS,
    SHARED,
    EngineFit,
    Preset,
    simulated_engines,
    slices,
    write_preset,
)
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import ModelError, SettingsError
from speclrm.runtime.machine.sizing import read_facts
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack
    from pathlib import Path

PLAN = Plan(tracks=(5, 1), acceptance=(0.8,), budget=128)
NAMES = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    text = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 130, "content": "<end>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(text))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_a_folder_of_that_shape_without_weights(name: str, tokenizer: Path, tmp_path: Path) -> None:
    folder = make_folder(name, tokenizer, tmp_path / name)
    facts = read_facts(name, folder)
    shape = SHAPES[name]
    assert (facts.shape.layers, facts.shape.hidden, facts.shape.head_size) == (
        shape.layers,
        shape.hidden,
        shape.head_size,
    )
    if shape.parameters:
        assert facts.parameters == pytest.approx(shape.parameters, rel=0.01)
    else:
        assert facts.shape.vocabulary == 192  # rows for the highest id, in whole blocks
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_shapes_and_tokenizers_that_do_not_fit_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    assert read_pair("qwq-32b:r1-1.5b") == ("qwq-32b", "r1-1.5b")
    for text in ("qwq-32b", "qwq-32b:", "qwq-32b:big", "a:b"):
        with pytest.raises(SettingsError, match="write TARGET:DRAFT"):
            read_pair(text)
    with pytest.raises(ModelError, match="has no tokenizer"):
        make_folder("tiny", tmp_path, tmp_path / "m")
    text = {"model": {"vocab": {"a": 200_000}}}
    (tokenizer / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="has 200001 ids and a qwq-32b has rows for 152064"):
        make_folder("qwq-32b", tokenizer, tmp_path / "m")


def test_the_cells_come_in_the_order_of_their_worth_and_the_target_alone_before_what_is_held_against_it() -> None:
    cells = list(Plan().cells())
    assert len(set(cells)) == len(cells)
    assert cells[0] == Cell(5, "alone", None)
    for place, cell in enumerate(cells):
        assert cell.alone in cells[: place + 1] or cell.mode == "lock-step"
        assert cell.places * cell.each == cell.tracks
    assert Counter(cell.mode for cell in cells) == {"alone": 7, "always": 21, "auto": 21, "lock-step": 12}
    assert not any(cell.tracks == 1 and cell.times == STEADY for cell in cells)


def test_the_coin_keeps_the_chosen_share_and_falls_the_same_way_for_the_same_step() -> None:
    plan = Plan(acceptance=(0.7,), budget=640)
    fits = preset_fits()

    def accepted(mode: str, tracks: int) -> float:
        async def main() -> Any:
            async with open_runtime() as runtime:
                return await turn(runtime, plan, Cell(tracks, mode, 0.7))

        return run_virtual(main())["accepted"]

    assert set(fits) == {"target", "draft"}
    found = accepted("always", 20)
    assert found == pytest.approx(0.7, abs=0.06)
    assert accepted("lock-step", 20) == found
    coin = plan.family(Cell(5, "always", 0.7))
    assert isinstance(coin, Coin)
    assert not isinstance(plan.family(Cell(5, "alone", None)), Coin)


def preset_fits() -> dict[Any, EngineFit]:
    names = {"target": "qwq-32b", "draft": "r1-1.5b"}
    return {role: EngineFit(cost=PRESETS[name], share=SHARED[role]) for role, name in names.items()}


def open_runtime() -> Runtime:
    world = SimulatedWorld(WorldSettings((0.5,), steps=2000, draft_lengths=(32.0,) * 3, target_lengths=(32.0,) * 3), 0)

    async def parts(stack: AsyncExitStack) -> Components:
        engines = simulated_engines(NAMES, world, shared_device=True)
        for engine in engines.values():
            stack.push_async_callback(engine.aclose)
        return Components(dict(engines), ExactEquivalence(), slices=slices(engines))

    return Runtime(parts)


def take(plan: Plan, seconds: float) -> tuple[list[tuple[Cell, Any]], list[Mapping[str, Any]]]:
    """The turns that go into so many virtual seconds."""
    rows: list[tuple[Cell, Any]] = []
    said: list[Mapping[str, Any]] = []

    async def main() -> None:
        async with open_runtime() as runtime:
            loop = asyncio.get_running_loop()
            await take_turns(runtime, plan, rows, lambda: seconds - loop.time(), said.append, lambda _: None)

    run_virtual(main())
    return rows, said


def test_every_cell_has_its_turn_and_its_row_at_once() -> None:
    rows, said = take(PLAN, 10_000.0)
    assert [cell for cell, _ in rows] == list(PLAN.cells())
    assert [one["what"] for one in said] == ["turn"] * len(rows)
    by_cell = dict(rows)
    steady = by_cell[Cell(5, "always", 0.8, STEADY)]
    assert steady["steady"] != steady["tokens/s"]
    assert rate(steady) == steady["steady"]
    assert by_cell[Cell(5, "always", 0.8)]["steady"] is None
    assert json.dumps(said)


def test_what_the_time_does_not_hold_is_left_out_and_said() -> None:
    rows, said = take(PLAN, 40.0)
    skipped = [one for one in said if one["what"] == "skipped"]
    assert rows
    assert skipped
    assert len(rows) + len(skipped) == len(list(PLAN.cells()))
    assert all(one["needs_s"] + 20.0 > one["left_s"] for one in skipped)


def test_the_simulator_stands_beside_each_cell(tmp_path: Path) -> None:
    preset = tmp_path / "fit.json"
    write_preset(Preset(engines=preset_fits(), one_device=True), preset)
    rows, _ = take(PLAN, 10_000.0)
    twins: dict[Cell, Any] = {}
    table = [
        compared(cell, row, rows, simulated(preset, PLAN, cell, by_slices=True), twins)
        for cell, row in rows
        if cell.times == 1 and cell.mode != "lock-step"
    ]
    # The same engines, but warm ones: their caches have the prompts.
    assert all(row["simulated / measured"] == pytest.approx(1.0, abs=0.1) for row in table)
    assert all(row["x alone"] == pytest.approx(row["simulated x alone"], abs=0.2) for row in table)
    assert [row["x alone"] for row in table if row["mode"] == "alone"] == [1.0] * 2
    report = closing_report(("qwq-32b", "r1-1.5b"), PLAN, table, preset_fits(), None, {"slices": True, "share": "auto"})
    assert any("seeded coin" in note for note in report.notes)
    assert {one.name for one in report.figures} >= {"auto / alone, 5 tracks, 0.8, closed"}


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--shape", "big:small", "write TARGET:DRAFT"),
        ("--acceptance", "1.5", "write shares up to 1"),
        ("--tracks", "0", "write whole numbers from 1"),
        ("--share-gpu", "mps", "no GPU is shared by two engines"),
    ],
)
def test_what_cannot_be_is_one_paragraph_before_anything_loads(
    option: str, value: str, why: str, tokenizer: Path, tmp_path: Path
) -> None:
    done = speclrm("bench", "gpu", "--shape", "tiny:tiny", "--tokenizer", str(tokenizer), option, value, cwd=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr


async def test_from_loading_to_the_closing_table(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On scripted engines in place of vLLM's."""

    class Askable(ScriptedEngine):
        async def generate_bare(self, ids: Any, max_tokens: int, seed: int) -> int:
            await asyncio.sleep(0.001)
            return max_tokens

    class Engines:
        simulated = False
        settings: Mapping[Role, Any] = {}
        servers: Mapping[str, Any] = {}

        async def size(self, strategy: Any, work: Any, problems: Any, notify: Any) -> None:
            assert strategy.roles == frozenset(Role)

        async def open(self, stack: AsyncExitStack, notify: Any) -> Components:
            text = by_step(["We go on and on.\n\n"] * 200, scores=[5] * 400)
            return Components({role: Askable(text, token_s=0.0002) for role in Role}, ExactEquivalence(), slices=True)

        async def tokenizers(self) -> dict[Role, Any]:
            return {}

    given: list[Any] = []

    def a_turn(folder: Path) -> str:
        return "turn"

    def make(options: Any, dataset: str, seed: int) -> Engines:
        given.append(options)
        return Engines()

    monkeypatch.setattr(gpu, "resolve", partial(resolve, make=make))
    monkeypatch.setattr(gpu, "fitting_judge", a_turn)
    said: list[Mapping[str, Any]] = []
    plan = Plan((2,), (0.8,), 64)
    options = {"share_gpu": "slices", "target_args": {"seed": 1}}
    report = await gpu.measure(
        ("tiny-wide", "tiny"),
        options,
        plan,
        tokenizer=str(tokenizer),
        folder=tmp_path / "shapes",
        minutes=5,
        say=said.append,
        notify=lambda _: None,
    )
    assert given[0].target_args == {"load_format": "dummy", "seed": 1}
    assert given[0].share_gpu == "slices"
    whats = [one["what"] for one in said]
    assert whats[:2] == ["loaded", "fit"]
    assert whats[2:] == ["turn"] * len(report.rows) + ["bare"]
    assert len(report.rows) == len(list(plan.cells()))
    assert all(row["simulated tokens/s"] for row in report.rows)
    assert report.settings["slices"] is True
    assert report.figures[0].value is not None
