"""Runs compared pair by pair: which are refused and what is said, what is compared all the same, and what the command prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cli_runner import invoke

from speclrm.app.compare import compare
from speclrm.app.options import RunOptions
from speclrm.runtime.errors import ResultsError
from speclrm.runtime.events import (
    EngineFacts,
    Operation,
    ProblemStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    SampleFinished,
    StepCommitted,
    StepWritten,
    TrackFinished,
    TrackStarted,
    to_line,
)
from speclrm.strategies.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cli_runner import Done

    from speclrm.runtime.events import EventBase

MACHINE: dict[str, Any] = {"system": "Linux", "processor": "Zeta 9", "cores": 8, "memory_bytes": 1 << 35}
MODEL: dict[str, Any] = {"name": "t", "tensors": "a" * 64, "tokenizer": "b" * 64, "chat_template": "c" * 64}
CONFIG: dict[str, Any] = {
    **RunOptions(strategy="baseline", dataset="d.jsonl", target="t").model_dump(mode="json"),
    "recipe": Recipe(token_budget=512).model_dump(mode="json"),
    "models": {"target": MODEL},
    "weights": {"target": "d" * 64},
    "data": {"file": "d.jsonl", "sha256": "e" * 64},
    "reproducibility": "seeded, batch-dependent",
}
RIGHT = "rrrrrrwwww"


def write(
    folder: Path,
    rights: str = RIGHT,
    *,
    repeats: int = 1,
    first: int = 0,
    gold: str = "4",
    tokens: int = 100,
    machine: Mapping[str, Any] = MACHINE,
    resumed_on: Mapping[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    speclrm: str = "0.1.0",
    finished: bool = True,
    **config: Any,
) -> Path:
    """A run with one letter a sample, ``repeats`` of them a problem; the problems' numbers begin with ``first``."""
    events: list[EventBase] = [
        RunStarted(
            run=folder.name,
            started="2026-01-01T00:00:00+00:00",
            config=CONFIG | config,
            versions={"speclrm": speclrm},
            machine=dict(machine),
            engines={"target": EngineFacts(name="t", parameters=10, max_num_seqs=4)},
        )
    ]
    if resumed_on is not None or overrides is not None:
        on = dict(resumed_on or machine)
        versions = {"speclrm": speclrm}
        events.append(RunResumed(started="", config={}, versions=versions, machine=on, overrides=overrides or {}))
    for number, letter in enumerate(rights):
        sample: dict[str, Any] = {"problem": f"p{first + number // repeats}", "repeat": number % repeats}
        step: dict[str, Any] = {**sample, "track": "A", "step": 0}
        answer = "4" if letter == "r" else "5"
        operation = Operation(
            id=f"{number}", engine="t", seed=None, prompt_tokens=10, output_tokens=tokens, engine_s=2.0
        )
        events += [
            ProblemStarted(**sample, text=f"What is {first + number // repeats}?", gold=gold),
            TrackStarted(**sample, track="A", hint="", prompt_ids={}),
            StepWritten(**step, write_kind="write", text="Well.", ids=(1,) * tokens, operations=(operation,)),
            StepCommitted(**step, origin="write", tokens=tokens, score=None),
            TrackFinished(**sample, track="A", reason="answer", answer=answer, tokens=tokens),
            SampleFinished(
                **sample, answer=answer, winner="A", outcome="correct" if letter == "r" else "wrong", seconds=2.0
            ),
        ]
    if finished:
        events.append(RunFinished(status="finished", seconds=10.0))
    folder.mkdir(parents=True)
    for place, event in enumerate(events):
        vars(event).update(seq=place, t=0.0)
    (folder / "trace.jsonl").write_bytes(b"".join(map(to_line, events)))
    return folder


def changed(role: str, **facts: Any) -> dict[str, Any]:
    return {role: {**MODEL, **facts}}


INCOMPARABLE: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "fewer problems": (
        {"rights": RIGHT[:5]},
        ["problems", "10 of d.jsonl", "5 only here: p5, p6, p7", "5 are in both"],
        "--common",
    ),
    "other problems": ({"first": 5}, ["problems", "5 only here: p10", "5 are in both"], "--common"),
    "fewer repeats": (
        {"rights": RIGHT[:5]},
        ["repeats", "2 of each problem (0, 1)", "1 of each problem (0)", "5 samples are in both"],
        "--common",
    ),
    "another answer under the same id": (
        {"gold": "5"},
        ["data", "10 of them have another text or answer: p0, p1, p2"],
        "--common",
    ),
    "another budget": ({"recipe": {"token_budget": 1024}}, ["token_budget", "512", "1024"], "--allow token-budget"),
    "another target": (
        {"target": "u", "models": changed("target", tensors="f" * 64)},
        ["target", "t", "u"],
        "--allow target",
    ),
    "other weights under the same name": (
        {"models": changed("target", tensors="f" * 64)},
        ["target's weights", "aaaaaaaaaaaaaaaa", "ffffffffffffffff"],
        "--allow models",
    ),
    "another chat template": (
        {"models": changed("target", chat_template=None)},
        ["target's chat template", "cccccccccccccccc", "none"],
        "--allow models",
    ),
    "another data type": ({"dtype": "float32"}, ["dtype", "auto", "float32"], "--allow dtype"),
    "another engine argument": (
        {"target_args": {"quantization": "fp8"}},
        ["target_args", "{}", '{"quantization": "fp8"}'],
        "--allow target-args",
    ),
}


@pytest.mark.parametrize("what", INCOMPARABLE)
def test_runs_that_are_not_comparable_are_refused_with_what_differs(tmp_path: Path, what: str) -> None:
    options, said, advice = INCOMPARABLE[what]
    repeated = what == "fewer repeats"
    base = write(tmp_path / "base", RIGHT, repeats=2 if repeated else 1)
    other = write(tmp_path / "other", **options)
    with pytest.raises(ResultsError) as raised:
        compare([base, other])
    assert "are not comparable" in str(raised.value)
    for words in (*said, advice):
        assert words in str(raised.value)
    if advice == "--common":
        if what == "another answer under the same id":
            with pytest.raises(ResultsError, match="no problem in common that is the same in both"):
                compare([base, other], common=True)
            return
        (found,) = compare([base, other], common=True).others
        assert found.paired.pairs == 5
        assert any("only what both have is compared: 5 samples of 5 problems" in text for text in found.notices)
        assert found.no_split == "the run times are of other samples"
    else:
        with pytest.raises(ResultsError):
            compare([base, other], common=True)
        (found,) = compare([base, other], allow=[advice.split()[1]]).others
        assert found.paired.pairs == 10
        assert any("compared all the same" in text for text in found.notices)


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "parallel", "recipe": {"token_budget": 512, "tracks": 5}},
        {"seed": 7, "concurrency": 1, "output_dir": "elsewhere"},
        {"target": "/models/t"},  # the same weights by another name
        {"dataset": "moved/d.jsonl", "data": {"file": "moved/d.jsonl", "sha256": "e" * 64}},
        {"draft": "s"},
    ],
)
def test_runs_of_the_same_work_are_compared(tmp_path: Path, options: dict[str, Any]) -> None:
    (found,) = compare([write(tmp_path / "a"), write(tmp_path / "b", **options)]).others
    assert not found.notices
    assert found.split is not None
    assert [cost.cost for cost in found.paired.costs] == [
        *("tokens", "target_tokens", "decode_flops", "all_flops", "seconds"),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"machine": {**MACHINE, "cores": 4}}, "Zeta 9, 8 cores beside Zeta 9, 4 cores"),
        ({"devices": [{"name": "H100", "memory_bytes": 1}]}, "Zeta 9, 8 cores beside Zeta 9, 8 cores, H100"),
        ({"resumed_on": {**MACHINE, "processor": "Eta"}}, "beside Zeta 9, 8 cores; then Eta, 8 cores"),
    ],
)
def test_times_of_other_machines_are_left_out(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", **options)]
    (found,) = compare(runs).others
    assert "times are of other machines and left out" in found.notices[0]
    assert said in found.notices[0]
    assert "seconds" not in {cost.cost for cost in found.paired.costs}
    assert found.no_split == "the run times are of other machines"
    (found,) = compare(runs, allow=["machine"]).others
    assert "compared all the same" in found.notices[0]
    assert found.split is not None


def test_virtual_times_are_those_of_no_machine(tmp_path: Path) -> None:
    level: dict[str, Any] = {"reproducibility": "simulated: byte for byte"}
    runs = [write(tmp_path / "a", **level), write(tmp_path / "b", machine={**MACHINE, "cores": 4}, **level)]
    (found,) = compare(runs).others
    assert found.virtual
    assert not found.notices


def test_what_a_run_that_was_broken_off_has_is_compared_with_the_same_of_the_other(tmp_path: Path) -> None:
    base, other = write(tmp_path / "a"), write(tmp_path / "b", RIGHT[:7], finished=False)
    with pytest.raises(ResultsError, match="7 are in both"):
        compare([base, other])
    (found,) = compare([base, other], common=True).others
    assert found.paired.pairs == 7
    assert found.run.status == "running"


def test_a_folder_of_several_runs_is_no_side(tmp_path: Path) -> None:
    write(tmp_path / "all" / "a")
    write(tmp_path / "all" / "b")
    with pytest.raises(ResultsError, match="holds 2 runs"):
        compare([tmp_path / "all", tmp_path / "all" / "a"])
    with pytest.raises(ResultsError, match="Two runs are needed"):
        compare([tmp_path / "all" / "a"])
    with pytest.raises(ResultsError, match="named twice"):
        compare([tmp_path / "all" / "a", tmp_path / "all" / "." / "a"])


# ------------------------------------------------------------------------------------------------------------- the command


def command(*arguments: str, cwd: Path) -> Done:
    return invoke("compare", *arguments, cwd=cwd)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    write(tmp_path / "a", "rrrrrrwwww")
    write(tmp_path / "b", "rrrrrwwwww", tokens=80)
    write(tmp_path / "c", "rrrrrrrrww", tokens=50)
    return tmp_path


def test_a_comparison_fits_in_100_columns_and_says_what_it_means(three: Path) -> None:
    done = command("a", "b", "c", cwd=three)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    for said in (
        "B  b: baseline on d.jsonl by t",
        "-10.0 points",
        "5 pairs in both, 1 only in A, 0 only in B, 4 in neither",
        "p = 1 (exact McNemar)",
        "this may be chance",
        "0.80x",
        "1.25x  shorter chains",
        "p5  right: A 1/1, B 0/1  answers: 4 | 5",
        "C  c: baseline",
        "2 problems differ",
    ):
        assert said in done.stdout


def test_json_has_all_of_it(three: Path) -> None:
    done = command("a", "b", "--json", "--fail-if-worse", "5pt", cwd=three)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["worse"] == ["b"]
    assert found["base"]["intervals"]["accuracy"]["value"] == 0.6
    (other,) = found["others"]
    assert other["paired"]["accuracy"]["mcnemar"] == 1.0
    assert other["split"]["total"] == pytest.approx(1.0)
    assert other["paired"]["costs"][0]["ratio"]["value"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["a", "b", "--fail-if-worse", "1pt"], 1),
        (["a", "b", "--fail-if-worse", "9.9 points"], 1),
        (["a", "b", "--fail-if-worse", "10pt"], 0),  # not more than that
        (["a", "b", "--fail-if-worse", "1pt", "--sure"], 0),
        (["a", "c", "--fail-if-worse", "0pt"], 0),
        (["a", "c", "b", "--fail-if-worse", "1pt"], 1),
        (["a", "b", "--fail-if-worse", "1"], 2),
        (["a", "b", "--fail-if-worse", "1%"], 2),
        (["a", "b", "--fail-if-worse", "200pt"], 2),
        (["a", "b", "--sure"], 2),
        (["a", "missing"], 2),
        (["a"], 2),
    ],
)
def test_a_run_that_is_worse_fails_where_that_is_asked_for(three: Path, arguments: list[str], code: int) -> None:
    done = command(*arguments, cwd=three)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert (code == 0) or len(done.stderr.strip().splitlines()) == 1


def test_a_run_that_is_surely_worse_fails_with_sure(tmp_path: Path) -> None:
    write(tmp_path / "a", "r" * 20 + "w" * 10)
    write(tmp_path / "b", "r" * 6 + "w" * 24)
    done = command("a", "b", "--fail-if-worse", "5pt", "--sure", cwd=tmp_path)
    assert done.returncode == 1
    assert "b: surely worse than a by more than 5pt." in done.stderr
    assert "A is right more often" in done.stdout


# ---------------------------------------------------------------------------------------------------------- eval's guard


def test_evals_ratios_are_refused_between_other_problems(tmp_path: Path) -> None:
    write(tmp_path / "a", "rrrww")
    write(tmp_path / "b", "rrw" * 10, repeats=3, strategy="speculative", draft="s")
    done = invoke("eval", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "ratios      none to a, which is of other work (problems: 5 of d.jsonl; 5 are in both beside 10" in done.stdout
    )
    assert "x)" not in done.stdout
    (_, one) = json.loads(invoke("eval", ".", "--json", cwd=tmp_path).stdout)["evaluations"]
    assert one["compared"]["decode_flops"] is None
    assert "5 only here" in one["compared"]["refused"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": {"token_budget": 1024}}, "token_budget: 512 beside 1024"),
        ({"gold": "5"}, "another text or answer"),
        ({"models": changed("target", tensors="f" * 64)}, "target's weights"),
    ],
)
def test_evals_ratios_are_refused_for_other_budgets_data_and_weights(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", strategy="parallel", **options)
    found = json.loads(invoke("eval", ".", "--json", cwd=tmp_path).stdout)["evaluations"][1]
    assert said in found["compared"]["refused"]


def test_evals_ratios_are_given_for_other_repeats_of_the_same_problems(tmp_path: Path) -> None:
    write(tmp_path / "a", "rrrww", tokens=100)
    write(tmp_path / "b", "rrw" * 5, repeats=3, strategy="parallel", tokens=50)
    found = json.loads(invoke("eval", ".", "--json", cwd=tmp_path).stdout)["evaluations"][1]
    assert found["compared"]["refused"] is None
    assert found["compared"]["decode_flops"] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": {"file": "d.jsonl", "sha256": "0" * 64}}, "the files of the data differ, though not in the problems"),
        ({"speclrm": "0.2.0"}, "answers were graded by other versions of speclrm: 0.1.0 beside 0.2.0"),
        ({"overrides": {"top_p": (0.9, 0.8)}}, "settings were changed while the second run went on: top_p"),
    ],
)
def test_what_makes_comparable_runs_less_alike_is_noted(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    (found,) = compare([write(tmp_path / "a"), write(tmp_path / "b", **options)]).others
    assert [said in text for text in found.notices] == [True]
