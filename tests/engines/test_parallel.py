"""The target's layers over two processes, by vLLM's own executor; what vLLM says of Ray."""

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


ON_RAY = """
import ray, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.executor.ray_utils import initialize_ray_cluster

ray.init(num_cpus=2, include_dashboard=False)
told = EngineArgs(sys.argv[1], tensor_parallel_size=2, distributed_executor_backend="ray", max_model_len=512)
initialize_ray_cluster(told.create_engine_config().parallel_config)
"""


@pytest.mark.services
@pytest.mark.timeout(300)
def test_vllm_on_a_cpu_does_not_run_on_ray(tiny_models: dict[str, Path]) -> None:
    """Once it does, the refusal in vllm_arguments is to go."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; make test-services does it.")
    command = [sys.executable, "-c", ON_RAY, str(tiny_models["target"])]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert "current platform cpu does not support ray" in done.stderr


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="Each process takes a core of its own.")
def test_a_target_in_two_processes(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "a", "problem": "2+2?", "answer": "4"}\n')
    environment = {
        **os.environ,
        "SPECLRM_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }

    def speclrm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "speclrm.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
        )

    done = speclrm(
        *("run", "parallel", "--dataset", "p.jsonl", "--target", str(tiny_models["target"]), "--tracks", "2"),
        *("--target-tensor-parallel-size", "2"),
        *("--token-budget", "48", "--max-step-tokens", "24", "--output-dir", "out", "--engine-log", "engines.log"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "run.json").read_text())["config"]["engines"]["target"]
    assert told["arguments"]["tensor_parallel_size"] == 2
    assert "tp_size=2" in (log := (tmp_path / "engines.log").read_text()) or "world_size=2" in log
    for command in (("trace", "check", "out"), ("replay", "out")):
        again = speclrm(*command)
        assert again.returncode == 0, again.stdout + again.stderr
