"""Generates problems of reasoning-gym's tasks."""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
from importlib.util import find_spec
from typing import Any, cast
from urllib.parse import parse_qsl

from speclrm.runtime.errors import DatasetError
from speclrm.runtime.protocols import Problem

GYM_PREFIX = "reasoning-gym:"
GYM_SIZE = 16
"""Problems of a task where no number is given."""


def make_problems(name: str, size: int, seed: int) -> list[Problem]:
    """Generates ``size`` problems of ``reasoning-gym:TASK[?option=value&...]``, from the seed. Raises DatasetError."""
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
        entries = list(cast("Any", reasoning_gym).create_dataset(task, size=size, seed=seed, **given))
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
