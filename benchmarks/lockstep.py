"""Free-running tracks against a lock-step loop, on the same engines.

The lock-step loop is the original's: all tracks draft, then all are scored, then all rejected ones are rewritten, and
nobody begins the next step before. It batches each phase over all tracks of all problems, and uses the same prompts,
judge and engines; only the barriers differ. To compare the schedules and nothing else, a step's fate comes from its
place (two in five are rejected) instead of its score, and tracks end at a number of steps.

    python benchmarks/lockstep.py [--problems 4] [--tracks 8] [--steps 5] [--rounds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

from speclrm import api
from speclrm.evaluators.datasets import load
from speclrm.strategies.family import Family
from speclrm.strategies.speculative import Speculative

if TYPE_CHECKING:
    from speclrm.runtime.protocols import Track


class Scheduled(Family):
    """The speculative loop with fates by place. ``barrier`` makes it lock-step."""

    name = "speculative"
    roles = Speculative.roles

    def __init__(self, recipe: Any, *, steps: int, tracks: int, lockstep: bool) -> None:
        super().__init__(recipe, lambda text: None)
        self._steps = steps
        self._places = tracks
        self._barrier = asyncio.Barrier(tracks) if lockstep else None
        self._turn = 0

    async def run_track(self, track: Track) -> Any:
        place = self._turn
        self._turn += 1
        for number in range(self._steps):
            step = await track.draft()
            await self._wait()
            await track.score(step)
            await self._wait()
            if (place + number) % 5 < 2:
                step = await track.rewrite(step)
            await self._wait()
            await track.commit(step, 9.0)
        return "step_limit"

    async def _wait(self) -> None:
        if self._barrier is not None:
            await self._barrier.wait()


async def main(options: argparse.Namespace) -> None:
    problems = load("reasoning-gym:gsm_symbolic", limit=options.problems, seed=5)
    count = options.problems * options.tracks
    recipe = api.strategy(
        "speculative",
        speculate="always",
        tracks=options.tracks,
        token_budget=64 * options.steps,
        max_step_tokens=48,
        closing=False,
    ).recipe
    times: dict[bool, list[float]] = {True: [], False: []}
    tokens: dict[bool, list[int]] = {True: [], False: []}
    async with api.Runtime(
        target=options.target,
        draft=options.draft,
        tracks=count,
        prompt_tokens=512,
        token_budget=64 * options.steps,
        max_step_tokens=48,
    ) as runtime:
        for number in range(-1, options.rounds):
            for lockstep in (False, True) if number % 2 else (True, False):
                strategy = Scheduled(recipe, steps=options.steps, tracks=count, lockstep=lockstep)
                fold = api._Fold()  # pyright: ignore[reportPrivateUsage]
                started = time.perf_counter()
                await runtime.run(problems, strategy, seed=max(number, 0), concurrency=options.problems, sinks=[fold])
                if number < 0:
                    break  # a warm-up
                times[lockstep].append(time.perf_counter() - started)
                tokens[lockstep].append(sum(c.kept for c in fold.summary().tokens.values()))
                name = "lock-step" if lockstep else "free"
                print(f"{name}: {times[lockstep][-1]:.1f} s, {tokens[lockstep][-1]} tokens kept", flush=True)
    rates = {kind: [n / s for n, s in zip(tokens[kind], times[kind], strict=True)] for kind in times}
    ratios = [free / locked for free, locked in zip(rates[False], rates[True], strict=True)]
    print(
        f"free-running / lock-step, kept tokens per second: median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--draft", default="smollm2-135m-instruct")
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--tracks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    asyncio.run(main(parser.parse_args()))
