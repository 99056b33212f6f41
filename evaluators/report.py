"""Writes the files derived from a trace: whole or not at all; they can be rebuilt from the trace at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.evaluators.intervals import with_intervals
from speclrm.runtime.errors import ResultsError
from speclrm.runtime.files import reason, remedy, write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.evaluators.metrics import RunSummary

RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"


def write_reports(directory: Path, summary: RunSummary) -> None:
    """Writes ``results.jsonl`` (a line a sample) and ``summary.json`` into a run's folder. Raises ResultsError."""
    for name, text in _texts(summary).items():
        try:
            write_whole(directory / name, text)
        except OSError as error:
            raise ResultsError(
                f"{directory / name} cannot be written: {reason(error)}. All of the run is in its trace. {remedy(error)}, "
                f"then `speclrm eval --rebuild {directory}` writes it from there."
            ) from error


def stale_reports(directory: Path, summary: RunSummary) -> list[str]:
    """Returns, for each of the two files that differs from the summary, its name and whether it is missing or stale."""
    found: list[str] = []
    for name, text in _texts(summary).items():
        try:
            held = (directory / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except (OSError, UnicodeDecodeError):
            found.append(f"{name} cannot be read")
        else:
            if held != text:
                found.append(f"{name} is not what the trace says")
    return found


def _texts(summary: RunSummary) -> dict[str, str]:
    return {
        RESULTS_FILE: "".join(row.model_dump_json() + "\n" for row in summary.samples),
        SUMMARY_FILE: with_intervals(summary).model_dump_json(indent=2, exclude={"samples"}) + "\n",
    }
