"""Problems by the name of a dataset or a file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl

from speclrm.runtime.errors import DatasetError
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

GYM_PREFIX = "reasoning-gym:"
GYM_SIZE = 16
"""Problems of a reasoning-gym task where no limit is given."""
_PROBLEM_KEYS = ("problem", "question", "prompt")
_ANSWER_KEYS = ("answer", "gold", "expected")
_GSM8K = re.compile(r"####\s*(.+?)\s*$")


def load(name: str, *, limit: int | None = None, seed: int = 0) -> list[Problem]:
    """The problems of ``reasoning-gym:TASK[?option=value&...]`` or of a JSONL file.

    A file's rows hold ``problem`` (or question, prompt), ``answer`` (or gold, expected; may be missing), and ``id``
    (the line's number where missing). ``limit`` takes the first. ``seed`` makes the problems of a generated dataset.

    Raises:
        DatasetError: naming the file and line, or what there is instead.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"--limit {limit} leaves no problem. Give 1 or more.")
    problems = _load_gym(name, limit, seed) if name.startswith(GYM_PREFIX) else _load_jsonl(name, limit)
    if not problems:
        raise DatasetError(f"{name} holds no problem.")
    return problems


def _load_jsonl(name: str, limit: int | None) -> list[Problem]:
    path = Path(name).expanduser()
    if path.is_dir():
        raise DatasetError(f"{path} is a folder. Give a JSONL file with a problem and an answer a line.")
    if not path.is_file():
        raise DatasetError(
            f"There is no dataset {name!r}. Give a JSONL file with a problem and an answer a line, or "
            f"{GYM_PREFIX}TASK (for instance {GYM_PREFIX}gsm_symbolic), which makes fresh problems."
        )
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, row in _rows(path):
        problem = _problem(path, number, row)
        if problem.id in lines:
            raise DatasetError(
                f"{path} line {number}: id {problem.id!r} stands on line {lines[problem.id]} too. Each problem needs an "
                "id of its own."
            )
        lines[problem.id] = number
        problems.append(problem)
        if len(problems) == limit:
            break
    return problems


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    raise DatasetError(
                        f"{path} line {number}: not UTF-8 ({error.reason}). Convert the file."
                    ) from error
                except ValueError as error:
                    raise DatasetError(
                        f"{path} line {number}: not JSON ({error}). Each line must be one JSON object."
                    ) from error
                if not isinstance(row, dict):
                    raise DatasetError(f"{path} line {number}: not a JSON object but {type(row).__name__}.")
                yield number, row
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error


def _problem(path: Path, number: int, row: dict[str, Any]) -> Problem:
    def find(keys: tuple[str, ...]) -> str | None:
        for key in keys:
            if (value := row.get(key)) is not None:
                if isinstance(value, bool) or not isinstance(value, str | int | float):
                    raise DatasetError(
                        f"{path} line {number}: {key!r} is {type(value).__name__}, not text or a number."
                    )
                return str(value)
        return None

    text = find(_PROBLEM_KEYS)
    if text is None or not text.strip():
        raise DatasetError(
            f"{path} line {number}: no problem. A row needs one of {', '.join(map(repr, _PROBLEM_KEYS))}; this one has "
            f"{', '.join(map(repr, row)) or 'nothing'}."
        )
    answer = find(_ANSWER_KEYS)
    if answer is not None and (gsm := _GSM8K.search(answer)):
        answer = gsm[1]
    return Problem(find(("id",)) or str(number), text, answer)


def _load_gym(name: str, limit: int | None, seed: int) -> list[Problem]:
    if find_spec("reasoning_gym") is None:
        raise DatasetError(f"{name} needs the package reasoning-gym: pip install 'speclrm[tasks]'.")
    import reasoning_gym  # pyright: ignore[reportMissingTypeStubs]
    from reasoning_gym import factory  # pyright: ignore[reportMissingTypeStubs]

    task, _, query = name.removeprefix(GYM_PREFIX).partition("?")
    tasks: dict[str, tuple[Any, Any]] = cast("Any", factory).DATASETS
    if task not in tasks:
        close = difflib.get_close_matches(task, tasks, n=5, cutoff=0.4) or sorted(tasks)[:5]
        raise DatasetError(f"reasoning-gym has no task {task!r}. Close to it: {', '.join(close)}.")
    options = {field.name: field for field in dataclasses.fields(tasks[task][1])}
    given: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options or key in ("seed", "size"):
            known = sorted(options.keys() - {"seed", "size"})
            raise DatasetError(f"Task {task} has no option {key!r}. It has: {', '.join(known)}.")
        given[key] = _value(value)
    # Some tasks draw from the global generator whatever their seed; leave it as it was found.
    state = random.getstate()
    random.seed(seed)
    try:
        entries = list(cast("Any", reasoning_gym).create_dataset(task, size=limit or GYM_SIZE, seed=seed, **given))
    except Exception as error:  # a task checks its options in its own ways
        reason = str(error) or f"a check of its own failed on {query or 'no options'}"
        raise DatasetError(f"Task {task} refuses its options: {reason}.") from error
    finally:
        random.setstate(state)
    return [
        Problem(
            f"{task}-{seed}-{index}",
            entry["question"],
            str(entry["answer"]),
            grader=f"{GYM_PREFIX}{task}",
            # The task's scorer may need more than the answer.
            details=json.dumps({"answer": entry["answer"], "metadata": entry.get("metadata", {})}, default=str),
        )
        for index, entry in enumerate(entries)
    ]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
