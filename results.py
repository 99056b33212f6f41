"""Runs as they lie in folders: found, read from their traces, evaluated."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from speclrm.evaluators.evaluation import Evaluation, RunResults, evaluate, grouped
from speclrm.evaluators.grading import Grader, plainly_same
from speclrm.evaluators.metrics import Summary
from speclrm.evaluators.report import write_reports
from speclrm.runtime.errors import ResultsError
from speclrm.runtime.events import RunStarted
from speclrm.runtime.journal import TRACE_FILE
from speclrm.runtime.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

PICKLES = (".pickle", ".pkl")


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders that hold a trace, at any depth, each once, in the order of their names.

    Raises:
        ResultsError: a folder is missing, holds no run, or holds results in the pickle format of the original scripts,
            which would be left out in silence.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.exists():
            raise ResultsError(f"There is no {folder}. Give the --output-dir of a run, or a folder of such.")
        if folder.suffix in PICKLES:
            raise ResultsError(_pickled(folder, 1))
        if not folder.is_dir():
            raise ResultsError(f"{folder} is a file. Give the folder of a run, which holds its {TRACE_FILE}.")
        pickles = sorted(path for suffix in PICKLES for path in folder.rglob(f"*{suffix}"))
        if pickles:
            raise ResultsError(_pickled(pickles[0], len(pickles)))
        traces = sorted(folder.rglob(TRACE_FILE))
        if not traces:
            raise ResultsError(
                f"{folder} holds no run: there is no {TRACE_FILE} in it or below. Give the --output-dir of a run."
            )
        found.update({path.parent.resolve(): path.parent for path in traces})
    return list(found.values())


def _pickled(path: Path, count: int) -> str:
    others = f" and {count - 1} more such files" if count > 1 else ""
    return (
        f"{path}{others}: pickles, as the original scripts write them. They are not read: loading a pickle runs whatever "
        "code is in it. Move them out of the folder; to grade their texts, write those to a JSONL file from a program "
        "that you trust and use `speclrm grade`."
    )


def read_run(directory: Path, notice: Callable[[str], None] = lambda _: None) -> RunResults:
    """A run from its trace; its results.jsonl and summary.json are written anew. Raises TraceReadError."""
    fold = Summary()
    config = {}
    for event in read_trace(directory / TRACE_FILE, notice):
        if isinstance(event, RunStarted):
            config = event.config
        fold.add(event)
    summary = fold.summary()
    if not summary.run:
        raise ResultsError(f"{directory / TRACE_FILE} is empty: the run ended before anything was written. Remove it.")
    finished = summary.status != "running"
    if summary.status != "finished":
        state = "did not end by itself" if not finished else f"was {summary.status}"
        notice(f"{directory}: the run {state}; evaluated as far as it came")
    if finished:
        write_reports(directory, summary)
    return RunResults(str(directory), config, summary, summary.status == "finished", tuple(fold.track_rewrites()))


async def evaluate_runs(
    folders: Sequence[Path],
    *,
    dataset: str | None = None,
    model: str | None = None,
    strategies: Collection[str] = (),
    notice: Callable[[str], None] = lambda _: None,
) -> list[Evaluation]:
    """An evaluation for each configuration among the runs in the folders.

    ``dataset``, ``model``, ``strategies``: only runs of these; a model is named by the last part of the target's name,
    in any case of letters.

    Raises:
        ResultsError: there is nothing to evaluate; the message says what there is.
        TraceReadError: a trace is broken.
    """
    runs = [read_run(directory, notice) for directory in find_runs(folders)]
    chosen = [run for run in runs if _wanted(run, dataset, model, strategies)]
    if not chosen:
        there = sorted({_label(run) for run in runs})
        asked = ", ".join(filter(None, [dataset, model, " or ".join(strategies)]))
        raise ResultsError(f"No run of {asked} there. There are: {'; '.join(there)}.")
    async with AsyncExitStack() as stack:
        grader: Grader | None = None

        async def same(one: str, other: str) -> bool:
            nonlocal grader
            verdict = plainly_same(one, other)
            if verdict is not None:
                return verdict
            if grader is None:  # its processes take seconds to start, and most answers are plain
                grader = await stack.enter_async_context(Grader())
            return await grader.same(one, other)

        return [await evaluate(group, same) for group in grouped(chosen)]


def _wanted(run: RunResults, dataset: str | None, model: str | None, strategies: Collection[str]) -> bool:
    config = run.config
    return (
        (dataset is None or str(config.get("dataset")).partition(":")[0] == dataset.partition(":")[0])
        and (model is None or _last_part(str(config.get("target"))) == _last_part(model))
        and (not strategies or config.get("strategy") in strategies)
    )


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _label(run: RunResults) -> str:
    return f"{run.config.get('strategy')} on {run.config.get('dataset')} by {run.config.get('target')}"
