"""Lists the runs of a folder, the broken ones too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from speclrm.app.evaluation import TRACES
from speclrm.app.options import Options
from speclrm.evaluators.intervals import with_intervals
from speclrm.evaluators.metrics import RunSummary, SampleRow, Summary
from speclrm.evaluators.report import RESULTS_FILE, SUMMARY_FILE
from speclrm.runtime.errors import ResultsError, SpecLRMError
from speclrm.runtime.events import RunStarted
from speclrm.runtime.trace.reader import read_trace
from speclrm.runtime.trace.run_directory import RUN_FILE, is_held, read_record
from speclrm.runtime.trace.segments import TRACE_FILE, segments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue


class ListedRun(Options):
    """One run, or what stands for one that cannot be read.

    ``status``: as in its summary; ``running`` where a process holds the folder, ``broken off`` where the run did not end and
    none does, ``broken`` where it cannot be read: then ``error`` says why, and all else is what was found before. ``samples``
    of ``wanted`` have ended. ``interval``: of the accuracy, 95 %, by problem. ``tokens``: generated, by role. ``seconds``: of
    run time.
    """

    directory: Path
    status: str
    error: str | None = None
    started: str = ""
    strategy: str = ""
    target: str = ""
    draft: str | None = None
    dataset: str = ""
    samples: int = 0
    wanted: int | None = None
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    tokens: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0
    reproducibility: str = ""


def list_runs(folder: Path) -> list[ListedRun]:
    """Returns the runs in a folder, at any depth, in the order of their names; whatever is wrong with one is told in its place.

    Raises:
        ResultsError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise ResultsError(f"There is no folder {folder}. Give the --output-dir of a run, or a folder of such.")
    found = [_listed(directory) for directory in sorted(_directories(folder))]
    if not found:
        raise ResultsError(f"{folder} holds no run. Give the --output-dir of a run, or a folder of such.")
    return found


def _directories(folder: Path) -> Iterator[Path]:
    for path, _, files in os.walk(folder):
        if not {RUN_FILE, *TRACES}.isdisjoint(files):
            yield Path(path)


def _listed(directory: Path) -> ListedRun:
    known: dict[str, object] = {"directory": directory}
    try:
        started, config = _beginning(directory)
        known |= {"started": started, **_asked(config)}
        summary, rows = _summary(directory)
        interval = summary.intervals and summary.intervals.accuracy
        status = summary.status
        if status == "running" and not is_held(directory):
            status = "broken off"
        tokens = {role: counts.generated for role, counts in summary.tokens.items()}
        return ListedRun.model_validate(
            {
                **known,
                "status": status,
                "error": summary.error,
                "samples": len(rows),
                "accuracy": summary.accuracy,
                "interval": interval and (interval.low, interval.high),
                "tokens": tokens,
                "seconds": summary.seconds,
            }
        )
    except (SpecLRMError, OSError, ValueError, KeyError, TypeError) as error:
        return ListedRun.model_validate({**known, "status": "broken", "error": str(error).partition("\n")[0]})


def _beginning(directory: Path) -> tuple[str, Mapping[str, JsonValue]]:
    """Returns when the run was started and what it was asked, by its trace, or by its record where it has none."""
    if segments(directory / TRACE_FILE):
        for event in read_trace(directory / TRACE_FILE):
            if isinstance(event, RunStarted):
                return event.started, event.config
    record = read_record(directory)
    return record.started, record.config


def _asked(config: Mapping[str, JsonValue]) -> dict[str, object]:
    problems, repeats = config.get("problems"), config.get("repeats")
    count = problems.get("count") if isinstance(problems, dict) else None
    wanted = count * repeats if isinstance(count, int) and isinstance(repeats, int) else None
    texts = ("strategy", "target", "dataset", "reproducibility")
    draft = config.get("draft")
    return {
        **{name: str(config.get(name) or "") for name in texts},
        "draft": None if draft is None else str(draft),
        "wanted": wanted,
    }


def _summary(directory: Path) -> tuple[RunSummary, tuple[SampleRow, ...]]:
    """Reads the summary from the files of a run's end if its trace has not grown since; else from the trace."""
    traced = max(segment.path.stat().st_mtime_ns for segment in segments(directory / TRACE_FILE))
    try:
        if (directory / SUMMARY_FILE).stat().st_mtime_ns >= traced:
            summary = RunSummary.model_validate_json((directory / SUMMARY_FILE).read_bytes())
            lines = (directory / RESULTS_FILE).read_bytes().splitlines()
            rows = tuple(SampleRow.model_validate_json(line) for line in lines)
            if summary.status != "running" and len(rows) == sum(summary.outcomes.values()):
                # A summary of an older version has no intervals; its samples stand in the other file.
                return with_intervals(summary.model_copy(update={"samples": rows})), rows
    except (OSError, ValueError):
        pass  # missing, or not what this version writes: the trace has all of it
    fold = Summary()
    for event in read_trace(directory / TRACE_FILE):
        fold.add(event)
    summary = with_intervals(fold.summary())
    return summary, summary.samples
