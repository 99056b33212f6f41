"""Tells from what they leave why vLLM's processes ended: whether memory ran out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from speclrm.runtime.errors import FailureReason

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|MemoryError\b|can't allocate memory|[Cc]annot allocate memory|std::bad_alloc"
    r"|No available memory for the cache blocks|less than desired GPU memory utilization"
)
"""What torch on CUDA and on a CPU, Python, the C library and vLLM (v1/core/kv_cache_utils.py, v1/worker/utils.py) say."""

_PID = re.compile(r"\bpid=(\d+)")
"""With which vLLM begins the lines of its processes (logger.py, utils/system_utils.py)."""

TAIL_BYTES = 1 << 18
"""What is read of the end of a log: a traceback of each process is a few thousand bytes."""

_CGROUP = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")


def memory_kills() -> int:
    """Returns how many processes the kernel has killed so far, in our cgroup or on this machine, since memory ran out."""
    paths = [_VMSTAT]
    try:
        group = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        paths.insert(0, _CGROUP / group.removeprefix("0::").lstrip("/") / "memory.events")
    except (OSError, StopIteration):
        pass
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return int(value)
    return 0


def says_out_of_memory(text: str, processes: Collection[int] = ()) -> bool:
    """Returns whether a log says so. ``processes``: whose lines count; lines that name none count as well."""
    for line in text.splitlines():
        named = _PID.search(line)
        if processes and named is not None and int(named[1]) not in processes:
            continue
        if OUT_OF_MEMORY.search(line):
            return True
    return False


def reason_of_death(log_path: Path, offset: int, processes: Collection[int], kills_before: int) -> FailureReason:
    """Returns ``out_of_memory`` or ``died``.

    ``offset``: where the log of this life begins, in bytes. ``kills_before``: ``memory_kills`` at its beginning.
    """
    if memory_kills() > kills_before:
        return "out_of_memory"
    return "out_of_memory" if says_out_of_memory(tail(log_path, offset), processes) else "died"


def tail(path: Path, offset: int) -> str:
    """Returns the end of a log behind an offset; nothing if it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(max(offset, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""
