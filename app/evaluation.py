"""Evaluates runs in folders: finds them, reads their traces, groups those that are comparable."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from speclrm.app.comparable import Facts, other_means, together
from speclrm.app.run_filter import Wanted
from speclrm.app.settings_diff import changed_models, key
from speclrm.evaluators.compare import compared
from speclrm.evaluators.evaluation import Evaluation, RunResults, evaluate, grouped
from speclrm.evaluators.grading import Grader, plainly_same
from speclrm.evaluators.intervals import with_intervals
from speclrm.evaluators.metrics import Summary
from speclrm.evaluators.report import stale_reports, write_reports
from speclrm.runtime.errors import ResultsError, TraceReadError
from speclrm.runtime.events import RunStarted
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

PICKLES = (".pickle", ".pkl")
TRACES = (TRACE_FILE, "trace.0001.jsonl", "trace.0001.jsonl.zst")


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders with a trace, at any depth, each once, in the order of their names.

    Raises:
        ResultsError: a folder is missing, has no run, or has results in the pickle format of the original scripts, which would
            be ignored silently.
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
        # A crash between two segments leaves a closed one alone.
        traces = sorted(path for name in TRACES for path in folder.rglob(name))
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


def read_config(directory: Path) -> dict[str, JsonValue]:
    """Returns a run's configuration, from the beginning of its trace; empty if the trace is. Raises TraceReadError."""
    for event in read_trace(directory / TRACE_FILE):
        if isinstance(event, RunStarted):
            return event.config
    return {}


def read_run(
    directory: Path,
    notice: Callable[[str], None] = lambda _: None,
    *,
    rebuild: bool = False,
    reports: bool = True,
    facts: Facts | None = None,
) -> RunResults:
    """Reads a run from its trace. Raises TraceReadError.

    With ``rebuild``, writes its results.jsonl and summary.json again if they are missing or different; without it, only
    reports that, and without ``reports`` not even that. ``facts``: gets all events, too.
    """
    fold = Summary()
    config: dict[str, JsonValue] = {}
    for event in read_trace(directory / TRACE_FILE, notice):
        if isinstance(event, RunStarted):
            config = config or event.config
        fold.add(event)
        if facts is not None:
            facts.add(event)
    summary = with_intervals(fold.summary())
    if not summary.run:
        raise ResultsError(f"{directory / TRACE_FILE} is empty: the run ended before anything was written. Remove it.")
    finished = summary.status != "running"
    if summary.status != "finished":
        state = "did not end by itself" if not finished else f"was {summary.status}"
        notice(f"{directory}: the run {state}; evaluated as far as it came")
    if reports and (stale := stale_reports(directory, summary)):
        what = "; ".join(stale)
        if not rebuild:
            notice(f"{directory}: {what}; evaluated from the trace. --rebuild writes them anew")
        else:
            try:
                write_reports(directory, summary)
            except ResultsError as error:
                notice(f"{directory}: {what}; {error}")
            else:
                notice(f"{directory}: {what}; written anew from the trace")
    return RunResults(str(directory), config, summary, summary.status == "finished", tuple(fold.track_rewrites()))


async def evaluate_runs(
    folders: Sequence[Path],
    wanted: Wanted | None = None,
    *,
    notice: Callable[[str], None] = lambda _: None,
    rebuild: bool = False,
) -> list[Evaluation]:
    """Returns an evaluation for each configuration among the runs in the folders, compared with the first baseline
    among them. Reports runs that are not ``wanted``.

    ``rebuild``: as in ``read_run``.

    Raises:
        ResultsError: there is nothing to evaluate; the message says what there is.
        TraceReadError: a trace is broken.
    """
    wanted = wanted or Wanted()
    chosen: list[RunResults] = []
    facts: dict[str, Facts] = {}
    others: Counter[str] = Counter()
    for directory in find_runs(folders):
        try:
            config = read_config(directory)
            if config and not wanted.takes(config):
                others[_label(config)] += 1
            else:
                facts[str(directory)] = Facts()
                chosen.append(read_run(directory, notice, rebuild=rebuild, facts=facts[str(directory)]))
        except TraceReadError as error:
            raise TraceReadError(f"{error} Move {directory} away, or name the other runs one by one.") from None
    there = "; ".join(f"{label} ({count})" if count > 1 else label for label, count in sorted(others.items()))
    if not chosen:
        raise ResultsError(
            f"No run of {wanted} there. There are: {there}. Name one of these, or evaluate all with "
            f"`speclrm eval {folders[0]}`."
        )
    if others:
        notice(f"only {wanted} was asked for; left out: {there}")
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

        groups = [
            part
            for group in grouped(chosen, lambda config: key(config, "task", "method"))
            for part in _by_models(group, notice)
        ]
        for group in groups:
            if twice := _repeated(group):
                notice(
                    f"{twice} samples are of the same problem, repeat number and same seed as another run's: they are not "
                    "independent of each other, so pass@k and majority say less than they seem to"
                )
        found = [await evaluate(group, same) for group in groups]
        sides = [together([facts[run.directory] for run in group]) for group in groups]

        def refused(one: int, base: int) -> str | None:
            differing = other_means(sides[base], sides[one])
            return "; ".join(f"{name}: {old} beside {new}" for name, (old, new) in differing.items()) or None

        return compared(found, [key(group[0].config, "task") for group in groups], refused)


def _by_models(group: Sequence[RunResults], notice: Callable[[str], None]) -> list[list[RunResults]]:
    """Splits runs of the same settings where their models are known to be others under the same names."""
    parts: list[list[RunResults]] = []
    for run in group:
        for part in parts:
            if not changed_models(part[0].config, run.config):
                part.append(run)
                break
        else:
            if parts:
                differing = ", ".join(changed_models(parts[0][0].config, run.config))
                notice(
                    f"{run.directory} has the settings of {parts[0][0].directory}, but not its models ({differing}): they are "
                    "evaluated separately"
                )
            parts.append([run])
    return parts


def _repeated(group: Sequence[RunResults]) -> int:
    drawn = Counter(
        (row.problem, row.repeat, str(run.config["seed"]))
        for run in group
        for row in run.summary.samples
        if run.config.get("seed") is not None
    )
    return sum(count - 1 for count in drawn.values())


def _label(config: Mapping[str, JsonValue]) -> str:
    return f"{config.get('strategy')} on {config.get('dataset')} by {config.get('target')}"
