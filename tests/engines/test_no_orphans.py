"""Whatever ends the program that owns engines, all of its processes are gone within ten seconds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

LIMIT_S = 10.0


def tree(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def engine_is_there(processes: set[psutil.Process]) -> bool:
    """Whether the nursery has a copy. What loads vLLM asks other programs about the machine, too."""
    found = 0
    for process in processes:
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            found += "forkserver" in words or "EngineCore" in words
    return found > 1


@pytest.mark.engine
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("running", signal.SIGKILL),
        ("running", signal.SIGTERM),
        ("loading", signal.SIGKILL),
        ("loading", signal.SIGINT),
        ("unseen", signal.SIGKILL),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_no_process_outlives_its_owner(stage: str, number: signal.Signals, tiny_models: dict[str, Path]) -> None:
    script = Path(__file__).with_name("owner.py")
    owner = subprocess.Popen(
        [sys.executable, str(script), str(tiny_models["target"]), stage],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    seen: set[psutil.Process] = set()
    try:
        for line in owner.stdout:
            if line.strip() == ("running" if stage == "running" else "loading"):
                break
        seen = tree(owner.pid)
        deadline = time.monotonic() + 60
        # While loading: as soon as the engine's process is there, when it does not yet listen to anything.
        while stage != "running" and not engine_is_there(seen) and time.monotonic() < deadline:
            time.sleep(0.2)
            seen |= tree(owner.pid)
        assert engine_is_there(seen)
        owner.send_signal(number)
        gone, alive = psutil.wait_procs(seen, timeout=LIMIT_S)
        assert not alive, [process.cmdline() for process in alive]
        assert gone
        owner.wait(timeout=LIMIT_S)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
        for process in seen:
            if process.is_running():
                process.kill()
