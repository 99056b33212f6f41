"""The reaper, with ordinary processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from speclrm.runtime.engines import reaper

OWNER = """
import os, subprocess, sys, time
from speclrm.runtime.engines import reaper
plain = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
os.environ[reaper.MARK] = reaper.mark(os.getpid())
reaper.start(os.getpid())
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(100)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)'])"
other = subprocess.Popen([sys.executable, "-c", nested])
time.sleep({wait})
print(plain.pid, child.pid, other.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("wait_s", [0.0, 1.5], ids=["at once", "after a while"])
def test_descendants_of_a_killed_owner_are_ended_even_if_they_ignore_it(wait_s: float) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER.format(wait=wait_s)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    bystander = psutil.Process(pids[0])  # a process of the owner that is none of the reaper's
    seen = [p for p in psutil.Process(owner.pid).children(recursive=True) if p != bystander]
    assert {p.pid for p in seen} > set(pids[1:])
    owner.kill()
    owner.wait()
    started = time.monotonic()
    _, alive = psutil.wait_procs(seen, timeout=10)
    assert not alive
    assert time.monotonic() - started < 10
    assert bystander.is_running()
    bystander.kill()
    owner.stdout.close()


NAMING = """
import os, subprocess, sys, time
from speclrm.runtime.engines import reaper
watcher = reaper.start(os.getpid()) if not {blind} else subprocess.Popen(
    [sys.executable, "-c", "from speclrm.runtime.engines import reaper; "
     "reaper.os.pidfd_open = lambda pid: (_ for _ in ()).throw(OSError()); "
     f"reaper.watch({{os.getpid()}}, {{reaper.mark(os.getpid()).split(':')[1]}})"], stdin=subprocess.PIPE, bufsize=0)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
reaper.name(watcher, {{child.pid}})
time.sleep(1)
print(watcher.pid, child.pid, flush=True)
time.sleep(100)
"""


def wakes(process: psutil.Process) -> int:
    """Returns how often a process slept. 0 where the kernel does not count it, as in some sandboxes."""
    try:
        return process.num_ctx_switches().voluntary
    except NotImplementedError:
        return 0


@pytest.mark.parametrize("blind", [False, True], ids=["pidfd", "no pidfd"])
def test_processes_that_were_named_are_ended_and_waiting_costs_nothing(blind: bool) -> None:
    owner = subprocess.Popen([sys.executable, "-c", NAMING.format(blind=blind)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    watcher, child = (psutil.Process(int(word)) for word in owner.stdout.readline().split())
    before = wakes(watcher)
    time.sleep(2)
    assert wakes(watcher) - before <= (2 / reaper.POLL_S + 2 if blind else 0)
    assert child.is_running()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _, alive = psutil.wait_procs([watcher, child], timeout=10)
    assert not alive


def test_the_reaper_ends_with_an_owner_that_leaves_nothing() -> None:
    code = "import os; from speclrm.runtime.engines import reaper; print(reaper.start(os.getpid()).pid, flush=True)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)
    assert pid != os.getpid()
