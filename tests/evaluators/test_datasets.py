from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from speclrm.evaluators.datasets import Columns, load
from speclrm.runtime.errors import DatasetError

if TYPE_CHECKING:
    from speclrm.runtime.protocols import Problem

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_a_file_gives_problems_answers_and_ids(tmp_path: Path) -> None:
    name = write(
        tmp_path / "d.jsonl",
        '\ufeff{"id": "a", "problem": "One?", "answer": "1"}\n\n{"question": "Two?", "gold": 2}\n'
        '{"prompt": "Three?"}\n{"problem": "Four?", "answer": "2 + 2 = 4\\n#### 4"}\n',
    )
    problems = load(name)
    assert [(p.id, p.text, p.answer) for p in problems] == [
        ("a", "One?", "1"),
        ("3", "Two?", "2"),
        ("4", "Three?", None),
        ("5", "Four?", "4"),
    ]
    assert len(load(name, limit=2)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"problem": "x"}\n{"problem": \n', "line 2: not JSON"),
        ('{"problem": "x"}\n[1]\n', "line 2: not a JSON object but list"),
        ('{"text": "x", "answer": "1"}\n', "line 1: no problem"),
        ('{"problem": "  "}\n', "line 1: no problem"),
        ('{"problem": "x", "answer": [1]}\n', "line 1: 'answer' is list"),
        ('{"id": 1, "problem": "x"}\n{"id": "1", "problem": "y"}\n', "line 2: id '1' stands on line 1 too"),
        (b'{"problem": "\xff"}\n', "line 1: not UTF-8"),
        ("", "holds no problem"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    name = write(tmp_path / "bad.jsonl", text)
    with pytest.raises(DatasetError) as caught:
        load(name)
    assert message in str(caught.value)
    assert "bad.jsonl" in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset"):
        load(str(tmp_path / "none.jsonl"))
    with pytest.raises(DatasetError, match="is a folder"):
        load(str(tmp_path))


def test_a_task_makes_the_same_problems_for_the_same_seed() -> None:
    one = load("reasoning-gym:chain_sum?max_terms=3", limit=3, seed=1)
    assert one == load("reasoning-gym:chain_sum?max_terms=3", limit=3, seed=1)
    assert one != load("reasoning-gym:chain_sum?max_terms=3", limit=3, seed=2)
    assert all(problem.grader == "reasoning-gym:chain_sum" and problem.answer for problem in one)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reasoning-gym:gsm_symbolik", "Close to it: gsm_symbolic"),
        ("reasoning-gym:chain_sum?terms=3", "no option 'terms'"),
        ("reasoning-gym:chain_sum?min_terms=9&max_terms=2", "refuses its options"),
    ],
)
def test_a_wrong_task_or_option_says_what_there_is(name: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load(name)
    assert message in str(caught.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not beside this repository")
@pytest.mark.parametrize(("file", "rows"), [("aime_2022_2024", 90), ("math500", 500), ("gsm8k_test", 1319)])
def test_real_benchmarks_are_read(file: str, rows: int) -> None:
    problems = load(str(DATA / f"{file}.jsonl"))
    assert len(problems) == rows
    assert all(problem.answer for problem in problems)


# ----------------------------------------------------------------------------------------- what rows do not say, and how


def noted(name: str, **options: Any) -> tuple[list[Problem], list[str]]:
    said: list[str] = []
    return load(name, note=said.append, **options), said


def test_rows_without_a_right_answer_are_told_of_with_the_columns_that_there_are(tmp_path: Path) -> None:
    none = write(tmp_path / "none.jsonl", '{"question": "One?", "Answer": "1"}\n{"question": "Two?", "unit": "m"}\n')
    problems, (said,) = noted(none)
    assert [problem.answer for problem in problems] == [None, None]
    for part in ("no row has a right answer in 'answer', 'gold' or 'expected'", "'question', 'Answer', 'unit'"):
        assert part in said
    assert "--answer-column" in said
    some = write(tmp_path / "some.jsonl", '{"problem": "One?", "answer": "1"}\n{"problem": "Two?", "answer": ""}\n')
    assert noted(some)[1] == [f"{some}: 1 of 2 problems have no right answer; their samples will be ungraded"]
    assert noted(some, limit=1)[1] == []  # what is not taken is nobody's loss
    with pytest.raises(DatasetError, match=r"line 2: no column 'Answer'; the row has 'question', 'unit'"):
        noted(none, columns=Columns(answer="Answer"))


@pytest.mark.parametrize("nothing", ["NaN", "null", '""', '"  "', '"nan"', '"NaN"', '"<NA>"'])
def test_what_tables_write_for_nothing_is_no_answer(tmp_path: Path, nothing: str) -> None:
    name = write(tmp_path / "d.jsonl", f'{{"problem": "One?", "answer": {nothing}, "gold": 5, "id": NaN}}\n')
    (problem,) = load(name)
    assert (problem.answer, problem.id) == ("5", "1")  # another column may have one
    name = write(tmp_path / "d.csv", "problem,answer\nOne?,nan\nTwo?,inf\nThree?,Nancy\n")
    assert [problem.answer for problem in load(name)] == [None, "inf", "Nancy"]
    with pytest.raises(DatasetError, match="no problem: 'problem' is blank"):
        load(write(tmp_path / "e.jsonl", '{"problem": NaN, "answer": "1"}\n'))


def test_a_list_of_one_text_is_an_answer_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", '{"problem": "One?", "final": ["$7$"]}\n')
    assert load(one, columns=Columns(answer="final"))[0].answer == "$7$"
    two = write(tmp_path / "two.jsonl", '{"problem": "One?", "final": ["7", "8"]}\n')
    with pytest.raises(DatasetError, match="line 1: 'final' is list"):
        load(two, columns=Columns(answer="final"))


@pytest.mark.parametrize("column", ["problem", "question"])
def test_a_blank_problem_is_called_blank(tmp_path: Path, column: str) -> None:
    name = write(tmp_path / "d.jsonl", f'{{"id": 1, "{column}": " \\n", "answer": "3"}}\n')
    with pytest.raises(DatasetError, match=f"line 1: no problem: '{column}' is blank"):
        load(name)
    with pytest.raises(DatasetError, match=r"needs the column 'text'; this one has 'id'"):
        load(name, columns=Columns(problem="text"))


@pytest.mark.parametrize(
    "text", ['[{"problem": "x"}, {"problem": "y"}]', '\ufeff\n[\n {"problem": "x"},\n {"problem": "y"}\n]\n']
)
def test_one_array_of_rows_is_read_as_lines_are(tmp_path: Path, text: str) -> None:
    for ending in ("json", "jsonl"):
        problems = load(write(tmp_path / f"d.{ending}", text))
        assert [(problem.id, problem.text) for problem in problems] == [("1", "x"), ("2", "y")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"problem": "x"},\n {"problem": }]', "line 2: not JSON"),
        ('[{"problem": "x"}, 5]', "row 2: not a JSON object but int"),
        ('[{"problem": "x"}]\n[{"problem": "y"}]\n', "line 1: neither a row nor the beginning of a JSON array"),
        ("[]", "holds no problem"),
    ],
)
def test_an_array_that_is_none_is_named_by_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load(write(tmp_path / "d.jsonl", text))
    assert message in str(caught.value)


def test_a_cell_is_as_long_as_a_chain_of_thought(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "step " * 40_000
    name = write(tmp_path / "d.csv", f'problem,answer\n"{long}",4\nshort,5\n')
    assert [len(problem.text) for problem in load(name)] == [len(long), 5]
    assert csv.field_size_limit() == before  # it is the whole program's
    with pytest.raises(DatasetError, match=r"line 3: not CSV \(unexpected end"):
        load(write(tmp_path / "d.csv", 'problem,answer\nx,1\n"y,2\n'))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('"a\nb",1\n"c\nd\n,2\n', "line 4: not CSV"),
        ('"a\nb",1\n"c\nd",2,3\n', "line 4: the row has not as many cells"),
        ('"a\nb",1\n"c\nd"x,3\n', "line 4: not CSV"),
    ],
)
def test_a_row_of_several_lines_is_named_by_its_first(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load(write(tmp_path / "d.csv", f"problem,answer\n{rows}"))
    assert message in str(caught.value)
