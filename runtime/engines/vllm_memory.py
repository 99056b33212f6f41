"""Logs what vLLM's processes say that they take of the memory, beside what was estimated before they were started."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

GIB = 1 << 30
_LINE = re.compile(r"\S+ \S+ (?P<process>\d+) INFO \S+ (?P<text>.*)")
"""As ``vllm_processes.common_values`` has them written."""
_REPORTS = {
    "weights": re.compile(r"Model loading took ([\d.]+) GiB"),
    "graphs": re.compile(r"Graph capturing finished in .*, took ([\d.]+) GiB"),
    "cache": re.compile(r"Available KV cache memory: ([\d.]+) GiB"),
}
"""vLLM 0.32: v1/worker/gpu_model_runner.py, gpu_worker.py."""


def reported(lines: Iterable[str], processes: Collection[int]) -> dict[str, float]:
    """Returns GiB by what for, as these processes logged them: the most that one of them said."""
    found: dict[str, float] = {}
    for line in lines:
        parts = _LINE.match(line)
        if parts is None or int(parts["process"]) not in processes:
            continue
        for name, pattern in _REPORTS.items():
            if said := pattern.search(parts["text"]):
                found[name] = max(found.get(name, 0.0), float(said[1]))
    return found


def tell(name: str, estimate: Mapping[str, int], log_path: Path, offset: int, processes: Collection[int]) -> None:
    """Writes the estimate of an engine beside what its processes logged since ``offset`` (bytes), into their log."""
    said = reported(log_path.read_bytes()[offset:].decode(errors="replace").splitlines(), processes)
    expected = {part: round(size / GIB, 2) for part, size in estimate.items()}
    with log_path.open("a", encoding="utf-8") as file:
        file.write(f"speclrm: memory of {name} in GiB: estimated {_told(expected)}; reported {_told(said)}\n")


def _told(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size:.2f}" for name, size in parts.items()) or "nothing"
