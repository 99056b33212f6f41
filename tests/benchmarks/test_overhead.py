"""The measurement of the runtime's own cost, at tiny sizes: what it counts, not how fast it is."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, cast

import pytest
from cli_runner import speclrm

from speclrm.benchmarks import overhead
from speclrm.benchmarks.null_engine import STEP_TOKENS, CheapTokenizer, EmptyEngine
from speclrm.benchmarks.report import BenchReport
from speclrm.runtime.engine import Request
from speclrm.runtime.events import EVENT, StepCommitted, StepDrafted

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_engine_says_one_step_or_one_digit() -> None:
    engine = EmptyEngine("e")

    async def ask(request: Request) -> list[int]:
        return [token async for delta in engine.stream(request) for token in delta.ids]

    step = asyncio.run(ask(Request("p/0/M1/3/draft", [1], 512)))
    assert len(step) == STEP_TOKENS
    assert engine.tokenizer.decode(step).endswith("ddd\n\n")
    digits = tuple(range(48, 58))
    assert asyncio.run(ask(Request("p/0/M1/3/score", [1], 1, allowed_ids=digits, logprob_ids=digits))) == [57]
    assert engine.stats().running == 0


def test_the_cheap_tokenizer_reads_back_what_it_wrote() -> None:
    tokenizer = CheapTokenizer()
    ids = tokenizer.encode("a\n\nü")
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "a\n\nü"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_empty_run_has_contexts_and_steps_as_stated(loop: overhead.LoopKind, tmp_path: Path) -> None:
    seen: list[str] = []
    gauge = overhead.Gauge(10, 110, lambda: seen.append("begin"), lambda: seen.append("end"))
    with asyncio.Runner(loop_factory=overhead.LOOPS[loop]) as runner:
        runner.run(overhead.run_empty(10, 700, tmp_path / "run", gauge))
    assert seen == ["begin", "end"]
    events = [EVENT.validate_json(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    assert sum(isinstance(event, StepCommitted) for event in events) == 10 * overhead.STEPS
    firsts = [event for event in events if isinstance(event, StepDrafted) and event.step == 0]
    assert {operation.prompt_tokens for event in firsts for operation in event.operations} == {700}


def test_a_small_measurement_has_a_row_for_each_place_and_judges_its_figures() -> None:
    began = time.process_time()
    report = overhead.measure(loops=("uvloop",), tracks=(2, 4), contexts=(200,), runs=1, quick=True)
    spent = time.process_time() - began
    assert [(row["context ids"], row["tracks"]) for row in report.rows] == [(200, 2), (200, 4)]
    told = sum(cast("float", row["step us"]) * cast("int", row["tracks"]) * overhead.STEPS for row in report.rows) / 1e6
    assert spent / 1000 < told < spent  # what the steps are said to have cost is a part of what this process spent
    assert [one.name for one in report.figures] == ["memory of a track beside its ids, 4 tracks of 200 ids"]


def test_the_command_prints_one_json_object_and_keeps_report_and_chart(tmp_path: Path) -> None:
    done = speclrm(
        *("bench", "overhead", "--tracks", "2", "--contexts", "200", "--loop", "uvloop", "--runs", "1", "--quick"),
        *("--json", "--output-dir", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert BenchReport.model_validate(json.loads(done.stdout)).benchmark == "overhead"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "overhead.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tracks", "0"], "--tracks '0': write whole numbers from 1"),
        (["--contexts", "a,b"], "--contexts 'a,b'"),
        (["--output-dir", "full"], "already holds"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    done = speclrm("bench", "overhead", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_memory_of_a_track_is_more_than_nothing_beside_its_ids() -> None:
    assert overhead.track_kb(10, 200) > 0  # that requests hold no copies is tested with contexts
