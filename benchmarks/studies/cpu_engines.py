"""Measures what the changes to vLLM's processes bring on a CPU: turns with and without them, on the same models and problems.

    python benchmarks/studies/cpu_engines.py [--target NAME] [--draft NAME] [--turns 2]
    python benchmarks/studies/cpu_engines.py --by-tracks --target qwen2.5-coder-1.5b-instruct --draft qwen2.5-coder-0.5b-instruct

Each turn starts the engines anew (``SPECLRM_CPU_ENGINE`` is 1 or 0), runs each mode once to warm up and once to measure, and
prints kept tokens a second. Turns alternate (1 0 0 1), so that a machine which grows slower spoils no comparison.

``--by-tracks`` compares drafting with the target alone instead, at 1, 2 and 5 tracks of one problem: each mode in its turn on the
same engines, forwards and backwards. ``auto`` knows nothing of the pair but what it learns in that time. ``--judge`` and
``--likelihood`` are the thresholds of the two scorers: what a step's score (the mean over the digits) must reach.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections import Counter
from typing import Any

from speclrm import api
from speclrm.evaluators.datasets import load
from speclrm.runtime.engines.vllm_plugin import ASKED

MODES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "target alone, 32 streams": ("parallel", 4, 8, {}),
    "target alone, 8 streams": ("parallel", 4, 2, {}),
    "every step drafted, 8 streams": ("speculative", 4, 2, {"speculate": "always", "judge": "inline"}),
}
"""Strategy, problems, tracks a problem, options of the recipe."""
TRACKS = (1, 2, 5)
STEP_TOKENS = 64
"""A step at most, by tracks."""
DATASET = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2"


async def turn(target: str, draft: str, tokens: int, changed: bool) -> dict[str, float]:
    """Measures the kept tokens a second of each mode."""
    os.environ[ASKED] = "1" if changed else "0"
    problems = load(DATASET, limit=4)
    rates: dict[str, float] = {}
    async with api.Runtime(target=target, draft=draft, token_budget=512, max_step_tokens=128) as runtime:
        for name, (strategy, count, tracks, options) in MODES.items():
            chosen = api.strategy(strategy, tracks=tracks, token_budget=tokens, closing=False, **options)
            for measured in (False, True):
                began = time.perf_counter()
                states = await asyncio.gather(*(runtime.solve(problem, chosen) for problem in problems[:count]))
                seconds = time.perf_counter() - began
                if measured:
                    kept = sum(track.tokens for state in states for track in state.tracks.values())
                    rates[name] = kept / seconds
    return rates


async def by_tracks(given: argparse.Namespace) -> None:
    judged = {"score_method": "average", "score_threshold": given.judge}
    likely = {"scorer": "likelihood", "score_threshold": given.likelihood}
    modes: dict[str, tuple[str, dict[str, Any]]] = {
        "alone": ("parallel", {}),
        "always, judge": ("speculative", {"speculate": "always", **judged}),
        "always, likelihood": ("speculative", {"speculate": "always", **likely}),
        "auto, judge": ("speculative", {"speculate": "auto", **judged}),
    }
    (problem,) = load(DATASET, limit=1)
    async with api.Runtime(
        target=given.target, draft=given.draft, token_budget=512, max_step_tokens=STEP_TOKENS
    ) as runtime:
        found: dict[tuple[int, str], list[float]] = {}
        accepted: dict[tuple[int, str], list[int]] = {}
        steps: dict[tuple[int, str], list[int]] = {}
        await runtime.solve(problem, api.strategy("speculative", tracks=1, token_budget=16, speculate="always"))
        for number in range(given.turns):
            cells = [(tracks, name) for tracks in TRACKS for name in modes]
            for tracks, name in cells if number % 2 == 0 else reversed(cells):
                strategy, options = modes[name]
                limits = {"tracks": tracks, "token_budget": given.tokens, "max_step_tokens": STEP_TOKENS}
                chosen = api.strategy(strategy, closing=False, **limits, **options)
                began = time.perf_counter()
                state = await runtime.solve(problem, chosen)
                seconds = time.perf_counter() - began
                kept = sum(track.tokens for track in state.tracks.values())
                origins = [step.origin for track in state.tracks.values() for step in track.steps]
                found.setdefault((tracks, name), []).append(kept / seconds)
                accepted.setdefault((tracks, name), []).append(origins.count("draft"))
                steps.setdefault((tracks, name), []).append(len(origins))
                print(
                    f"{tracks} tracks, {name}: {kept} tokens, {kept / seconds:.2f} a second, {Counter(origins)}",
                    flush=True,
                )
    for (tracks, name), rates in found.items():
        alone = statistics.mean(found[tracks, "alone"])
        rate = statistics.mean(rates)
        kept, all_steps = sum(accepted[tracks, name]), sum(steps[tracks, name])
        print(f"| {tracks} | {name} | {rate:.2f} | {rate / alone:.2f} | {kept} of {all_steps} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--draft", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=48, help="a track at most")
    parser.add_argument("--turns", type=int, default=2, help="with and without, each")
    parser.add_argument(
        "--by-tracks", action="store_true", help="compare drafting with the target alone at 1, 2, 5 tracks"
    )
    parser.add_argument("--judge", type=float, default=5.5)
    parser.add_argument("--likelihood", type=float, default=-0.4)
    given = parser.parse_args()
    if given.by_tracks:
        asyncio.run(by_tracks(given))
        return
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    order = [
        changed for number in range(given.turns) for changed in ((True, False) if number % 2 == 0 else (False, True))
    ]
    for changed in order:
        rates = asyncio.run(turn(given.target, given.draft, given.tokens, changed))
        found[changed].append(rates)
        print("changed" if changed else "as it is", {name: round(rate, 1) for name, rate in rates.items()}, flush=True)
    for name in MODES:
        with_, without = (statistics.median(one[name] for one in found[changed]) for changed in (True, False))
        print(f"{name}: {with_:.1f} against {without:.1f} tokens/s, {with_ / without:.2f} times")


if __name__ == "__main__":
    main()
