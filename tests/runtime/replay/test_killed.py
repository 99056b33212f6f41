"""A run that is killed without warning leaves a trace that reads and checks up to its end."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from speclrm.app import trace_check
from speclrm.app.evaluation import evaluate_runs
from speclrm.benchmarks.studies import kills
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.trace.journal import Journal
from speclrm.runtime.trace.reader import read_run
from speclrm.runtime.trace.segments import segments

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import asyncio, sys
from pathlib import Path
from speclrm.evaluators.answers import find_answer
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.trace.journal import TraceOptions
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.run_parts import Components
from speclrm.strategies.catalog import strategy

STEPS = [f"Step {number} says more.\\n\\n" for number in range(40)] + ["So it is \\\\boxed{4}."]

async def parts(stack):
    draft = ScriptedEngine(by_step(STEPS), name="draft", token_s=0.0005)
    return Components({Role.DRAFT: draft, Role.TARGET: ScriptedEngine(by_step(STEPS, scores=[9, 3, 8] * 14), token_s=0.0005)},
        ExactEquivalence())

async def main():
    problems = [Problem(f"p{number}", "What is two and two?", "4") for number in range(200)]
    async with Runtime(parts) as runtime:
        chosen = strategy("speculative", find_answer, tracks=3)
        await runtime.run(problems, chosen, directory=Path(sys.argv[1]), concurrency=4, trace=TraceOptions(60_000),
            config={"recipe": chosen.recipe.model_dump(mode="json"), "dataset": "own", "target": "t"})

asyncio.run(main())
"""
KILLS = 4


@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_any_moment_leaves_a_trace_that_checks_up_to_its_end(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        trace = folder / "trace.jsonl"
        while process.poll() is None and time.monotonic() < deadline and not (trace.exists() and trace.stat().st_size):
            time.sleep(0.01)
        time.sleep(0.2 + random.Random(number).random() * 1.5)
        assert process.poll() is None, process.communicate()[1].decode()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    report = trace_check.check(folder)
    assert report.violations == ()
    assert report.events > 20
    assert report.unfinished[0] == "the run did not end"
    # It can be evaluated, though nothing was derived from it, and gone on with.
    notices: list[str] = []
    (one,) = run_virtual(evaluate_runs([folder], notice=notices.append))
    assert one.unfinished
    assert "results.jsonl is missing" in notices[-1]
    assert not (folder / "results.jsonl").exists()

    async def resume() -> int:
        async with Journal(trace, resume=True) as journal:
            return journal.next_seq

    assert run_virtual(resume()) == sum(1 for _ in read_run(folder)) == report.events
    assert len(segments(trace)) == segments(trace)[-1].number


@pytest.mark.timeout(300)
def test_killed_and_resumed_runs_have_the_figures_of_an_undisturbed_one(tmp_path: Path) -> None:
    lines = kills.compare("speculative", problems=2, runs=2, kills=2, seed=3, folder=tmp_path)
    assert all(kills.SAME in line for line in lines), lines
    assert any("killed 2 times" in line for line in lines)
