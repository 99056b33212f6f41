"""Modes in turns on one open runtime: the measurement on scripted engines; the real thing needs models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from cli_runner import speclrm
from support import parts

from speclrm.benchmarks.modes import read_modes
from speclrm.benchmarks.real import BARE, UNENDING, Turns, figures, orders, take_turns
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STEPS = ["We add.\n\n", "So it is \\boxed{4}."]


class Askable(ScriptedEngine):
    """Can also be asked without a runtime, and counts how often its prefixes were forgotten."""

    forgotten = 0

    async def generate_bare(self, ids: Sequence[int], max_tokens: int, seed: int) -> int:
        await asyncio.sleep(0)
        return max_tokens

    async def forget_prefixes(self) -> None:
        self.forgotten += 1


def test_every_second_round_goes_backwards() -> None:
    assert orders(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


async def test_every_mode_has_a_turn_a_round_with_fresh_caches_and_bare_tokens_are_counted() -> None:
    modes = read_modes("speculative,parallel,lock-step")
    families = {mode.name: mode.family(tracks=2, plan="plain", token_budget=100, closing=False) for mode in modes}
    target = Askable(by_step(STEPS * 9, scores=[9] * 18), token_s=0.0)
    draft = ScriptedEngine(by_step(STEPS * 9), token_s=0.0)
    problems = [Problem("p1", "?", "4"), Problem("p2", "?", "5")]
    told: list[str] = []
    async with Runtime(parts({Role.TARGET: target, Role.DRAFT: draft})) as runtime:
        turns = await take_turns(runtime, modes, families, problems, 2, True, 0, told.append)
    assert set(turns) == {UNENDING, BARE, "speculative", "parallel", "lock-step"}
    assert all(len(one.seconds) == len(one.tokens) == len(one.own_s) == 2 for one in turns.values())
    assert turns[BARE].tokens == [200, 200]
    assert turns[UNENDING].tokens == [200, 200]
    assert turns["speculative"].accuracy == [0.5, 0.5]
    assert target.forgotten == 10
    assert told[0] == "warm-up"


def test_figures_compare_turns_of_the_same_round_and_hold_our_own_share_to_its_bound() -> None:
    turns = {
        "a": Turns([1.0, 4.0], [10, 10], [None] * 2, [None] * 2, [1.0, 1.0], [9.0, 9.0]),
        "b": Turns([2.0, 2.0], [10, 10], [None] * 2, [None] * 2, [0.1, 0.1], [9.0, 9.0]),
    }
    found = {one.name: one for one in figures(turns, ["a", "b"])}
    assert found["seconds, a / b"].value == pytest.approx((0.5 + 2.0) / 2)
    assert (found["own share of CPU time, a"].value, found["own share of CPU time, a"].holds) == (0.1, False)
    assert found["own share of CPU time, b"].holds is True


def test_simulated_models_are_sent_elsewhere(tmp_path: Path) -> None:
    done = speclrm(
        *("bench", "real", "--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b", "--dataset", "sim:a70"), cwd=tmp_path
    )
    assert done.returncode == 2
    assert "bench real is for real models" in done.stderr
