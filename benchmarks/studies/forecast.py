"""Compares the forecast that ``--speculate auto`` decides by with simulations of it, in virtual time.

    python benchmarks/studies/forecast.py [--tracks 20] [--acceptance .3,.46,.72,.86] [--seeds 0,1] [--budget 1024]

Drafting every step, with nothing ahead, over the target alone, on engines with a device each: the steady rate while all
places are taken. Steps have 32 tokens each, or 16 to 60. One line a case: the mean over seeds, and the forecast.
"""

from __future__ import annotations

import argparse
from itertools import product
from statistics import mean
from typing import Any

from speclrm.benchmarks.gpu import STEADY
from speclrm.benchmarks.studies.pacing import LENGTHS, NAMES, simulate
from speclrm.runtime.engines.simulated.presets import simulated_engines
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.breakeven import Group, StepShape, predict

PROMPT_TOKENS = 50
"""Of a simulated problem."""


def forecast(acceptance: float, tracks: int, length: float, budget: int) -> float:
    """Tokens a second over the target alone, with contexts of half a track."""
    engines = simulated_engines(NAMES, SimulatedWorld(WorldSettings((acceptance,)), 0), shared_device=False)
    target, draft = (engines[role].known_costs for role in (Role.TARGET, Role.DRAFT))
    shape = StepShape(drafted=length, lost=length, written=length, context=PROMPT_TOKENS + budget / 2)
    alone = predict([Group(tracks, None)], shape, target, None).rate
    return predict([Group(tracks, acceptance)], shape, target, draft).rate / alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=20)
    parser.add_argument("--acceptance", default="0.3,0.46,0.72,0.86")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--budget", type=int, default=1024, help="tokens a track")
    given = parser.parse_args()
    seeds = [int(one) for one in given.seeds.split(",")]
    print(f"{'acceptance':>10}{'steps':>8}{'simulated':>11}{'forecast':>10}")
    for lengths, acceptance in product(LENGTHS, map(float, given.acceptance.split(","))):
        ratios: list[float] = []
        for seed in seeds:
            common: dict[str, Any] = {"times": STEADY, "lengths": lengths, "seed": seed, "budget": given.budget}
            alone, free = (
                simulate(acceptance, given.tracks, 1, way, shared=False, **common)[0] for way in ("alone", "free")
            )
            ratios.append(free / alone)
        found = forecast(acceptance, given.tracks, mean(LENGTHS[lengths]), given.budget)
        print(f"{acceptance:>10}{lengths:>8}{mean(ratios):>11.2f}{found:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
