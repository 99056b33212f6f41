r"""Lists the benchmarks that have a name: where their rows come from, and how a row becomes a problem.

Revisions are commits of the datasets on the Hugging Face hub, as other projects pin them: gsm8k, MATH-500 and aime25 as
inspect_evals does; aimo-validation-aime, amc23 and gpqa as found in several public evaluation suites. LiveMathBench has
no commit that we know: its rows come from the hub's own Parquet branch.
"""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar, cast

from speclrm.runtime.errors import DatasetError
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

LETTERS = "ABCD"
GPQA_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
NOTHING = ("nan", "<na>")
"""What pandas makes of nothing where it writes text."""
_GSM8K = re.compile(r"####\s*(.+?)\s*$")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a dataset repository. ``part``: the split that its rows belong to, where there are several."""

    repository: str
    revision: str
    path: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """``files``: names that its rows may have in ``--data-dir``, without ending, first come first taken.

    ``make``: a problem from a row, its 0-based number among the rows of its part, the part, and the seed. ``parts``:
    splits that may be asked for as ``name:part``; ``without``: those left out unless asked for. ``default_ids``: what is
    taken where no ids are given. ``gated``: the hub wants terms accepted first.
    """

    name: str
    what: str
    files: tuple[str, ...]
    hub: tuple[HubFile, ...]
    make: Callable[[dict[str, Any], int, str, int], Problem]
    parts: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    default_ids: str | None = None
    gated: bool = False


def text_of(row: dict[str, Any], names: Sequence[str]) -> str | None:
    """Returns the first of the columns that the row has a value in, as text. Raises DatasetError where it is no text or number.

    No value are null, NaN, which is what tables of numbers write for nothing, and text of spaces alone.
    """
    for name in names:
        value = row.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DatasetError(f"{name!r} is {type(value).__name__}, not text or a number")
        if (text := str(value)).strip():
            return text
    return None


def answer_of(row: dict[str, Any], names: Sequence[str]) -> str | None:
    """Returns the right answer as ``text_of`` does: a list of one text is that text; "None" and the like are no answer."""
    for name in names:
        value = row.get(name)
        if isinstance(value, list):
            match cast("list[object]", value):
                case [str() as only]:
                    value = only
                case _:
                    pass
        text = text_of({name: value}, (name,))
        if text is not None and text.strip().lower() not in NOTHING:
            return text
    return None


def need(row: dict[str, Any], *names: str) -> str:
    """Returns the text of the first column that has one, as ``text_of`` does. Raises DatasetError if there is none."""
    value = answer_of(row, names) if "answer" in names else text_of(row, names)
    if value is None:
        blank = [name for name in names if name in row]
        what = f"{blank[0]!r} is blank" if blank else f"no {names[0]}"
        raise DatasetError(f"{what}; the row has {', '.join(map(repr, row)) or 'nothing'}")
    return value


def final_number(answer: str) -> str:
    """Returns what stands behind GSM8K's ``####``, without thousands separators; any other answer as it is."""
    found = _GSM8K.search(answer)
    return found[1].replace(",", "") if found else answer


def shuffled(options: Sequence[T], seed: int, problem: str) -> list[T]:
    """Returns the options in an order that the seed and the problem's id decide."""
    key = blake2b(f"{seed}/{problem}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(key, "big")).sample(list(options), len(options))


def _numbered(name: str) -> Callable[[dict[str, Any], int, str, int], Problem]:
    """Rows with a problem, an answer, and an id, or a number instead."""

    def make(row: dict[str, Any], number: int, part: str, seed: int) -> Problem:
        return Problem(
            text_of(row, ("id", "unique_id")) or f"{name}{number}",
            need(row, "problem", "question"),
            final_number(need(row, "answer")),
        )

    return make


def _aime(row: dict[str, Any], number: int, part: str, seed: int) -> Problem:
    answer = need(row, "answer")
    # Some sources write three digits, 025.
    return Problem(str(row.get("id", number)), need(row, "problem"), str(int(answer)) if answer.isdigit() else answer)


def _amc(row: dict[str, Any], number: int, part: str, seed: int) -> Problem:
    return Problem(str(row.get("id", number)), need(row, "problem", "question"), need(row, "answer").removesuffix(".0"))


def _live(row: dict[str, Any], number: int, part: str, seed: int) -> Problem:
    """Reads rows as they are on the hub: a file for each split, rows without ids."""
    name = text_of(row, ("id",)) or f"{part}-{number}"
    return Problem(name, need(row, "problem", "question"), need(row, "answer"))


def _gpqa(row: dict[str, Any], number: int, part: str, seed: int) -> Problem:
    name = text_of(row, ("id", "Record ID")) or str(number)
    texts = [need(row, column).strip() for column in GPQA_COLUMNS]
    order = shuffled((0, 1, 2, 3), seed, name)  # the right option is the first column's
    options = {letter: texts[place] for letter, place in zip(LETTERS, order, strict=True)}
    lines = "\n".join(f"({letter}) {text}" for letter, text in options.items())
    return Problem(
        name,
        f"{need(row, 'Question').strip()}\n\nChoices:\n{lines}",
        LETTERS[order.index(0)],
        "choice",
        json.dumps(options, ensure_ascii=False),
    )


_LIVE_PARTS = ("AMC_en", "CCEE_en", "CNMO_en", "WLPMC_en", "hard_en")

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "aime",
            "AIME; ids 60-89 are 2024 (taken by default), 30-59 2023, 0-29 2022",
            ("aime_2022_2024", "aime"),
            (
                HubFile(
                    "AI-MO/aimo-validation-aime",
                    "13f9e12f613e720c2a2b2f345dd04b998a29494d",
                    "data/train-00000-of-00001.parquet",
                ),
            ),
            _aime,
            default_ids="60-89",
        ),
        Benchmark(
            "aime25",
            "AIME 2025, both papers, 30 problems",
            ("aime_2025", "aime25"),
            (HubFile("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test.jsonl"),),
            _numbered("aime25-"),
        ),
        Benchmark(
            "math500",
            "MATH-500",
            ("math500", "math"),
            (HubFile("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl"),),
            _numbered("math500-"),
        ),
        Benchmark(
            "gpqa",
            "GPQA Diamond, 198 questions with four choices, shuffled by the seed",
            ("gpqa_diamond", "gpqa"),
            (HubFile("Idavidrein/gpqa", "633f5ee89ab8ad4522a9f850766b73f62147ffdd", "gpqa_diamond.csv"),),
            _gpqa,
            gated=True,
        ),
        Benchmark(
            "livemathbench",
            f"LiveMathBench of December 2024; splits {', '.join(_LIVE_PARTS)} as in livemathbench:AMC_en; without one all "
            "but hard_en, which repeats others' problems",
            ("livemathbench_en", "livemathbench"),
            tuple(
                HubFile("opencompass/LiveMathBench", "refs/convert/parquet", f"v202412_{part}/test/0000.parquet", part)
                for part in _LIVE_PARTS
            ),
            _live,
            parts=_LIVE_PARTS,
            without=("hard_en",),
        ),
        Benchmark(
            "gsm8k",
            "GSM8K, test, 1,319 problems",
            ("gsm8k_test", "gsm8k"),
            (HubFile("openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", "main/test-00000-of-00001.parquet"),),
            _numbered("gsm8k-test-"),
        ),
        Benchmark(
            "amc23",
            "AMC 12 of 2022 and 2023, 40 problems with whole answers",
            ("amc23",),
            (HubFile("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "test-00000-of-00001.parquet"),),
            _amc,
        ),
    )
}

ALIASES = {"aime24": "aime", "math": "math500", "live": "livemathbench:AMC_en"}
"""``live`` is what the original scripts call that split."""


def canonical(name: str) -> str:
    """Returns a benchmark's own name for one of its aliases; any other name as it is."""
    return ALIASES.get(name, name)
