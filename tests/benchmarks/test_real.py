"""Modes in turns on one open runtime: the measurement on scripted engines; the real thing needs models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from cli_runner import speclrm
from support import make_strategy, parts

from speclrm.benchmarks.modes import read_modes
from speclrm.benchmarks.real import BARE, UNENDING, Turns, figures, orders, take_turns
from speclrm.runtime.engines.scripted import ByteTokenizer, Reply, ScriptedEngine, by_step
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from speclrm.runtime.engine import Request

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


async def test_a_model_that_insists_on_its_end_ends_the_baseline_and_bare_writes_as_much() -> None:
    """Behind its second step it has nothing to say, however often it is asked."""

    def silent(request: Request, prompt: str) -> Reply:
        return Reply("".join(STEPS) if request.id.endswith("/0/write") else "")

    target = Askable(silent, token_s=0.0)
    families = {"parallel": make_strategy("parallel", tracks=1, token_budget=100, closing=False)}
    problems = [Problem("p1", "?", "4"), Problem("p2", "?", "5")]
    async with asyncio.timeout(20), Runtime(parts({Role.TARGET: target})) as runtime:
        turns = await take_turns(runtime, read_modes("parallel"), families, problems, 1, True, 0, print)  # type: ignore[arg-type]
    written = 2 * sum(map(len, map(ByteTokenizer().encode, STEPS)))
    assert turns[UNENDING].tokens == turns[BARE].tokens == [written]


async def test_figures_have_every_event_of_a_run_however_far_a_listener_falls_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("speclrm.runtime.trace.sinks.Subscriber.__init__.__kwdefaults__", {"events_max": 3})
    modes = read_modes("parallel")
    families = {mode.name: mode.family(tracks=4, plan="plain", token_budget=100, closing=False) for mode in modes}
    target = Askable(by_step(STEPS * 9), token_s=0.0, chunk_tokens=1000)
    problems = [Problem(f"p{number}", "?", "4") for number in range(8)]
    async with Runtime(parts({Role.TARGET: target})) as runtime:
        turns = await take_turns(runtime, modes, families, problems, 1, True, 0, print)
    assert turns[UNENDING].tokens == [800]
    assert turns["parallel"].tokens == [32 * len(ByteTokenizer().encode("".join([*STEPS, STEPS[0]])))]


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
        *("bench", "real", "--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b", "--dataset", "sim:a70"),
        *("--target-arg", "load_format=dummy", "--draft-arg", "load_format=dummy", "--engine-log", "e.log"),
        *("--gpu-memory-utilization", "0.9", "--target-devices", "0"),
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "bench real is for real models" in done.stderr
