"""The target's layers over two processes: by vLLM's own executor, and on a local Ray cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed; make test-services does it."
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "executor",
    [
        pytest.param("mp", marks=[pytest.mark.engine]),
        pytest.param("ray", marks=[pytest.mark.services, RAY]),
    ],
)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="Each process takes a core of its own.")
def test_a_target_in_two_processes(tiny_models: dict[str, Path], tmp_path: Path, executor: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "a", "problem": "2+2?", "answer": "4"}\n')
    environment = {
        **os.environ,
        "SPECLRM_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",
    }

    def speclrm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "speclrm.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
        )

    done = speclrm(
        *("run", "parallel", "--dataset", "p.jsonl", "--target", str(tiny_models["target"]), "--tracks", "2"),
        *("--target-tensor-parallel-size", "2", "--target-arg", f"distributed_executor_backend={executor}"),
        *("--token-budget", "48", "--max-step-tokens", "24", "--output-dir", "out", "--engine-log", "engines.log"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "run.json").read_text())["config"]["engines"]["target"]
    assert told["tensor_parallel_size"] == 2
    assert "tp_size=2" in (log := (tmp_path / "engines.log").read_text()) or "world_size=2" in log
    for command in (("trace", "check", "out"), ("replay", "out")):
        again = speclrm(*command)
        assert again.returncode == 0, again.stdout + again.stderr
