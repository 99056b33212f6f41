"""Ends the engines that their owner left behind: a small process that outlives the owner just long enough for that.

vLLM's engine processes do not notice that the program which started them is gone, and a program ended by SIGKILL can
tell nobody. So the owner starts this file as a process of its own before it starts an engine. It sleeps on a pidfd of
the owner and on a pipe through which the owner names its engines' processes. Once the owner is dead, it sends SIGTERM,
and SIGKILL after ``GRACE_S``, to those processes, to all that carry its mark in their environment, and to all below
them. It leaves other processes of the owner alone. It needs nothing of SpecLRM or of any package: it is run by path,
with ``python -I -S``.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 3.0
"""Seconds between SIGTERM and SIGKILL. Together with a poll they stay within ten seconds."""
POLL_S = 0.5
"""Seconds between two looks for the owner if there is no pidfd: kernels before 5.3 and some sandboxes."""
MARK = "SPECLRM_OWNER"
"""An environment variable of all processes that are to end with the owner. It finds those that are too young to have
been named. vLLM renames the others, which overwrites what /proc shows of their environment."""

_FOLDER = "folder "
MPS_FOLDER = "speclrm-mps-"
LEFT_FOLDERS = (MPS_FOLDER, "pymp-")
"""How the names of folders begin that may be left to the reaper (``leave``); the second is how Python names those for sockets."""

Process = tuple[int, int]
"""A pid with its start time in clock ticks, which together identify a process for good."""


def mark(owner: int) -> str:
    """Returns the value of ``MARK`` for the processes of an owner."""
    return f"{owner}:{_start_time(owner)}"


def start(owner: int) -> subprocess.Popen[bytes]:
    """Starts the reaper for a process, in a session of its own so that Ctrl-C does not reach it."""
    return subprocess.Popen(  # noqa: S603  # our own interpreter on our own file
        [sys.executable, "-I", "-S", __file__, str(owner), str(_start_time(owner))],
        stdin=subprocess.PIPE,
        bufsize=0,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={key: value for key, value in os.environ.items() if key not in (MARK, "LD_PRELOAD")},
    )


def name(watcher: subprocess.Popen[bytes], pids: set[int]) -> None:
    """Tells the reaper the engines' processes. A process or reaper that is gone already is no error."""
    lines = "".join(f"{pid} {_start_time(pid)}\n" for pid in sorted(pids))
    assert watcher.stdin is not None
    with contextlib.suppress(OSError):
        watcher.stdin.write(lines.encode())  # fewer bytes than a pipe takes at once


def leave(watcher: subprocess.Popen[bytes], folder: str) -> None:
    """Tells the reaper a folder to remove at the end, of those whose names begin as ``LEFT_FOLDERS`` do."""
    assert watcher.stdin is not None
    with contextlib.suppress(OSError):
        watcher.stdin.write(f"{_FOLDER}{folder}\n".encode())


def _stat(pid: int) -> list[str]:
    """Returns the fields of /proc/PID/stat from the third on; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else -1


def _alive(process: Process) -> bool:
    fields = _stat(process[0])
    return len(fields) > 19 and int(fields[19]) == process[1] and fields[0] != "Z"


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def descendants(roots: set[int]) -> set[Process]:
    """Returns all processes below the given pids, as they are now."""
    children: dict[int, list[Process]] = {}
    for pid in _pids():
        fields = _stat(pid)
        if len(fields) > 19:
            children.setdefault(int(fields[1]), []).append((pid, int(fields[19])))
    found: set[Process] = set()
    queue = list(roots)
    while queue:
        for process in children.get(queue.pop(), []):
            if process not in found and process[0] != os.getpid():
                found.add(process)
                queue.append(process[0])
    return found


def marked(value: str, among: set[Process] | None = None) -> set[Process]:
    """Returns the processes whose environment carries the mark, of all or among some."""
    wanted = f"{MARK}={value}".encode()
    candidates = {(pid, _start_time(pid)) for pid in _pids()} if among is None else among
    found: set[Process] = set()
    for process in candidates:
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{process[0]}/environ").read_bytes().split(b"\0"):
                found.add(process)
    return found - {(os.getpid(), _start_time(os.getpid()))}


def _signal(processes: set[Process], number: int) -> None:
    for process in processes:
        if _alive(process):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process[0], number)


def sweep(pids: set[int]) -> None:
    """Removes what Intel's OpenMP leaves in shared memory when its process is killed."""
    for pid in pids:
        for leftover in Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pid}_*"):  # noqa: S108  # the library's own place
            with contextlib.suppress(OSError):
                leftover.unlink()


def _named_until_death(owner: int, started: int) -> tuple[set[Process], list[str]]:
    """Waits for the owner's end and returns the processes that it has named by then, and the folders that it leaves."""
    try:
        handle = os.pidfd_open(owner)
    except OSError:
        handle = -1
    poller = select.poll()
    if handle >= 0:
        poller.register(handle, select.POLLIN)
    poller.register(0, select.POLLIN)
    text = b""
    while _start_time(owner) == started and _alive((owner, started)):
        for ready, _ in poller.poll(None if handle >= 0 else POLL_S * 1000):
            piece = os.read(0, 4096) if ready == 0 else b""
            text += piece
            if ready == 0 and not piece:
                poller.unregister(0)
    with contextlib.suppress(OSError):  # processes named in the owner's last moment
        os.set_blocking(0, False)
        while piece := os.read(0, 4096):
            text += piece
    lines = [line.decode(errors="surrogateescape") for line in text.split(b"\n")[:-1]]
    folders = [line.removeprefix(_FOLDER) for line in lines if line.startswith(_FOLDER)]
    named = [line.split() for line in lines if not line.startswith(_FOLDER)]
    return {(int(pid), int(start)) for pid, start in named}, folders


def watch(owner: int, started: int) -> None:
    """Waits for the owner's death, then ends its descendants. ``started`` tells the owner from a later process with the
    same pid: it may be dead before this process looks.
    """
    value = f"{owner}:{started}"
    known, folders = _named_until_death(owner, started)
    known |= marked(value)
    known |= descendants({pid for pid, _ in known})
    _signal(known, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while any(map(_alive, known)) and time.monotonic() < deadline:
        time.sleep(0.1)
    known |= descendants({pid for pid, _ in known if _alive((pid, _))}) | marked(value)
    _signal(known, signal.SIGKILL)
    sweep({pid for pid, _ in known})
    for folder in folders:
        if Path(folder).name.startswith(LEFT_FOLDERS):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]))
