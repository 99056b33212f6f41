"""Compares the time to the answer with drafts and without, on a CPU, one problem after the other.

    python benchmarks/studies/time_to_answer.py [--problems 4] [--temperature 0] [--target NAME] [--draft NAME]

Tokens a second say little where the draft model explains more than its target. So each problem is a sum with a worked example
before it, after which both models write alike, and chains as long. Steps are scored by likelihood: a CPU reads a judge's question
for nearly as long as it writes a step. Each problem is solved in all modes in turn, forwards and backwards, on the same engines.
A first solution, which warms them up, is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

from speclrm import api
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

NUMBERS = 5
SMALLEST, LARGEST = 11, 99
EXAMPLE = (40, 25, -17, 30)
LIMITS = {"tracks": 1, "token_budget": 256, "max_step_tokens": 64, "closing": False, "plan": "plain"}
THRESHOLDS = (-0.05, -0.02)
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "alone": ("parallel", {}),
    **{
        f"{way}, {threshold}": (
            "speculative",
            {"speculate": way, "scorer": "likelihood", "score_threshold": threshold},
        )
        for way in ("always", "auto")
        for threshold in THRESHOLDS
    },
}
"""Strategy and options; a threshold is the mean log-likelihood of a token, in nats."""


def worked_sums(seed: int, count: int) -> list[Problem]:
    draw = random.Random(seed)
    return [_problem(f"worked-sum-{seed}-{number}", draw) for number in range(count)]


def _problem(name: str, draw: random.Random) -> Problem:
    first, *others = (draw.randint(SMALLEST, LARGEST) for _ in range(NUMBERS))
    terms = [first, *(draw.choice((1, 1, -1)) * other for other in others)]
    text = (
        f"Here is how {_written(EXAMPLE)} is computed:\n\n{_worked(EXAMPLE)}\n\n"
        f"Compute in the same way, with as many steps as it has numbers to add or subtract: {_written(terms)}"
    )
    return Problem(name, text, str(sum(terms)))


def _written(terms: Sequence[int]) -> str:
    first, *others = terms
    return " ".join([str(first), *(f"{'+' if term > 0 else '-'} {abs(term)}" for term in others)])


def _worked(terms: Sequence[int]) -> str:
    total, *others = terms
    steps: list[str] = []
    for number, term in enumerate(others, 1):
        verb, sign = ("add", "+") if term > 0 else ("subtract", "-")
        steps.append(
            f"Step {number}: {verb} {abs(term)}. The running total was {total}, and {total} {sign} {abs(term)} = {total + term}, "
            f"so the running total is now {total + term}."
        )
        total += term
    return "\n\n".join([*steps, f"Result: \\boxed{{{total}}}"])


async def measure(given: argparse.Namespace) -> None:
    problems = worked_sums(given.seed, given.problems)
    found: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0.0, 0.0] for name in MODES}
    async with api.Runtime(target=given.target, draft=given.draft, token_budget=512, max_step_tokens=64) as runtime:
        await runtime.solve(
            problems[0], api.strategy("speculative", speculate="always", **LIMITS | {"token_budget": 16})
        )
        for number, problem in enumerate(problems):
            for name in MODES if number % 2 == 0 else reversed(MODES):
                strategy, options = MODES[name]
                chosen = api.strategy(strategy, temperature=given.temperature, **LIMITS, **options)
                began = time.perf_counter()
                state = await runtime.solve(problem, chosen, seed=given.seed)
                seconds = time.perf_counter() - began
                (track,) = state.tracks.values()
                drafts = sum(step.origin == "draft" for step in track.steps)
                row = (seconds, track.tokens, state.outcome == "correct", drafts, len(track.steps))
                found[name] = [one + more for one, more in zip(found[name], row, strict=True)]
                print(f"{problem.id}, {name}: {seconds:.1f} s, {track.tokens} tokens, {state.outcome}", flush=True)
    print("| mode | seconds | of alone | tokens | right | drafts kept of steps |\n|---|---|---|---|---|---|")
    for name, (seconds, tokens, right, drafts, steps) in found.items():
        print(
            f"| {name} | {seconds:.1f} | {seconds / found['alone'][0]:.2f} | {tokens:.0f} | {right:.0f} of {len(problems)} | "
            f"{drafts:.0f} of {steps:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--draft", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=11)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
