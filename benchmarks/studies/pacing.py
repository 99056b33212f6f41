"""Measures what the draft's pace brings where both engines share a device by time slices, in virtual time.

    python benchmarks/studies/pacing.py [--tracks 20] [--acceptance .72,.86] [--seeds 0,1,2] [--budget 768]

Drafting every step over the target alone, without a pace, with one, and with one and work ahead of scores: closed sets of tracks
to their end, and the steady rate with four times as many problems as places, while all places are taken. Problems have one
track or five: with five, a place stays taken until the slowest of them ends. Steps have 32 tokens each, or 16 to 60. One line a
case: the mean over seeds.
"""

from __future__ import annotations

import argparse
from itertools import product
from statistics import mean
from typing import Any

from speclrm.app.resolve import make_strategy
from speclrm.benchmarks.gpu import STEADY, Steady
from speclrm.benchmarks.virtual_run import simulate_run
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.protocols import Role

NAMES = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
WAYS = ("free", "paced", "ahead")
LENGTHS = {"equal": (32.0, 32.0, 32.0), "varied": (16.0, 30.0, 60.0)}
"""Quantiles of step lengths."""


def simulate(
    acceptance: float,
    tracks: int,
    each: int,
    way: str,
    *,
    times: int,
    lengths: str,
    seed: int,
    budget: int,
    shared: bool = True,
) -> tuple[float, float]:
    """Kept tokens a virtual second, and draft iterations to one of the target. ``way``: alone, or one of ``WAYS``. ``shared``:
    the engines have one device.
    """
    quantiles = LENGTHS[lengths]
    settings = WorldSettings(
        (acceptance,), steps=2000, judge_error=0.0, draft_lengths=quantiles, target_lengths=quantiles
    )
    world = SimulatedWorld(settings, seed)
    options: dict[str, Any] = {"tracks": each, "plan": "plain", "token_budget": budget, "closing": False}
    if way == "alone":
        chosen = make_strategy("parallel", **options)
    else:
        ahead = "always" if way == "ahead" else "never"
        options |= {"speculate": "always", "draft_ahead": ahead, "rewrite_ahead": ahead}
        chosen = make_strategy("speculative", judge="inline", **options)
    fold = Steady()

    places = max(1, tracks // each)
    engines = simulate_run(
        chosen,
        world,
        NAMES,
        fold,
        problems=places * times,
        concurrency=places,
        shared=shared,
        seed=seed,
        paced=way != "free",
    )
    iterations = {role: engine.iterations for role, engine in engines.items()}
    summary = fold.summary()
    whole = sum(counts.kept for counts in summary.tokens.values()) / summary.seconds
    rate = fold.steady_rate() if times > 1 else whole
    return rate or whole, iterations.get(Role.DRAFT, 0) / iterations[Role.TARGET]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=20)
    parser.add_argument("--acceptance", default="0.72,0.86")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", type=int, default=768, help="tokens a track")
    given = parser.parse_args()
    seeds = [int(one) for one in given.seeds.split(",")]
    heads = "".join(f"{way:>7}" for way in WAYS)
    print(f"{'acceptance':>10}{'problems':>10}{'steps':>8}{'set':>8}{heads}{'draft iterations':>24}")
    cases = product(map(float, given.acceptance.split(",")), (1, 5), LENGTHS, (1, STEADY))
    for acceptance, each, lengths, times in cases:
        ratios: dict[str, list[float]] = {way: [] for way in WAYS}
        drafted: dict[str, list[float]] = {way: [] for way in WAYS}
        for seed in seeds:
            common: dict[str, Any] = {"times": times, "lengths": lengths, "seed": seed, "budget": given.budget}
            alone, _ = simulate(acceptance, given.tracks, each, "alone", **common)
            for way in WAYS:
                rate, iterations = simulate(acceptance, given.tracks, each, way, **common)
                ratios[way].append(rate / alone)
                drafted[way].append(iterations)
        place = f"{max(1, given.tracks // each)} x {each}"
        many = " -> ".join(f"{mean(drafted[way]):.1f}" for way in WAYS)
        print(
            f"{acceptance:>10}{place:>10}{lengths:>8}{'steady' if times > 1 else 'closed':>8}"
            f"{''.join(f'{mean(ratios[way]):>7.2f}' for way in WAYS)}{many:>24}",
            flush=True,
        )


if __name__ == "__main__":
    main()
