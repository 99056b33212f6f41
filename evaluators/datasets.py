"""Problems by the name of a benchmark, a task, or a file; and which of them are taken."""

from __future__ import annotations

import difflib
import hashlib
import random
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from speclrm.evaluators.benchmarks import (
    ALIASES,
    BENCHMARKS,
    GPQA_COLUMNS,
    Benchmark,
    HubFile,
    answer_of,
    canonical,
    final_number,
    text_of,
)
from speclrm.evaluators.reasoning_gym import GYM_PREFIX, GYM_SIZE, make_problems
from speclrm.evaluators.tables import FORMATS, Row, read_rows
from speclrm.runtime import plugins
from speclrm.runtime.errors import DatasetError
from speclrm.runtime.models.online import HUB_TIMEOUT_S, hub_answers
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic import JsonValue

PROBLEM_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "gold", "expected")
ID_COLUMNS = ("id", "unique_id", "problem_id")
_ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
GROUP = "speclrm.datasets"
"""Entry points of packages that bring datasets: a name each, and what is called with ``seed`` and gives the problems."""
_CODE = re.compile(r"[\w./~-]+\.py:\w+|[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_PART_ID = re.compile(r".+-\d+")
"""A row's id that names the split of its benchmark."""
_PART = re.compile(r"(\d+)/(\d+)")
DEFAULT_ROWS = 30


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file of one's own; None stands for the usual names."""

    problem: str | None = None
    answer: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects problems of a dataset: those named, then so many at random, then the first so many.

    ``problem_ids``: as in ``60-89,95``: an id of the dataset, or numbers, which are ids where the dataset's ids are
    whole numbers, and rows counted from 0 where they are not.
    """

    problem_ids: str | None = None
    sample: int | None = None
    limit: int | None = None


def load(
    name: str,
    *,
    selection: Selection | None = None,
    limit: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
    columns: Columns | None = None,
    notify: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Problem]:
    """Returns the problems of a benchmark (``aime``, ``livemathbench:AMC_en``), of ``reasoning-gym:TASK``, or of a file.

    ``limit`` is short for a selection of nothing but that. ``seed`` makes generated problems, shuffles choices, and
    draws ``sample``. ``data_dir``: a folder with the benchmark's rows, instead of the hub. ``notify`` is told what is being
    fetched; ``note``, what of the rows decides what a run of them is worth.

    Raises:
        DatasetError: naming the file and line, or what there is instead, or how to get what is not there.
    """
    selection = selection or Selection(limit=limit)
    for option, value in (("--limit", selection.limit), ("--sample", selection.sample)):
        if value is not None and value < 1:
            raise DatasetError(f"{option} {value} leaves no problem. Give 1 or more.")
    default_ids, columns_told = None, ""
    if name in plugins.installed(GROUP):
        problems = _from_code(name, seed)
    elif name.startswith(GYM_PREFIX):
        problems = make_problems(name, _gym_size(selection), seed)
    elif (benchmark := BENCHMARKS.get(canonical(name).partition(":")[0])) is not None:
        problems = _load_benchmark(benchmark, canonical(name).partition(":")[2], data_dir, seed, notify)
        default_ids = benchmark.default_ids
    elif _CODE.fullmatch(name) and not Path(name).exists():
        problems = _from_code(name, seed)
    else:
        columns = columns or Columns()
        problems, there = _load_file(name, columns)
        asked = (columns.answer,) if columns.answer else ANSWER_COLUMNS
        columns_told = (
            f" in {_or(asked)}. The rows have the columns {', '.join(map(repr, there))}; say which one holds the answers with "
            "--answer-column"
        )
    problems = select(name, problems, selection, seed, default_ids)
    without = sum(problem.answer is None for problem in problems)
    if without == len(problems):
        note(f"{name}: every sample will be ungraded, because no row has a right answer{columns_told}")
    elif without:
        note(f"{name}: {without} of {len(problems)} problems have no right answer; their samples will be ungraded")
    return problems


def origin(name: str, data_dir: Path | None = None) -> dict[str, JsonValue]:
    """Returns where the rows of a dataset are from: a file with its sha256, files of the hub with their commits, or a task."""
    if name.startswith(GYM_PREFIX):
        return {"task": name.removeprefix(GYM_PREFIX), "package": f"reasoning-gym {_version('reasoning-gym')}"}
    if name in plugins.installed(GROUP) or (_CODE.fullmatch(name) and not Path(name).exists()):
        return {"code": name} | _file_of(name)
    full, _, part = canonical(name).partition(":")
    benchmark = BENCHMARKS.get(full)
    if benchmark is not None and data_dir is None:
        wanted = [file for file in benchmark.hub if file.part in _wanted(benchmark, part)]
        return {"hub": [f"{file.repository}@{file.revision}/{file.path}" for file in wanted]}
    if benchmark is None or data_dir is None:
        paths = [Path(name).expanduser()]
    else:
        paths = _as_on_the_hub(benchmark, data_dir, _wanted(benchmark, part)) or [_local(benchmark, data_dir)]
    return _digest(paths)


def _file_of(name: str) -> dict[str, JsonValue]:
    """Returns the file of code and its sha256, if the code stands in a file."""
    path = Path(name.rpartition(":")[0]).expanduser()
    return _digest([path]) if path.suffix == ".py" and path.is_file() else {}


def _digest(paths: Sequence[Path]) -> dict[str, JsonValue]:
    files: list[JsonValue] = [str(path.resolve()) for path in paths]
    state = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                state.update(piece)
    return {"file": files[0] if len(files) == 1 else files, "sha256": state.hexdigest()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _wanted(benchmark: Benchmark, part: str) -> tuple[str, ...]:
    """Returns the splits that are taken; the empty name stands for a benchmark that has none."""
    if not benchmark.parts:
        return ("",)
    return (part,) if part else tuple(name for name in benchmark.parts if name not in benchmark.without)


def names() -> list[str]:
    """Returns what a dataset may be called, beside tasks and files: benchmarks, aliases, and those of installed packages."""
    builtin = [*BENCHMARKS, *ALIASES]
    return [*builtin, *sorted(set(plugins.installed(GROUP)) - set(builtin))]


def _from_code(name: str, seed: int) -> list[Problem]:
    """Returns what another package, or a Python file, makes under that name."""
    found = plugins.find(GROUP, "dataset", name, {*BENCHMARKS, *ALIASES})
    assert found is not None
    make, what = found
    try:
        problems = list(make(seed=seed))
    except Exception as error:  # whatever that code raises is its own affair, and told as such
        raise DatasetError(f"{what} cannot be made: {type(error).__name__}: {error}.") from error
    if strange := [one for one in problems if not isinstance(one, Problem)]:
        raise DatasetError(f"{what} gives a {type(strange[0]).__name__}; it must give speclrm.Problem objects.")
    return _unique(what, ((f"problem {place}", one) for place, one in enumerate(problems)))


# ----------------------------------------------------------------------------------------------------------- selection


def _gym_size(selection: Selection) -> int:
    """Returns how many problems a task has to make: as many as are asked for, by number or by the highest row named."""
    rows = [int(number) for number in re.findall(r"\d+", selection.problem_ids or "")]
    return max(selection.limit or 0, selection.sample or 0, *(row + 1 for row in rows), 0) or GYM_SIZE


def select(
    name: str, problems: list[Problem], selection: Selection, seed: int, default_ids: str | None = None
) -> list[Problem]:
    """Returns what the selection takes of the problems of a dataset. Raises DatasetError."""
    if not problems:
        raise DatasetError(f"{name} holds no problem.")
    if selection.problem_ids is not None:
        problems = _named(name, problems, selection.problem_ids)
    elif default_ids is not None and len(problems) > DEFAULT_ROWS:  # a folder may hold only what is the default
        problems = _named(name, problems, default_ids)
    if selection.sample is not None and selection.sample < len(problems):
        drawn = random.Random(f"sample/{seed}").sample(range(len(problems)), selection.sample)
        problems = [problems[place] for place in sorted(drawn)]
    return problems[: selection.limit]


def part_of(problems: Sequence[Problem], part: str) -> list[Problem]:
    """Returns the problems of a part such as ``2/8``: of eight parts, every eighth problem from the second one on.

    Raises DatasetError if it is no such part, or has no problem.
    """
    match = _PART.fullmatch(part)
    number, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= parts:
        raise DatasetError(f"--shard {part} is no part. Write K/N, such as 2/8, with K from 1 to N.")
    if number > len(problems):
        raise DatasetError(f"--shard {part} is empty: there are {len(problems)} problems. Use at most as many shards.")
    return list(problems[number - 1 :: parts])


def _named(name: str, problems: Sequence[Problem], text: str) -> list[Problem]:
    """Returns the problems that the text names, in the dataset's order, each once."""
    places = {problem.id: place for place, problem in enumerate(problems)}
    numeric = all(problem.id.isdigit() for problem in problems)
    by_number = {int(problem.id): place for place, problem in enumerate(problems)} if numeric else None
    taken: set[int] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item in places:
            taken.add(places[item])
            continue
        match = _RANGE.fullmatch(item)
        if match is None:
            raise DatasetError(
                f"--problem-id {item!r} is neither an id nor numbers as in 60-89. {_there(name, problems)}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise DatasetError(f"--problem-id {item}: the range runs backwards. Write {last}-{first}.")
        for number in range(first, min(last, first + 10_000_000) + 1):
            place = number if by_number is None else by_number.get(number)
            if place is None or place >= len(problems):
                raise DatasetError(f"--problem-id {item}: there is no {number}. {_there(name, problems)}")
            taken.add(place)
    if not taken:
        raise DatasetError(f"--problem-id {text!r} names no problem. {_there(name, problems)}")
    return [problems[place] for place in sorted(taken)]


def _there(name: str, problems: Sequence[Problem]) -> str:
    if all(problem.id.isdigit() for problem in problems):
        return (
            f"{name} has {_ranges(sorted(int(problem.id) for problem in problems))}. Give --problem-id some of these."
        )
    shown = ", ".join(problem.id for problem in problems[:3])
    return (
        f"{name} has rows 0-{len(problems) - 1}, with ids such as {shown}. Give --problem-id some of these rows or ids."
    )


def _ranges(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [f"{first}-{last}" if last > first else str(first) for first, last in runs]
    return ", ".join([*parts[:8], "..."] if len(parts) > 8 else parts)


# ------------------------------------------------------------------------------------------------------------- own files


def _or(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(map(repr, names[:-1])), repr(names[-1])]))


def _load_file(name: str, columns: Columns) -> tuple[list[Problem], dict[str, None]]:
    """Returns the problems of a file, and the names of all its columns."""
    there: dict[str, None] = {}
    path = Path(name).expanduser()
    if not path.exists():
        known = ", ".join(names())
        close = difflib.get_close_matches(name, names(), n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise DatasetError(
            f"There is no dataset {name!r}.{meant} Give one of {known}; {FORMATS} with a problem and an answer a row; or "
            f"{GYM_PREFIX}TASK (for instance {GYM_PREFIX}gsm_symbolic), which makes fresh problems."
        )

    def make(row: Row, number: int, place: str) -> Problem:
        there.update(dict.fromkeys(row))
        usual = (columns.problem,) if columns.problem else PROBLEM_COLUMNS
        text = text_of(row, usual)
        if text is None:
            if blank := [name for name in usual if name in row]:
                raise DatasetError(f"no problem: {' and '.join(map(repr, blank))} is blank")
            names = f"the column {columns.problem!r}" if columns.problem else f"one of {', '.join(map(repr, usual))}"
            raise DatasetError(
                f"no problem. A row needs {names}; this one has {', '.join(map(repr, row)) or 'nothing'}"
            )
        answer = answer_of(row, (columns.answer,) if columns.answer else ANSWER_COLUMNS)
        if columns.answer and columns.answer not in row:
            raise DatasetError(f"no column {columns.answer!r}; the row has {', '.join(map(repr, row)) or 'nothing'}")
        if columns.id and columns.id not in row:
            raise DatasetError(f"no column {columns.id!r}; the row has {', '.join(map(repr, row)) or 'nothing'}")
        identity = text_of(row, (columns.id,) if columns.id else ID_COLUMNS) or place.rpartition(" ")[2]
        return Problem(identity, text, None if answer is None else final_number(answer))

    return _unique(path, _made(path, make)), there


def _made(path: Path, make: Callable[[Row, int, str], Problem]) -> Iterator[tuple[str, Problem]]:
    """Problems of the rows of a file; an error of a row names file and line."""
    for number, (place, row) in enumerate(read_rows(path)):
        try:
            problem = make(row, number, place)
        except DatasetError as error:
            raise DatasetError(f"{path} {place}: {error}.") from None
        yield place, problem


def _unique(path: Path | str, made: Iterable[tuple[str, Problem]]) -> list[Problem]:
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for place, problem in made:
        if problem.id in places:
            raise DatasetError(
                f"{path} {place}: id {problem.id!r} stands on {places[problem.id]} too. Each problem needs an id of its "
                "own."
            )
        places[problem.id] = place
        problems.append(problem)
    return problems


# ----------------------------------------------------------------------------------------------------------- benchmarks


def _load_benchmark(
    benchmark: Benchmark, part: str, data_dir: Path | None, seed: int, notify: Callable[[str], None]
) -> list[Problem]:
    if part and part not in benchmark.parts:
        parts = f"It has: {', '.join(benchmark.parts)}" if benchmark.parts else "It has none"
        raise DatasetError(f"{benchmark.name} has no split {part!r}. {parts}.")
    wanted = _wanted(benchmark, part)
    if data_dir is not None and not _as_on_the_hub(benchmark, data_dir, wanted):
        path = _local(benchmark, data_dir)
        made = _made(path, lambda row, number, _: benchmark.make(row, number, part, seed))
        whole = _unique(path, made)
        return _of_parts(benchmark, path, whole, part, wanted) if benchmark.parts else whole
    problems: list[Problem] = []
    for file in benchmark.hub:
        if file.part in wanted:
            path = _fetch(benchmark, file, notify) if data_dir is None else data_dir / file.path
            problems += _unique(
                path, _made(path, lambda row, number, _, file=file: benchmark.make(row, number, file.part, seed))
            )
    return problems


def _as_on_the_hub(benchmark: Benchmark, folder: Path, wanted: Sequence[str]) -> list[Path]:
    """Returns the files of the splits, where the folder is a copy of a dataset's that has one for each of them."""
    files = [folder / file.path for file in benchmark.hub if file.part and file.part in wanted]
    return files if files and all(path.is_file() for path in files) else []


def _of_parts(
    benchmark: Benchmark, path: Path, whole: list[Problem], part: str, wanted: Sequence[str]
) -> list[Problem]:
    """Returns, of a user's own file, the problems of the splits that are wanted, as their ids say. Raises DatasetError."""
    taken = [one for one in whole if one.id.rpartition("-")[0] in wanted]
    if taken or not whole:
        return taken
    if part and not any(_PART_ID.fullmatch(one.id) for one in whole):
        return whole  # rows that say nothing of a split belong to the one that is named
    ids = [one.id for one in whole if not one.id.startswith("-")]
    shown = f"ids such as {', '.join(ids[:3])}" if ids else "no ids"
    named = "" if part else f", or name the split that all rows belong to: --dataset {benchmark.name}:{wanted[0]}"
    raise DatasetError(
        f"{path} has no row of {', '.join(wanted)}: a row's id says its split, as in {wanted[0]}-0, and these have "
        f"{shown}. Add such ids{named}."
    )


def _local(benchmark: Benchmark, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise DatasetError(f"--data-dir {data_dir} is no folder. Give the folder that holds {_files(benchmark)}.")
    for name in benchmark.files:
        for ending in _ENDINGS:
            if (path := data_dir / f"{name}{ending}").is_file():
                return path
    raise DatasetError(f"{benchmark.name} is not in {data_dir}. {_how_to_give(benchmark)}")


def _files(benchmark: Benchmark) -> str:
    return " or ".join(f"{name}.jsonl" for name in benchmark.files)


def _how_to_give(benchmark: Benchmark) -> str:
    columns = ", ".join(("Question", *GPQA_COLUMNS)) if benchmark.name == "gpqa" else "id, problem, answer"
    return f"Put {_files(benchmark)} there (.csv and .parquet too), with {columns} in each row."


def _fetch(benchmark: Benchmark, file: HubFile, notify: Callable[[str], None]) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache  # pyright: ignore[reportUnknownVariableType]

    cached = try_to_load_from_cache(file.repository, file.path, repo_type="dataset", revision=file.revision)
    if isinstance(cached, str):
        return Path(cached)
    if not hub_answers():
        raise DatasetError(
            f"{benchmark.name} is not here and the Hugging Face hub cannot be reached. Give --data-dir FOLDER. "
            f"{_how_to_give(benchmark)}"
        )
    notify(f"fetching {benchmark.name} from the hub")
    try:
        return Path(
            hf_hub_download(
                file.repository,
                file.path,
                repo_type="dataset",
                revision=file.revision,
                etag_timeout=HUB_TIMEOUT_S,
            )
        )
    except Exception as error:  # the hub's client has many ways to say no
        terms = (
            f" Its authors ask that their terms be accepted first, at {file.repository} on the hub, and that HF_TOKEN be set."
            if benchmark.gated
            else ""
        )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatasetError(
            f"{benchmark.name} cannot be had from the Hugging Face hub ({file.repository}): {reason}{terms} Or give "
            f"--data-dir FOLDER. {_how_to_give(benchmark)}"
        ) from error
