"""Named benchmarks, the three file forms, and what is taken of them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from speclrm.evaluators import datasets
from speclrm.evaluators.benchmarks import ALIASES, BENCHMARKS, final_number
from speclrm.evaluators.datasets import Columns, Selection, load, origin
from speclrm.evaluators.grading import Grader
from speclrm.runtime.errors import DatasetError
from speclrm.runtime.protocols import Problem
from speclrm.strategies.prompts import conversation

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the benchmarks' rows are not in {DATA}")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(count: int) -> list[dict[str, Any]]:
    """Invented questions in the columns of GPQA."""
    return [
        {
            "Question": f"Which is {n}?",
            "Correct Answer": f"right {n}",
            **{f"Incorrect Answer {k}": f"wrong {n}.{k}" for k in (1, 2, 3)},
        }
        for n in range(count)
    ]


@needs_data
@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("aime", 30, "60"),
        ("aime24", 30, "60"),
        ("aime25", 30, "aime25-0"),
        ("math500", 500, None),
        ("math", 500, None),
        ("gsm8k", 1319, "gsm8k-test-0"),
        ("amc23", 40, "0"),
        ("livemathbench", 119, "AMC_en-0"),
        ("live", 46, "AMC_en-0"),
        ("livemathbench:hard_en", 21, "hard_en-0"),
    ],
)
def test_the_benchmarks_have_their_rows(name: str, count: int, first: str | None) -> None:
    problems = load(name, data_dir=DATA)
    assert len(problems) == count
    assert first in (None, problems[0].id)
    assert all(problem.text and problem.answer for problem in problems)


@needs_data
def test_ids_of_aime_are_those_of_the_original() -> None:
    whole = load("aime", data_dir=DATA, selection=Selection("0-89"))
    assert [problem.id for problem in whole] == [str(number) for number in range(90)]
    assert {problem.id: problem.answer for problem in whole}["60"] == "204"  # AIME 2024 I, problem 1
    assert [problem.id for problem in load("aime", data_dir=DATA, selection=Selection("89,60-61"))] == [
        "60",
        "61",
        "89",
    ]


# ------------------------------------------------------------------------------------------------------------ multiple choice


def test_the_right_letter_is_each_letter_as_often(tmp_path: Path) -> None:
    jsonl(tmp_path / "gpqa.jsonl", questions(4_000))
    problems = load("gpqa", data_dir=tmp_path)
    shares = Counter(problem.answer for problem in problems)
    assert all(abs(shares[letter] / 4_000 - 0.25) < 0.03 for letter in "ABCD")  # four deviations of a fair draw
    for number, problem in enumerate(problems):
        options = json.loads(problem.details)
        assert options[problem.answer] == f"right {number}"
        assert f"({problem.answer}) right {number}" in problem.text
        assert sorted(options) == list("ABCD")


def test_the_order_depends_on_seed_and_problem_alone(tmp_path: Path) -> None:
    jsonl(tmp_path / "gpqa.jsonl", questions(40))
    few = load("gpqa", data_dir=tmp_path, selection=Selection("7"))
    assert few[0] == load("gpqa", data_dir=tmp_path)[7]
    assert load("gpqa", data_dir=tmp_path) != load("gpqa", data_dir=tmp_path, seed=1)


async def test_a_choice_is_graded_by_its_letter_or_its_words(tmp_path: Path) -> None:
    jsonl(tmp_path / "gpqa.jsonl", questions(1))
    (problem,) = load("gpqa", data_dir=tmp_path)
    others = [letter for letter in "ABCD" if letter != problem.answer]
    async with Grader() as grader:
        for answer in (
            problem.answer or "",
            f"({problem.answer})",
            f"\\text{{{problem.answer}}}",
            "right 0",
            "Right 0",
        ):
            assert await grader.grade(answer, problem) == "correct"
        for answer in (*others, "wrong 0.1", f"{others[0]}) right 0", "", "E", "0"):
            assert await grader.grade(answer, problem) == "wrong"
    assert "letter" in conversation(problem, "")[0]["content"]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_gpqa_is_read_in_the_form_that_the_hub_has_it(tmp_path: Path, ending: str) -> None:
    write_table(
        tmp_path / f"gpqa_diamond{ending}", [{**row, "Record ID": f"rec{n}"} for n, row in enumerate(questions(3))]
    )
    assert [problem.id for problem in load("gpqa", data_dir=tmp_path)] == ["rec0", "rec1", "rec2"]


# ----------------------------------------------------------------------------------------------------------------- own files


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        arrow: Any = pytest.importorskip("pyarrow")
        parquet: Any = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        jsonl(path, rows)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ".jsonl.gz"])
def test_a_file_of_ones_own_in_each_form(tmp_path: Path, ending: str) -> None:
    rows = [{"key": f"k{n}", "asked": f'What is {n}+1,\n"quoted"?', "right": str(n + 1)} for n in range(5)]
    path = write_table(tmp_path / f"own{ending}", rows)
    problems = load(str(path), columns=Columns("asked", "right", "key"))
    assert [(p.id, p.answer) for p in problems] == [(f"k{n}", str(n + 1)) for n in range(5)]
    assert problems[0].text == 'What is 0+1,\n"quoted"?'


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(problem="asked"), "line 1: no problem. A row needs the column 'asked'; this one has 'id', 'problem'"),
        (Columns(answer="right"), "line 1: no column 'right'; the row has 'id', 'problem', 'answer'"),
        (Columns(id="key"), "line 1: no column 'key'; the row has"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, columns: Columns, message: str) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{"id": "1", "problem": "x", "answer": "1"}])
    with pytest.raises(DatasetError) as caught:
        load(str(path), columns=columns)
    assert message in str(caught.value)


def spoiled(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (spoiled("old.pickle", b"\x80\x04K\x01."), "is a pickle. It is not read: loading a pickle runs whatever code"),
        (spoiled("renamed.jsonl", b"\x80\x04K\x01."), "is a pickle"),
        (spoiled("a.csv", b"problem,answer\nx\n"), "a.csv line 2: the row has not as many cells"),
        (spoiled("a.csv", b"problem,answer\nx,1,2\n"), "a.csv line 2: the row has not as many cells"),
        (spoiled("a.csv", b'problem,answer\n"x,1\n'), "not CSV"),
        (spoiled("a.csv", b"problem,answer\nx\xff,1\n"), "not UTF-8"),
        (spoiled("a.parquet", b"PAR1 and then nothing"), "is no whole Parquet file"),
        (spoiled("a.jsonl.gz", b"no gzip"), "cannot be read"),
        (spoiled("a.jsonl", b"\x00\x01\x02\n"), "line 1: not JSON"),
        (spoiled("a.jsonl", b"[" * 100_000 + b"\n"), "line 1: not JSON"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    path = write(tmp_path)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(DatasetError) as caught:
        load(str(path))
    assert message in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- selection


@pytest.fixture
def ten(tmp_path: Path) -> str:
    return str(
        jsonl(tmp_path / "ten.jsonl", [{"id": f"p-{n}", "problem": f"{n}?", "answer": str(n)} for n in range(10)])
    )


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        (Selection("0-2"), ["p-0", "p-1", "p-2"]),
        (Selection("9, 0-1 ,1"), ["p-0", "p-1", "p-9"]),
        (Selection("p-3,4"), ["p-3", "p-4"]),
        (Selection(limit=2), ["p-0", "p-1"]),
        (Selection("5-9", limit=2), ["p-5", "p-6"]),
        (Selection(sample=10), [f"p-{n}" for n in range(10)]),
        (Selection(sample=99), [f"p-{n}" for n in range(10)]),
    ],
)
def test_what_is_taken(ten: str, selection: Selection, ids: list[str]) -> None:
    assert [problem.id for problem in load(ten, selection=selection)] == ids


def test_a_sample_is_drawn_by_the_seed_and_keeps_the_order(ten: str) -> None:
    drawn = [problem.id for problem in load(ten, selection=Selection(sample=4))]
    assert len(drawn) == 4
    assert drawn == sorted(drawn)
    assert drawn == [problem.id for problem in load(ten, selection=Selection(sample=4))]
    others = {tuple(p.id for p in load(ten, selection=Selection(sample=4), seed=seed)) for seed in range(20)}
    assert len(others) > 5


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("10", "there is no 10. "),
        ("8-12", "there is no 10. "),
        ("5-3", "the range runs backwards. Write 3-5."),
        ("p-10", "'p-10' is neither an id nor numbers"),
        ("abc", "'abc' is neither an id nor numbers"),
        (",", "names no problem"),
        ("-1", "'-1' is neither an id nor numbers"),
        ("0-99999999999", "there is no 10."),
    ],
)
def test_ids_that_are_not_there_are_told_with_those_that_are(ten: str, ids: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load(ten, selection=Selection(ids))
    assert message in str(caught.value)
    assert "backwards" in message or "rows 0-9" in str(caught.value)


def test_numeric_ids_are_meant_by_numbers(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"id": n, "problem": "x", "answer": "1"} for n in (3, 4, 7, 60)])
    assert [p.id for p in load(str(path), selection=Selection("60,3"))] == ["3", "60"]
    with pytest.raises(DatasetError, match=r"there is no 5\. .* has 3-4, 7, 60\."):
        load(str(path), selection=Selection("5"))


def test_a_task_makes_the_problems_that_are_named() -> None:
    assert [p.id for p in load("reasoning-gym:chain_sum", selection=Selection("20"))] == ["chain_sum-0-20"]
    assert len(load("reasoning-gym:chain_sum", selection=Selection(limit=3))) == 3


# ------------------------------------------------------------------------------------------------------------- not to be had


def test_a_benchmark_that_cannot_be_had_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("aime", "gpqa", "livemathbench:CNMO_en"):
        with pytest.raises(DatasetError, match="--data-dir FOLDER"):
            load(name)
    with pytest.raises(DatasetError, match=r"gpqa is not in .* Put gpqa_diamond.jsonl or gpqa.jsonl there"):
        load("gpqa", data_dir=tmp_path)
    with pytest.raises(DatasetError, match="is no folder"):
        load("aime", data_dir=tmp_path / "none")
    with pytest.raises(DatasetError, match=r"has no split 'AMC'. It has: AMC_en"):
        load("livemathbench:AMC", data_dir=tmp_path)
    with pytest.raises(DatasetError, match=r"has no split '2024'. It has none"):
        load("gsm8k:2024", data_dir=tmp_path)


def test_a_refusal_of_the_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise OSError("401 Client Error: access is restricted")

    monkeypatch.setattr(datasets, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)  # pyright: ignore
    with pytest.raises(DatasetError, match=r"401 Client Error.*terms be accepted.*HF_TOKEN"):
        load("gpqa")


def test_rows_of_the_hub_are_read_from_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what stands in for the hub is made up: the file that it would have put into its cache."""
    import huggingface_hub

    kept = jsonl(
        tmp_path / "test.jsonl", [{"problem": "x", "answer": "1", "unique_id": f"test/{n}.json"} for n in range(3)]
    )

    def cached(repository: str, path: str, *, repo_type: str, revision: str) -> str:
        assert (repository, path, repo_type) == ("HuggingFaceH4/MATH-500", "test.jsonl", "dataset")
        assert len(revision) == 40
        return str(kept)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert [p.id for p in load("math", selection=Selection("1-2"))] == ["test/1.json", "test/2.json"]


def test_every_alias_names_a_benchmark_and_every_commit_is_whole() -> None:
    assert all(name.partition(":")[0] in BENCHMARKS for name in ALIASES.values())
    for benchmark in BENCHMARKS.values():
        assert all(len(file.revision) == 40 or file.revision == "refs/convert/parquet" for file in benchmark.hub)


@pytest.mark.parametrize(("text", "answer"), [("so\n#### 1,234", "1234"), ("#### -3 ", "-3"), ("x = 4", "x = 4")])
def test_what_gsm8k_calls_its_answer(text: str, answer: str) -> None:
    assert final_number(text) == answer


# ------------------------------------------------------------------------------------------------- rows in the hub's shape


def test_rows_that_say_no_split_belong_to_the_one_that_is_named(tmp_path: Path) -> None:
    jsonl(
        tmp_path / "livemathbench.jsonl",
        [{"question": f"{n}?", "answer": str(n), "question_type": "x"} for n in (4, 5)],
    )
    problems = load("livemathbench:AMC_en", data_dir=tmp_path)
    assert [(problem.id, problem.answer) for problem in problems] == [("AMC_en-0", "4"), ("AMC_en-1", "5")]
    assert [problem.id for problem in load("livemathbench:hard_en", data_dir=tmp_path)] == ["hard_en-0", "hard_en-1"]
    with pytest.raises(DatasetError, match=r"as in AMC_en-0, and these have no ids\. .*--dataset livemathbench:AMC_en"):
        load("livemathbench", data_dir=tmp_path)


def test_rows_of_another_split_are_not_taken_for_the_one_that_is_named(tmp_path: Path) -> None:
    rows = [{"id": f"{part}-{n}", "question": "?", "answer": "1"} for part in ("AMC_en", "AMC_cn") for n in (0, 1)]
    jsonl(tmp_path / "livemathbench.jsonl", rows)
    assert [problem.id for problem in load("livemathbench", data_dir=tmp_path)] == ["AMC_en-0", "AMC_en-1"]
    with pytest.raises(DatasetError, match=r"no row of hard_en: .* ids such as AMC_en-0, AMC_en-1, AMC_cn-0"):
        load("livemathbench:hard_en", data_dir=tmp_path)
    jsonl(tmp_path / "livemathbench.jsonl", [{"id": n, "question": "?", "answer": "1"} for n in (0, 1)])
    assert [problem.id for problem in load("livemathbench:AMC_en", data_dir=tmp_path)] == ["0", "1"]


async def test_two_options_with_the_same_words_are_both_right_or_both_wrong() -> None:
    options = {"A": " 10 eV", "B": "12 eV", "C": "10  eV\n", "D": "12 meV"}
    async with Grader() as grader:
        for gold, right in (("C", "AC"), ("A", "AC"), ("B", "B"), ("D", "D")):
            problem = Problem("p", "?", gold, "choice", json.dumps(options))
            for letter, words in options.items():
                wanted = "correct" if letter in right else "wrong"
                assert await grader.grade(letter, problem) == wanted
                assert await grader.grade(words.strip(), problem) == wanted
        # Where upper and lower case tell two options apart, they do; where nothing does, they do not.
        energies = Problem("p", "?", "A", "choice", json.dumps({"A": "5 MeV", "B": "5 meV", "C": "Six", "D": "7"}))
        assert [await grader.grade(answer, energies) for answer in ("5 MeV", "5 meV", "B")] == [
            "correct",
            "wrong",
            "wrong",
        ]
        assert await grader.grade("six", Problem("p", "?", "C", "choice", energies.details)) == "correct"


def test_a_copy_of_the_datasets_own_folder_is_read_split_by_split(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    for part in ("AMC_en", "CCEE_en", "CNMO_en", "WLPMC_en"):
        folder = tmp_path / f"v202412_{part}" / "test"
        folder.mkdir(parents=True)
        parquet.write_table(arrow.table({"question": [part], "answer": ["1"]}), folder / "0000.parquet")
    assert [(one.id, one.text) for one in load("live", data_dir=tmp_path)] == [("AMC_en-0", "AMC_en")]
    whole = load("livemathbench", data_dir=tmp_path)
    assert [one.id for one in whole] == ["AMC_en-0", "CCEE_en-0", "CNMO_en-0", "WLPMC_en-0"]
    assert len(origin("livemathbench", tmp_path)["file"]) == 4  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="livemathbench is not in"):
        load("livemathbench:hard_en", data_dir=tmp_path)
