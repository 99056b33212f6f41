"""The files derived from a trace: written whole or not at all, and rebuilt from the trace at any time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.evaluators.metrics import RunSummary

RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"


def write_reports(directory: Path, summary: RunSummary) -> None:
    """``results.jsonl`` (a line a sample) and ``summary.json`` into a run's folder."""
    for name, text in _texts(summary).items():
        _write(directory / name, text)


def stale_reports(directory: Path, summary: RunSummary) -> list[str]:
    """For each of the two files that is not what the summary says: its name and whether it is missing or stale."""
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
        SUMMARY_FILE: summary.model_dump_json(indent=2, exclude={"samples"}) + "\n",
    }


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)  # a full disk must not leave halves lying about
