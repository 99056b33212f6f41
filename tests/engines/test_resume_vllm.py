"""A run on a real engine whose process is killed goes on in another one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from again import generated, lines_of, read_all
from engines.run_owner import OPTIONS, PROBLEMS, sized
from support import make_strategy, parts

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.events import StepCommitted
from speclrm.runtime.protocols import Role
from speclrm.runtime.replay.recorded_engine import RecordedEngine
from speclrm.runtime.replay.recorded_run import read_past
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.tokens.tokenizer import load_tokenizer
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from speclrm.runtime.replay.playback import Playback

pytestmark = pytest.mark.engine


def owner(models: Path, folder: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("run_owner.py")
    return subprocess.Popen([sys.executable, str(script), str(models), str(folder)], stderr=subprocess.DEVNULL)


def test_a_killed_run_goes_on_without_generating_a_committed_step_twice(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    models = tiny_models["target"].parent
    folder = tmp_path / "run"
    trace = folder / "trace.jsonl"
    first = owner(models, folder)
    try:
        deadline = time.monotonic() + 180
        while first.poll() is None and time.monotonic() < deadline:
            if trace.exists() and trace.read_bytes().count(b'"kind":"step_committed"') >= 6:
                break
            time.sleep(0.01)
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    before = [event for event in read_trace(trace) if isinstance(event, StepCommitted)]
    assert len(before) >= 6
    assert any(read_past(folder).unfinished())
    second = owner(models, folder)
    try:
        assert second.wait(timeout=300) == 0
    finally:
        second.kill()
        second.wait()
    events = read_all(folder)
    assert [event for event in events if isinstance(event, StepCommitted)][: len(before)] == before
    assert max(Counter(generated(events)).values()) == 1
    assert len(lines_of(folder)) == len(PROBLEMS)
    past = read_past(folder, whole=True)
    assert not any(past.unfinished())
    settings = sized(models)
    tokenizer = load_tokenizer(settings.path)
    silent = {role: RecordedEngine(settings.name, tokenizer, settings.max_model_len) for role in Role}

    async def replay() -> Playback:
        async with Runtime(parts(silent)) as again:
            return await again.replay(past, PROBLEMS, lambda _: (make_strategy("speculative", **OPTIONS), 0))

    playback = run_virtual(replay())
    assert [str(one) for one in playback.differences] == []
    assert not playback.stops
