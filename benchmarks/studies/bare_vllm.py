"""Compares ``run parallel`` with vLLM's own ``LLM.generate`` on the same prompts: 32 streams, top-p 0.95, in turns.

    python benchmarks/studies/bare_vllm.py [--target NAME] [--tokens 96] [--turns 2]

Each turn is a process of its own: one with vLLM as it is installed and its own defaults, one with this runtime. Both have the
same data type: vLLM's own choice, bfloat16, is many times slower on a processor without it. Both run once to warm up and once to
measure, and print generated tokens a second. Turns alternate, so that a machine which grows slower spoils no comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from speclrm import api
from speclrm.evaluators.datasets import load
from speclrm.runtime.engines.vllm_plugin import ASKED
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.models.store import find_local
from speclrm.runtime.tokens.prompts import open_prompt
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.settings import EngineDtype
    from speclrm.strategies.family import Family

DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"
PROBLEMS, TRACKS = 4, 8
LENGTH = 1536
"""Tokens of context in both."""


def work(tokens: int) -> tuple[list[Problem], Family]:
    return load(DATASET, limit=PROBLEMS), api.strategy("parallel", tracks=TRACKS, token_budget=tokens, closing=False)


def data_type() -> EngineDtype:
    return "bfloat16" if read_machine().fast_bfloat16 else "float32"


async def ours(target: str, tokens: int) -> float:
    """Returns the tokens a second of this runtime."""
    problems, strategy = work(tokens)
    rate = 0.0
    async with api.Runtime(target=target, token_budget=512, max_step_tokens=128, dtype=data_type()) as runtime:
        for _ in range(2):
            began = time.perf_counter()
            states = await asyncio.gather(*(runtime.solve(problem, strategy) for problem in problems))
            seconds = time.perf_counter() - began
            rate = sum(track.tokens for state in states for track in state.tracks.values()) / seconds
    return rate


def bare(target: str, tokens: int) -> float:
    """Returns the tokens a second of vLLM alone."""
    from vllm import LLM, SamplingParams

    folder = find_local(target)
    if folder is None:
        raise SystemExit(f"{target} is not on this machine. Get it with `speclrm models pull {target}`.")
    tokenizer = load_tokenizer(folder)
    problems, strategy = work(tokens)
    prompts: list[Any] = [
        {"prompt_token_ids": list(open_prompt(tokenizer, track))}
        for problem in problems
        for track in strategy.plan(problem, 0, 0).tracks
    ]
    engine: Any = LLM(
        str(folder),
        max_model_len=LENGTH,
        max_num_seqs=PROBLEMS * TRACKS,
        generation_config="vllm",
        dtype=data_type(),
    )
    sampling = SamplingParams(
        temperature=strategy.recipe.temperature, top_p=strategy.recipe.top_p, max_tokens=tokens, detokenize=False
    )
    rate = 0.0
    for _ in range(2):
        began = time.perf_counter()
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        rate = sum(len(one.outputs[0].token_ids) for one in outputs) / (time.perf_counter() - began)
    return rate


def turn(part: str, arguments: list[str]) -> float:
    """Runs one part in a process of its own."""
    environment = dict(os.environ)
    if part == "bare":
        environment |= {ASKED: "0", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, __file__, "--part", part, *arguments]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    # vLLM writes to stdout as well, also after the figure.
    return next(json.loads(line)["rate"] for line in reversed(found.splitlines()) if line.startswith('{"rate"'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--tokens", type=int, default=96, help="a track at most")
    parser.add_argument("--turns", type=int, default=2, help="of each")
    parser.add_argument("--part", choices=["ours", "bare"], help="this one alone, in this process")
    given = parser.parse_args()
    if given.part:
        rate = (
            asyncio.run(ours(given.target, given.tokens)) if given.part == "ours" else bare(given.target, given.tokens)
        )
        print(json.dumps({"rate": rate}))
        return
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(given.turns):
        for part in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
            found[part].append(turn(part, ["--target", given.target, "--tokens", str(given.tokens)]))
            print(part, f"{found[part][-1]:.1f} tokens/s", flush=True)
    with_, without = (statistics.median(found[part]) for part in ("ours", "bare"))
    print(f"{with_:.1f} against {without:.1f} tokens/s: {with_ / without:.2f} times")


if __name__ == "__main__":
    main()
