"""The process that engines are forked from, with nothing loaded: what a copy has, and that none is left."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from speclrm.runtime.engines import vllm_nursery
from speclrm.runtime.engines.vllm_nursery import EngineProcess, Nursery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Nursery]:
    logging = tmp_path / "logging.json"
    logging.write_text(json.dumps({"version": 1}))
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(logging))
    monkeypatch.setattr(vllm_nursery, "PRELOAD", "json")
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.end()


def server_of(nursery: Any) -> Any:
    return nursery._server


def pid_of(nursery: Nursery) -> int:
    return server_of(nursery)._forkserver_pid


def tell() -> None:
    sys.stderr.write(f"{os.environ.get('A_COPYS_OWN')} {os.environ['OMP_NUM_THREADS']} {os.getppid()}\n")


def child(nursery: Nursery, log: Path, target: Any, *arguments: Any) -> EngineProcess:
    process = EngineProcess(server_of(nursery), log, target=target, args=arguments)
    process.start()
    return process


def test_a_copy_has_the_environment_of_its_start_and_a_log_of_its_own(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert nursery.begin({"OMP_NUM_THREADS": "3"})
    assert not nursery.begin({"OMP_NUM_THREADS": "3"})  # it runs
    for name in ("one", "two"):
        monkeypatch.setenv("A_COPYS_OWN", name)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        copy = child(nursery, tmp_path / name, tell)
        copy.join(20)
        assert copy.exitcode == 0
        assert (tmp_path / name).read_text() == f"{name} 3 {pid_of(nursery)}\n"


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_no_copy_outlives_its_nursery(nursery: Nursery, tmp_path: Path, how: str) -> None:
    nursery.begin({})
    before = pid_of(nursery)
    copy = child(nursery, tmp_path / "log", time.sleep, 600)
    assert copy.pid is not None
    process = psutil.Process(copy.pid)
    assert process.ppid() == before
    if how == "ended":
        nursery.end()
        assert not process.is_running()
    else:
        os.kill(before, signal.SIGKILL)
        process.wait(20)
        assert nursery.begin({})
        assert pid_of(nursery) != before
    assert copy.exitcode is not None


def test_a_copy_whose_nursery_is_gone_before_it_could_ask_for_its_end_ends_itself(
    nursery: Nursery, tmp_path: Path
) -> None:
    nursery.begin({})

    class Another:
        """The same server, as one that was killed at that moment."""

        _forkserver_pid = 1
        connect_to_new_process = server_of(nursery).connect_to_new_process

    process = EngineProcess(Another(), tmp_path / "log", target=time.sleep, args=(600,))
    process.start()
    process.join(20)
    assert process.exitcode == 1


def test_a_start_that_was_given_up_is_not_begun_anew_by_its_thread(nursery: Nursery, tmp_path: Path) -> None:
    nursery.begin({})
    late = EngineProcess(server_of(nursery), tmp_path / "log", target=time.sleep, args=(600,))
    before = {process.pid for process in psutil.Process().children()} - {pid_of(nursery)}
    nursery.end()
    with pytest.raises((OSError, TypeError)):
        late.start()
    assert {process.pid for process in psutil.Process().children()} <= before
