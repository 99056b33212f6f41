from __future__ import annotations

from pathlib import Path

import pytest

from speclrm.evaluators.datasets import load
from speclrm.runtime.errors import DatasetError

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
