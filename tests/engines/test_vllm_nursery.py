"""The process that engines on a CPU are forked from: which of them are its copies, and what is left when it ends or is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest
from engines.asking import collect, request

from speclrm.runtime.engines.vllm_nursery import Nursery
from speclrm.runtime.engines.vllm_processes import engine_cores
from speclrm.runtime.engines.vllm_start import start_engines
from speclrm.runtime.errors import EngineDeadError
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.engines.vllm import VllmEngine
    from speclrm.runtime.settings import EngineSettings

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


async def test_engines_are_copies_of_one_nursery_with_their_own_environment_and_die_with_it(
    tiny_settings: dict[Role, EngineSettings], tmp_path: Path
) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    others = engine_cores()
    nursery = Nursery()

    async def start(role: Role, log: str) -> VllmEngine:
        settings = tiny_settings[role]
        started = await start_engines(
            {role: settings}, {role: load_tokenizer(settings.path)}, log_path=tmp_path / log, nursery=nursery
        )
        return started[role]

    try:
        target = await start(Role.TARGET, "first.log")
        draft = await start(Role.DRAFT, "second.log")
        (pid,) = {one.ppid() for one in engine_cores() - others}
        assert pid != os.getpid()  # a spawned one is our child
        for name, role in (("first.log", Role.TARGET), ("second.log", Role.DRAFT)):
            log = (tmp_path / name).read_text()
            assert f"ids from {load_tokenizer(tiny_settings[role].path).vocabulary.size} on are never sampled" in log
            assert str(tiny_settings[role].path) in log
        answers = await asyncio.gather(*(collect(engine, request(engine)) for engine in (target, draft)))
        assert all(deltas[-1].finish is not None for deltas in answers)
        for one in engine_cores() - others:
            one.suspend()  # a tiny model could finish its reply before it is killed
        waits = asyncio.ensure_future(collect(target, request(target)))
        await asyncio.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            await waits
        await asyncio.gather(target.aclose(), draft.aclose())
        again = await start(Role.TARGET, "third.log")  # a nursery that was killed is made anew
        assert {one.ppid() for one in engine_cores() - others}.isdisjoint({pid, os.getpid()})
        assert (await collect(again, request(again)))[-1].finish is not None
        await again.aclose()
    finally:
        nursery.end()
    left = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
    assert not [one for one in left if one.status() != "zombie" and "resource_tracker" not in " ".join(one.cmdline())]
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(f"__KMP_REGISTERED_LIB_{pid}_")]


async def test_an_engine_with_other_cores_is_spawned(engine_pair: dict[Role, VllmEngine]) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: both engines have the same")
    parents = {role: {psutil.Process(pid).ppid() for pid in engine.processes} for role, engine in engine_pair.items()}
    own = [role for role, pids in parents.items() if pids == {os.getpid()}]
    assert len(own) == 1
