"""The HTTP engine on vLLM's own server with a tiny random model: what it can do, and that its numbers agree with each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from engines.servers import vllm_server

from speclrm.runtime.engine import Delta, Request
from speclrm.runtime.engines.http.client import Client
from speclrm.runtime.engines.http.probing import Server, probe
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from engines.servers import VllmServer

    from speclrm.runtime.engines.http.engine import HttpEngine

pytestmark = pytest.mark.engine

PROMPT = "Solve the problem step by step. " * 8


@pytest.fixture(scope="module")
def server(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with vllm_server(tiny_models["target"], tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@asynccontextmanager
async def probed(server: VllmServer, folder: Path) -> AsyncGenerator[HttpEngine]:
    client = Client(server.url)
    try:
        yield await probe(Server("http/served", "target", load_tokenizer(folder)), client)
    finally:
        await client.aclose()


async def collect(engine: HttpEngine, asked: Request) -> list[Delta]:
    return [delta async for delta in engine.stream(asked)]


async def test_a_vllm_server_can_do_all_that_the_engine_in_this_process_can(
    server: VllmServer, tiny_models: dict[str, Path]
) -> None:
    async with probed(server, tiny_models["target"]) as engine:
        able = engine.capabilities
        assert (able.server, able.ids, able.scores, able.stops) == ("vllm", True, "exact", True)
        assert able.sampled_logprobs
        assert able.likelihood
        assert able.priority
        assert able.seeds
        assert able.max_model_len == 1536
        assert able.kv_tokens
        assert able.version


async def test_a_stop_id_ends_the_output_and_belongs_to_it(server: VllmServer, tiny_models: dict[str, Path]) -> None:
    async with probed(server, tiny_models["target"]) as engine:
        ids = engine.tokenizer.encode(PROMPT)
        free = [t for d in await collect(engine, Request("a", ids, 20, 1.0, seed=3)) for t in d.ids]
        cut = await collect(engine, Request("a", ids, 20, 1.0, seed=3, stop_ids=(free[5],)))
        got = [t for d in cut for t in d.ids]
    assert cut[-1].finish == "stop"
    assert got == free[: free.index(free[5]) + 1]


async def test_the_models_own_end_is_an_end_and_no_text(server: VllmServer, tiny_models: dict[str, Path]) -> None:
    async with probed(server, tiny_models["target"]) as engine:
        end = min(engine.tokenizer.vocabulary.end_ids)
        deltas = await collect(engine, Request("a", engine.tokenizer.encode(PROMPT), 8, allowed_ids=(end,)))
    assert [(delta.ids, delta.finish) for delta in deltas] == [((), "end")]


async def test_all_ten_digits_come_with_their_probability(server: VllmServer, tiny_models: dict[str, Path]) -> None:
    async with probed(server, tiny_models["target"]) as engine:
        digits = tuple(engine.tokenizer.encode(str(digit))[0] for digit in range(10))
        asked = Request("a", engine.tokenizer.encode(PROMPT), 1, allowed_ids=digits, logprob_ids=digits)
        (delta,) = await collect(engine, asked)
    assert delta.logprobs is not None
    assert set(delta.logprobs) == {*digits}
    assert all(-20 < value < 0 for value in delta.logprobs.values())
    assert set(delta.ids) <= {*digits}
    assert max(digits, key=delta.logprobs.__getitem__) == delta.ids[0]


async def test_what_was_written_has_the_likelihood_that_it_was_written_with(
    server: VllmServer, tiny_models: dict[str, Path]
) -> None:
    async with probed(server, tiny_models["target"]) as engine:
        ids = engine.tokenizer.encode(PROMPT)
        written = await collect(engine, Request("a", ids, 12, sampled_logprobs=True))
        new = [token for delta in written for token in delta.ids]
        (read,) = await collect(engine, Request("b", [*ids, *new], 1, likelihood_from=len(ids)))
    assert read.prompt_logprobs == pytest.approx(
        [value for delta in written for value in delta.sampled_logprobs], abs=1e-3
    )


async def test_leaving_early_frees_the_server_for_others(server: VllmServer, tiny_models: dict[str, Path]) -> None:
    async with probed(server, tiny_models["target"]) as engine:
        ids = engine.tokenizer.encode(PROMPT)
        for number in range(40):  # more than it runs at once
            stream = engine.stream(Request(f"a{number}", ids, 1000, 1.0, seed=number))
            await anext(stream)
            await stream.aclose()
        assert (await collect(engine, Request("b", ids, 4)))[-1].finish is not None
        assert "vllm:num_requests_running" in await engine.client.text("/metrics")


@pytest.mark.parametrize("draft", ["server", "here"])
def test_a_run_with_its_target_on_a_server(
    server: VllmServer, tiny_models: dict[str, Path], tmp_path: Path, draft: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "a", "problem": "2+2?", "answer": "4"}\n')
    target = ("--target", f"http/served@{server.url}", "--target-tokenizer", str(tiny_models["target"]))
    drafts = {
        "server": ("--draft", f"http/served@{server.url}", "--draft-tokenizer", str(tiny_models["target"])),
        "here": ("--draft", str(tiny_models["draft"])),
    }[draft]
    limits = ("--token-budget", "96", "--max-step-tokens", "24", "--tracks", "2", "--speculate", "always")
    environment = {**os.environ, "SPECLRM_CACHE_DIR": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def speclrm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "speclrm.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    done = speclrm("run", "speculative", "--dataset", "p.jsonl", *target, *drafts, *limits, "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert config["servers"]["target"][0]["scores"] == "exact"
    assert ("engines" in config) == (draft == "here")
    for command in (("trace", "check", "out"), ("replay", "out")):
        again = speclrm(*command)
        assert again.returncode == 0, again.stdout + again.stderr
