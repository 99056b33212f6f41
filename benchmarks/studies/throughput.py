"""Compares `baseline` with the bare engine: what the runtime itself costs.

One engine object, the same prompts and settings, in ABBA rounds: A is a run of the runtime, B a plain
``asyncio.gather`` over ``engine.generate``. Then the same work by ``vllm.LLM.generate`` in a process of its own with
the same explicit limits. Outputs are forced to the same length, so that tokens per second compare.

    python benchmarks/studies/throughput.py [--model NAME] [--problems 16] [--tokens 96] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from speclrm.app.engines import make_engines, open_runtime
from speclrm.app.options import EngineOptions
from speclrm.app.progress import quiet
from speclrm.app.resolve import make_strategy
from speclrm.app.summary_sink import SummarySink
from speclrm.evaluators.datasets import load
from speclrm.runtime.engines.restarting import inner
from speclrm.runtime.machine.sizing import Work
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.prompts import open_prompt
from speclrm.strategies.family import Family

DATASET = "reasoning-gym:gsm_symbolic"


class Unending(Family):
    """The target alone, to the budget: no answer and no end stops a track early."""

    name = "baseline"
    roles = frozenset({Role.TARGET})

    async def run_track(self, track: Any) -> Any:
        while track.state.tokens < self.recipe.token_budget:
            await track.commit(await track.write())
        return "budget"


async def bare(engine: Any, prompts: list[list[int]], tokens: int, round_number: int) -> float:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(number: int, ids: list[int]) -> int:
        params = SamplingParams(
            max_tokens=tokens,
            temperature=0.6,
            top_p=0.95,
            seed=number,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        count = 0
        async for output in engine.generate({"prompt_token_ids": ids}, params, f"bare-{round_number}-{number}"):
            count = len(output.outputs[0].token_ids)
        return count

    started = time.perf_counter()
    counts = await asyncio.gather(*(one(number, ids) for number, ids in enumerate(prompts)))
    return sum(counts) / (time.perf_counter() - started)


async def ours(runtime: Any, problems: list[Any], strategy: Any) -> float:
    fold = SummarySink()
    started = time.perf_counter()
    await runtime.run(problems, strategy, required=[fold])
    return fold.summary().tokens["target"].generated / (time.perf_counter() - started)


OFFLINE = """
import json, sys, time
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    job = json.load(open(sys.argv[1]))
    llm = LLM(**job["engine"])
    params = [SamplingParams(max_tokens=job["tokens"], temperature=0.6, top_p=0.95, seed=n, ignore_eos=True,
                             detokenize=False) for n in range(len(job["prompts"]))]
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    rates = []
    for _ in range(job["rounds"] + 1):
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        rates.append(sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - started))
    print("RATES", json.dumps(rates[1:]), flush=True)
"""


def offline(settings: Any, prompts: list[list[int]], tokens: int, rounds: int) -> list[float]:
    import os

    engine: dict[str, Any] = {
        "model": str(settings.path),
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "enforce_eager": settings.enforce_eager,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": settings.device != "cpu",
    }
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(settings.preload),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, settings.cores)),
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with tempfile.TemporaryDirectory() as folder:
        job, script = Path(folder, "job.json"), Path(folder, "offline.py")
        job.write_text(json.dumps({"engine": engine, "prompts": prompts, "tokens": tokens, "rounds": rounds}))
        script.write_text(OFFLINE)
        done = subprocess.run(
            [sys.executable, str(script), str(job)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RATES")), None)
    if line is None:
        raise SystemExit(f"vllm.LLM failed:\n{done.stderr[-2000:]}")
    return json.loads(line.removeprefix("RATES "))


async def main(options: argparse.Namespace) -> None:
    problems = load(DATASET, limit=options.problems, seed=11)
    recipe = make_strategy("baseline", token_budget=options.tokens, max_step_tokens=64, closing=False).recipe
    strategy = Unending(recipe, lambda text: None)
    rates: dict[str, list[float]] = {"runtime": [], "bare": []}
    engines = make_engines(EngineOptions(target=options.model))
    work = Work(options.problems, 512, options.tokens, 64, suffix_tokens=0)
    async with open_runtime(engines, make_strategy("baseline"), work, (), quiet) as runtime:
        engine: Any = inner(runtime.scheduler.lanes[Role.TARGET].engine)
        prompts = [open_prompt(engine.tokenizer, plan) for p in problems for plan in strategy.plan(p, 0, 0).tracks]
        await bare(engine.engine, prompts, 16, -1)  # warm
        for number in range(options.rounds):
            for which in ("AB", "BA")[number % 2]:
                await engine.engine.reset_prefix_cache()
                if which == "A":
                    rates["runtime"].append(await ours(runtime, problems, strategy))
                else:
                    rates["bare"].append(await bare(engine.engine, prompts, options.tokens, number))
            print(
                f"round {number}: runtime {rates['runtime'][-1]:.1f}, bare {rates['bare'][-1]:.1f} tokens/s", flush=True
            )
    ratios = [ours / raw for ours, raw in zip(rates["runtime"], rates["bare"], strict=True)]
    print(f"runtime / bare engine: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    if not options.no_offline:
        llm = offline(engines.settings[Role.TARGET], prompts, options.tokens, options.rounds)
        print(f"vllm.LLM.generate: {', '.join(f'{rate:.1f}' for rate in llm)} tokens/s")
        ratio = statistics.median(rates["runtime"]) / statistics.median(llm)
        low, high = min(rates["runtime"]) / max(llm), max(rates["runtime"]) / min(llm)
        print(f"runtime / vllm.LLM.generate: {ratio:.3f} of medians, {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--no-offline", action="store_true")
    asyncio.run(main(parser.parse_args()))
