"""Starts of real vLLM engines: those that fail, that are given up, and what an engine leaves when it ends."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import TYPE_CHECKING

import psutil
import pytest
from engines.asking import collect, multiprocessing_executable, request

from speclrm.runtime.engines.vllm_start import start_engines
from speclrm.runtime.errors import EngineError
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.settings import EngineSettings

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


async def test_a_model_that_cannot_be_loaded_is_one_paragraph_and_leaves_no_process(
    tiny_settings: dict[Role, EngineSettings], tmp_path: Path
) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    broken = tmp_path / "broken"
    broken.mkdir()
    settings = tiny_settings[Role.TARGET]
    for file in settings.path.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (tmp_path / "engines.log").write_text("ValueError: of an earlier start\n")
    with pytest.raises(EngineError, match="did not start") as caught:
        await start_engines(
            {Role.TARGET: settings.model_copy(update={"path": broken, "name": "broken"})},
            {Role.TARGET: load_tokenizer(settings.path)},
            log_path=tmp_path / "engines.log",
        )
    assert "\n" not in str(caught.value)
    assert "earlier" not in str(caught.value)
    await asyncio.sleep(1)
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if "resource_tracker" not in " ".join(p.cmdline())]


@pytest.mark.parametrize("moment", ["configuring the second", "before the process is there", "loading"])
async def test_a_start_that_is_given_up_leaves_nothing_whatever_the_moment(
    moment: str, tiny_settings: dict[Role, EngineSettings], tmp_path: Path
) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    loading: list[str] = []
    start = asyncio.create_task(
        start_engines(
            tiny_settings,
            {role: load_tokenizer(settings.path) for role, settings in tiny_settings.items()},
            log_path=tmp_path / "engines.log",
            notify=loading.append,
        )
    )
    while len(loading) < (1 if moment.startswith("before") else 2):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if moment.startswith("before"):
        # The thread that spawns is under way and has nothing to show yet.
        while not _construction_runs():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    elif moment == "loading":
        await asyncio.sleep(0.3)  # copies of what has loaded vLLM already are soon there
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(start, 40)
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if p.status() != "zombie" and "resource_tracker" not in " ".join(p.cmdline())]
    assert not _construction_runs()
    assert multiprocessing_executable() == sys.executable


def _construction_runs() -> bool:
    """Whether some thread is in the blocking part of an engine's start."""
    stacks = map(traceback.extract_stack, sys._current_frames().values())  # pyright: ignore[reportPrivateUsage]
    return any(frame.name == "_construct" for stack in stacks for frame in stack)


async def test_a_padded_model_never_writes_ids_that_its_tokenizer_does_not_have_and_its_engine_leaves_nothing(
    tiny_models: dict[str, Path], tiny_settings: dict[Role, EngineSettings], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_models["other"])
    assert tokenizer.vocabulary.size < 320  # rows of the model: without a mask one id in sixteen would be none
    settings = {Role.TARGET: tiny_settings[Role.TARGET].model_copy(update={"path": tiny_models["other"]})}
    log_path = tmp_path / "engines.log"
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    engines = await start_engines(settings, {Role.TARGET: tokenizer}, log_path=log_path)
    engine = engines[Role.TARGET]
    pids = {p.pid for p in psutil.Process().children(recursive=True)} - before
    try:
        wild = [
            request(engine, f"r{n}", max_tokens=100, temperature=2.0, top_p=top_p, seed=n)
            for n in range(6)
            for top_p in (1.0, 0.95)
        ]
        answers = await asyncio.gather(*(collect(engine, one) for one in wild))
        ids = [token for deltas in answers for delta in deltas for token in delta.ids]
        assert len(ids) > 100
        assert max(ids) < tokenizer.vocabulary.size
        assert f"ids from {tokenizer.vocabulary.size} on are never sampled" in log_path.read_text()
    finally:
        await asyncio.gather(engine.aclose(), engine.aclose())
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    # Python's own tracker of shared memory serves this program to its end.
    assert not [one for one in left if one.status() != "zombie" and "resource_tracker" not in " ".join(one.cmdline())]
    assert not [name for name in os.listdir("/dev/shm") if any(f"_{pid}_" in name for pid in pids)]
