"""A run on real engines whose process is killed goes on in another one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from again import generated, lines_of, read_all
from engines.run_owner import OPTIONS, PROBLEMS
from support import make_strategy, parts

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.events import StepCommitted
from speclrm.runtime.replay.recorded_engine import RecordedEngine
from speclrm.runtime.replay.recorded_run import read_past
from speclrm.runtime.run_parts import Resumption
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from speclrm.runtime.engines.vllm import VllmEngine
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.replay.playback import Playback

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_run_goes_on_without_generating_a_committed_step_twice(
    engine_pair: dict[Role, VllmEngine], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    trace = folder / "trace.jsonl"
    script = Path(__file__).with_name("run_owner.py")
    owner = subprocess.Popen(  # noqa: ASYNC220  # a start takes no time that matters here
        [sys.executable, str(script), str(tiny_models["target"].parent), str(folder)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 180
        while owner.poll() is None and time.monotonic() < deadline:
            if trace.exists() and trace.read_bytes().count(b'"kind":"step_committed"') >= 6:
                break
            await asyncio.sleep(0.01)
        assert owner.poll() is None
        owner.send_signal(signal.SIGKILL)
    finally:
        owner.kill()
        owner.wait()
    before = [event for event in read_trace(trace) if isinstance(event, StepCommitted)]
    assert len(before) >= 6
    chosen = make_strategy("speculative", **OPTIONS)
    async with Runtime(parts(engine_pair)) as runtime:
        past = read_past(folder)
        assert any(past.unfinished())
        resumption = Resumption(past, lambda _: (chosen, 0), lambda: read_trace(trace))
        result = await runtime.run(PROBLEMS, chosen, directory=folder, resumption=resumption)
    assert all(track.finished for sample in result.samples for track in sample.tracks.values())
    events = read_all(folder)
    assert [event for event in events if isinstance(event, StepCommitted)][: len(before)] == before
    assert max(Counter(generated(events)).values()) == 1
    assert len(lines_of(folder)) == len(PROBLEMS)

    def replay() -> Playback:
        silent = {
            role: RecordedEngine(engine.name, engine.tokenizer, engine.max_model_len)
            for role, engine in engine_pair.items()
        }

        async def main() -> Playback:
            async with Runtime(parts(silent)) as again:
                return await again.replay(read_past(folder, whole=True), PROBLEMS, lambda _: (chosen, 0))

        return run_virtual(main())

    playback = await asyncio.to_thread(replay)
    assert [str(one) for one in playback.differences] == []
    assert not playback.stops
