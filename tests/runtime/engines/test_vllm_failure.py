"""Why an engine's processes ended, from what they leave."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from engines.tiny_models import make_tokenizer

from speclrm.app.engines import RealEngines
from speclrm.app.options import EngineOptions
from speclrm.app.progress import quiet
from speclrm.runtime.engines import vllm_failure, vllm_start
from speclrm.runtime.engines.restarting import RestartingEngine
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.engines.vllm_failure import memory_kills, reason_of_death, says_out_of_memory
from speclrm.runtime.engines.vllm_processes import start_error
from speclrm.runtime.errors import EngineError
from speclrm.runtime.protocols import Role
from speclrm.runtime.settings import EngineSettings
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("(EngineCore pid=7) RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", True),
        ("(EngineCore pid=9) MemoryError", False),  # another engine's, in the same file
        ("ValueError: No available memory for the cache blocks.", True),
        ("(EngineCore pid=7) RuntimeError: a shape does not fit", False),
        ("", False),
    ],
)
def test_a_log_says_whether_memory_ran_out(text: str, yes: bool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = "torch.OutOfMemoryError: of an earlier life\n"
    log.write_text(before + text)
    assert says_out_of_memory(text, {7, 8}) is yes
    assert reason_of_death(log, len(before), {7, 8}, memory_kills()) == ("out_of_memory" if yes else "died")
    assert start_error(EngineError("x"), log, len(before)).reason == (
        "out_of_memory" if says_out_of_memory(text) else "died"
    )


def test_a_program_that_starts_engines_again_when_it_is_imported_is_told_what_to_do(tmp_path: Path) -> None:
    program = tmp_path / "unguarded.py"
    program.write_text("import multiprocessing\nmultiprocessing.get_context('spawn').Process(target=print).start()\n")
    said = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False).stderr
    log = tmp_path / "log"
    log.write_text(said)
    assert 'under `if __name__ == "__main__":`' in str(start_error(EngineError("x"), log, 0))
    raised = said.partition("RuntimeError: ")[2]
    log.write_text("")
    assert 'under `if __name__ == "__main__":`' in str(start_error(RuntimeError(raised), log, 0))
    assert "__main__" not in str(start_error(RuntimeError("something else"), log, 0))


def test_the_kernel_says_whether_it_killed_a_process_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = tmp_path / "vmstat"
    counts.write_text("nr_free_pages 12\noom_kill 3\n")
    monkeypatch.setattr(vllm_failure, "_VMSTAT", counts)
    monkeypatch.setattr(vllm_failure, "_CGROUP", tmp_path / "none")
    assert memory_kills() == 3
    assert reason_of_death(tmp_path / "no log", 0, (), 3) == "died"
    assert reason_of_death(tmp_path / "no log", 0, (), 2) == "out_of_memory"


@pytest.mark.parametrize("restarts", [0, 2])
async def test_replicas_are_started_with_names_of_their_own_and_started_anew_one_by_one(
    restarts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer(tmp_path, size=320)
    calls: list[dict[str, EngineSettings]] = []

    class Engine(ScriptedEngine):
        processes: frozenset[int] = frozenset()
        remains: frozenset[int] = frozenset()
        known_costs = None

    async def start_engines(settings: Any, tokenizers: Any, **given: Any) -> dict[str, Engine]:
        assert settings.keys() == tokenizers.keys() == given["warm_up"].keys()
        calls.append(dict(settings))
        return {label: Engine(by_step(["x"]), name=one.name) for label, one in settings.items()}

    monkeypatch.setattr(vllm_start, "start_engines", start_engines)
    monkeypatch.setattr("speclrm.runtime.engines.vllm_restart.start_engines", start_engines)
    options = EngineOptions(
        target="t", draft="d", target_replicas=2, engine_restarts=restarts, engine_log=tmp_path / "log"
    )
    engines: Any = RealEngines(options)
    one = EngineSettings(
        name="t",
        path=tmp_path,
        device="cpu",
        dtype="float32",
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        block_size=32,
        replicas=2,
    )
    engines._settings = {Role.TARGET: one, Role.DRAFT: one.model_copy(update={"name": "d", "replicas": 1})}
    engines._tokenizers = dict.fromkeys(Role, load_tokenizer(tmp_path))

    async with AsyncExitStack() as stack:
        found: Any = await engines._start(stack, quiet)
        assert [engine.name for engine in found[Role.TARGET]] == ["t", "t#2"]
        assert list(calls[0]) == ["target", "target 2", "draft"]
        second = found[Role.TARGET][1]
        assert isinstance(second, RestartingEngine) is bool(restarts)
        if restarts:
            assert await second.restart("hung") == {}
            assert await second.restart("out_of_memory") == {"max_num_seqs": 4}
            assert [list(call) for call in calls[1:]] == [["target 2"], ["target 2"]]
            assert (calls[2]["target 2"].name, calls[2]["target 2"].max_num_seqs) == ("t#2", 4)
            second.engine.remains = {1234}
            with pytest.raises(EngineError, match="1234"):
                await second.restart("died")
