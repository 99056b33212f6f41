"""A real engine that dies, hangs or runs out of memory in the middle of a run is started anew; nothing is lost or left over."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from again import read_all
from engines.run_owner import OPTIONS, PROBLEMS
from support import ExactAnswers, make_strategy

from speclrm.app.trace_check import check
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.restarting import RestartingEngine, restarting
from speclrm.runtime.engines.vllm_nursery import Nursery
from speclrm.runtime.engines.vllm_restart import Starter
from speclrm.runtime.engines.vllm_start import start_engines
from speclrm.runtime.events import EngineFailed, EngineRecovered, StepCommitted, TrackFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.replay.recorded_engine import RecordedEngine
from speclrm.runtime.replay.recorded_run import read_past
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AsyncExitStack
    from pathlib import Path

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.protocols import Strategy
    from speclrm.runtime.replay.playback import Playback
    from speclrm.runtime.settings import EngineSettings

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

LIMIT_S = 10.0


def family(engine: RestartingEngine) -> list[psutil.Process]:
    """An engine's EngineCore and what it has started, workers first."""
    inner: Any = engine.engine
    (core,) = inner.processes
    return [*psutil.Process(core).children(recursive=True), psutil.Process(core)]


def strategy(roles: Collection[Role]) -> Strategy:
    return make_strategy("speculative" if Role.DRAFT in roles else "parallel", **OPTIONS)


async def run_with(
    settings: dict[Role, EngineSettings], folder: Path, log_path: Path, happens: Any, *, stall_s: float = 120.0
) -> tuple[list[psutil.Process], Any]:
    """A run on these engines; ``happens(role -> engine)`` once a few steps are committed. Returns the processes of before."""
    tokenizers = {role: load_tokenizer(one.path) for role, one in settings.items()}
    log_path.touch()
    engines: dict[Role, Engine] = {}

    async def open_components(stack: AsyncExitStack) -> Components:
        nursery = Nursery()
        stack.callback(nursery.end)
        started = await start_engines(settings, tokenizers, log_path=log_path, nursery=nursery)
        starter = Starter(log_path=log_path, notify=lambda _: None, nursery=nursery)
        for role, engine in started.items():
            anew = starter.of(role.value, settings[role], tokenizers[role], (), None)
            engines[role] = restarting(engine, anew, 2)
            stack.push_async_callback(engines[role].aclose)
        return Components(engines, ExactAnswers(), stall_limit_s=stall_s)

    seen: list[psutil.Process] = []
    async with Runtime(open_components) as runtime:
        seen += [process for engine in engines.values() for process in family(engine)]  # type: ignore[arg-type]
        call = asyncio.create_task(runtime.run(PROBLEMS, strategy(settings), directory=folder))
        trace = folder / "trace.jsonl"
        while not (trace.exists() and trace.read_bytes().count(b'"kind":"step_committed"') >= 4):
            assert not call.done()
            await asyncio.sleep(0.01)
        await happens(engines)
        result = await call
        seen += [process for engine in engines.values() for process in family(engine)]  # type: ignore[arg-type]
    return seen, result


def replayed(folder: Path, engines: dict[Role, EngineSettings]) -> Playback:
    silent = {
        role: RecordedEngine(one.name, load_tokenizer(one.path), one.max_model_len) for role, one in engines.items()
    }

    async def open_components(stack: AsyncExitStack) -> Components:
        return Components(silent, ExactAnswers())

    async def main() -> Playback:
        async with Runtime(open_components) as again:
            past = read_past(folder, whole=True)
            return await again.replay(past, PROBLEMS, lambda _: (strategy(engines), 0))

    return run_virtual(main())


@pytest.mark.parametrize(
    ("role", "how"),
    [
        (Role.TARGET, "core"),
        pytest.param(Role.TARGET, "hang", marks=pytest.mark.slow),
        pytest.param(Role.DRAFT, "worker", marks=pytest.mark.slow),
        pytest.param(Role.TARGET, "memory", marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value),
)
async def test_an_engine_that_fails_in_the_middle_of_a_run_is_started_anew(
    role: Role, how: str, tiny_settings: dict[Role, EngineSettings], tmp_path: Path
) -> None:
    """Beside a draft, except in the case that is not slow."""
    settings = {Role.TARGET: tiny_settings[Role.TARGET]} if how == "core" else dict(tiny_settings)
    if how == "worker":
        settings[role] = settings[role].model_copy(update={"extra": {"distributed_executor_backend": "mp"}})
    log_path = tmp_path / "engines.log"
    before: list[psutil.Process] = []

    async def happens(engines: dict[Role, Any]) -> None:
        before.extend(family(engines[role]))
        if how == "hang":
            os.kill(before[-1].pid, signal.SIGSTOP)
            return
        if how == "memory":  # as the process itself writes it before it ends
            with log_path.open("a") as log:
                log.write("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n")
        os.kill(before[0 if how == "worker" else -1].pid, signal.SIGKILL)

    folder = tmp_path / "run"
    seen, result = await run_with(settings, folder, log_path, happens, stall_s=8.0 if how == "hang" else 120.0)
    assert all(track.finished for sample in result.samples for track in sample.tracks.values())
    events = read_all(folder)
    failed = [event for event in events if isinstance(event, EngineFailed)]
    back = [event for event in events if isinstance(event, EngineRecovered)]
    assert [event.role for event in failed] == [event.role for event in back] == [role.value]
    assert failed[0].reason == {"hang": "hung", "memory": "out_of_memory"}.get(how, "died")
    assert 0 < back[0].down_s < 200
    if how == "memory":
        assert back[0].changed["max_num_seqs"] == settings[role].max_num_seqs // 2
    else:
        assert back[0].changed == {}
    reasons = Counter(event.reason for event in events if isinstance(event, TrackFinished))
    assert reasons["error"] == 0
    assert reasons.total() == 2 * 3
    assert any(isinstance(event, StepCommitted) and event.t > back[0].t for event in events)
    assert check(folder).violations == ()
    playback = await asyncio.to_thread(replayed, folder, settings)
    assert [str(one) for one in playback.differences] == []
    _, alive = psutil.wait_procs(seen + before, timeout=LIMIT_S)
    assert not alive
