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
    rows = "".join(row.model_dump_json() + "\n" for row in summary.samples)
    _write(directory / RESULTS_FILE, rows)
    _write(directory / SUMMARY_FILE, summary.model_dump_json(indent=2, exclude={"samples"}) + "\n")


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
