"""What holds for every test, and one pair of real engines for the whole suite: they take half a minute to start."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import psutil
import pytest
import pytest_asyncio
import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from speclrm.runtime.engines.vllm import VllmEngine
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.settings import EngineSettings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real engines take longer, and are skipped where they are not installed."""
    for item in items:
        if item.get_closest_marker("engine") or item.get_closest_marker("models"):
            item.add_marker(pytest.mark.timeout(400))
            # torch and vLLM warn of their own affairs while they are imported.
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command that runs in this process sets up logging for the whole of it: no later test may find that."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A target, a draft with the same tokenizer, and a draft with another."""
    from engines.tiny_models import make_model

    folder = tmp_path_factory.mktemp("models")
    return {
        "target": make_model(folder / "target"),
        "draft": make_model(folder / "draft", layers=1, seed=1),
        "other": make_model(folder / "other", layers=1, seed=2, vocabulary=300),
    }


@pytest.fixture(scope="session")
def tiny_settings(tiny_models: dict[str, Path]) -> dict[Role, EngineSettings]:
    from speclrm.runtime.machine.hardware import read_machine
    from speclrm.runtime.machine.sizing import Work, engine_settings, read_facts
    from speclrm.runtime.protocols import Role

    work = Work(tracks=16, prompt_tokens=1024, token_budget=256, max_step_tokens=64, suffix_tokens=128)
    facts = {role: read_facts(f"tiny-{role}", tiny_models[role.value]) for role in Role}
    return engine_settings(read_machine(), facts, work)


@pytest.fixture(scope="session")
def pair_settings(tiny_settings: dict[Role, EngineSettings]) -> dict[Role, EngineSettings]:
    """Each engine on a core of its own, as far as there are two."""
    own = sorted(os.sched_getaffinity(0))
    return {
        role: chosen.model_copy(update={"cores": (own[place % len(own)],)})
        for place, (role, chosen) in enumerate(tiny_settings.items())
    }


@pytest.fixture(scope="session")
def pair_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "engines.log"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine_pair(
    pair_settings: dict[Role, EngineSettings], pair_log: Path
) -> AsyncIterator[dict[Role, VllmEngine]]:
    from speclrm.runtime.engines.vllm_start import start_engines
    from speclrm.runtime.tokens.tokenizer import load_tokenizer

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    engines = await start_engines(
        pair_settings,
        {role: load_tokenizer(settings.path) for role, settings in pair_settings.items()},
        log_path=pair_log,
    )
    pids = {child.pid for child in psutil.Process().children(recursive=True)} - before
    yield engines
    await asyncio.gather(*(engine.aclose() for engine in [*engines.values(), *engines.values()]))
    assert not [name for name in os.listdir("/dev/shm") if any(f"_{pid}_" in name for pid in pids)]
