"""Problems that arrive at random, on simulated engines under virtual time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_runner import speclrm
from support import make_strategy, parts

from speclrm import api
from speclrm.benchmarks.load import arrivals, measure, serve
from speclrm.benchmarks.modes import read_modes
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.benchmarks.report import BenchReport

OPTIONS = api.RunOptions(
    strategy="speculative",
    target="sim/qwq-32b",
    draft="sim/r1-1.5b",
    dataset="sim:a70?size=2",
    recipe={"tracks": 2, "plan": "plain", "token_budget": 200},
)


def test_arrivals_come_at_the_rate_and_another_rate_squeezes_the_same_pattern() -> None:
    slow, fast = arrivals(2000, 6, seed=1), arrivals(2000, 60, seed=1)
    assert slow[-1] / 2000 == pytest.approx(10, rel=0.1)
    assert slow == pytest.approx([10 * at for at in fast])
    assert arrivals(3, 6, seed=2) != slow[:3]


def test_a_wait_runs_from_arrival_to_answer_beside_those_at_work() -> None:
    engine = ScriptedEngine(by_step(["So it is \\boxed{4}."]), token_s=5.0)  # a hundred seconds an answer
    problems = [Problem(f"p{number}", "?", "4") for number in range(4)]

    async def main() -> None:
        async with Runtime(parts({Role.TARGET: engine})) as runtime:
            service = await serve(runtime, make_strategy("baseline"), problems, per_minute=60)
            assert service.at_once_max == 4
            assert len(set(map(round, service.waits_s))) == 1  # all run side by side: nobody waits for another
            assert [state.outcome for state in service.samples] == ["correct"] * 4
            assert service.seconds == pytest.approx(arrivals(4, 60, 0)[-1] + service.waits_s[-1])

    run_virtual(main())


def found() -> BenchReport:
    return run_virtual(measure(OPTIONS, modes=read_modes("speculative,parallel"), rates=[1, 30], problems=3))


def test_each_mode_has_a_row_for_each_rate_and_a_seed_tells_the_same_story_again() -> None:
    report = found()
    assert [(row["mode"], row["a minute"]) for row in report.rows] == [
        ("speculative", 1),
        ("speculative", 30),
        ("parallel", 1),
        ("parallel", 30),
    ]
    assert report.simulated
    for row in report.rows:
        assert 0 < float(row["p50 s"] or 0) <= float(row["p90 s"] or 0) <= float(row["p99 s"] or 0)
    assert found().rows == report.rows


def test_modes_carry_options_and_a_fault() -> None:
    one, two, three = read_modes("parallel, speculative:score-threshold=5, lock-step")
    assert (one.strategy, one.options) == ("parallel", {})
    assert two.options == {"score_threshold": "5"}
    assert two.family(tracks=4).recipe.score_threshold == 5.0
    assert two.family(tracks=4).recipe.tracks == 4
    assert (three.name, three.strategy, three.fault) == ("lock-step", "speculative", "rounds")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one or more different modes"),
        ("parallel,parallel", "one or more different modes"),
        ("nothing", "no strategy called 'nothing'"),
        ("parallel:colour=red", "'colour=red' is no option=value"),
        ("speculative:fault=none-such", "no fault called"),
    ],
)
def test_a_mode_that_cannot_be_is_told(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_modes(text)


def test_the_command_runs_simulated_engines_and_refuses_bad_rates(tmp_path: Path) -> None:
    command = ("bench", "load", "--problems", "2", "--tracks", "1", "--token-budget", "100", "--modes", "parallel")
    engines = ("--target-arg", "load_format=dummy", "--engine-log", "e.log", "--gpu-memory-utilization", "0.9")
    done = speclrm(*command, *engines, "--rates", "6", "--json", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["mode"] == "parallel"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "waits.svg"}
    bad = speclrm(*command, "--rates", "0,x", cwd=tmp_path)
    assert bad.returncode == 2
    assert "--rates '0,x'" in bad.stderr
