"""What engines say of their memory, read from their log beside the estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.engines.vllm_memory import GIB, reported, tell

if TYPE_CHECKING:
    from pathlib import Path

LOG = """\
2026-11-26 12:00:01,001 41 INFO vllm.v1.worker.gpu_model_runner Model loading took 61.03 GiB memory and 20.1 seconds
2026-11-26 12:00:02,001 42 INFO vllm.v1.worker.gpu_model_runner Model loading took 3.35 GiB memory and 2.000000 seconds
2026-11-26 12:00:03,001 41 INFO vllm.v1.worker.gpu_worker Available KV cache memory: 8.50 GiB
2026-11-26 12:00:04,001 41 INFO vllm.v1.worker.gpu_model_runner Graph capturing finished in 9 secs, took 0.82 GiB
2026-11-26 12:00:04,001 43 INFO vllm.v1.worker.gpu_model_runner Model loading took 61.04 GiB memory and 20.1 seconds
something else that a process printed
"""


def test_each_engine_is_told_by_its_own_processes() -> None:
    assert reported(LOG.splitlines(), {41, 43}) == {"weights": 61.04, "cache": 8.5, "graphs": 0.82}
    assert reported(LOG.splitlines(), {42}) == {"weights": 3.35}


def test_estimate_and_report_stand_side_by_side_in_the_engines_log(tmp_path: Path) -> None:
    path = tmp_path / "engines.log"
    path.write_text("an earlier start\n" + LOG)
    tell("draft", {"weights": 3 * GIB, "graphs": GIB // 2}, path, len("an earlier start\n"), {42})
    last = path.read_text().splitlines()[-1]
    assert last == "speclrm: memory of draft in GiB: estimated weights 3.00, graphs 0.50; reported weights 3.35"
