"""Compares ``auto`` with its two pure choices on the built-in engines: the target alone, and every step drafted.

    python benchmarks/studies/controller.py [--budget 768] [--seeds 0,1] [--tracks 1,5,20] [--acceptance .46,.72,.86]

Virtual time, so the table is the same on every machine. Closed sets of tracks of equal length, to their end: no other problems
wait, so the slowest track decides. One line a cell, and the worst of all cells at the end.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from speclrm.app.resolve import make_strategy
from speclrm.app.summary_sink import SummarySink
from speclrm.benchmarks.virtual_run import simulate_run
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from speclrm.evaluators.metrics import RunSummary

NAMES = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
TRACKS_A_PROBLEM = 5
STEP = (32.0, 32.0, 32.0)
"""Quantiles of step lengths: all the same."""


def simulate(
    acceptance: float, tracks: int, mode: str, *, shared: bool, seed: int, budget: int
) -> tuple[float, RunSummary]:
    """Returns the kept tokens a virtual second, and the run's figures. ``mode``: alone, always or auto."""
    each = min(TRACKS_A_PROBLEM, tracks)
    settings = WorldSettings((acceptance,), steps=2000, judge_error=0.0, draft_lengths=STEP, target_lengths=STEP)
    world = SimulatedWorld(settings, seed)
    options: dict[str, Any] = {"tracks": each, "plan": "plain", "token_budget": budget, "closing": False}
    if mode == "alone":
        chosen = make_strategy("parallel", **options)
    else:
        chosen = make_strategy("speculative", judge="inline", speculate=mode, **options)
    fold = SummarySink()

    problems = max(1, tracks // each)
    simulate_run(chosen, world, NAMES, fold, problems=problems, concurrency=problems, shared=shared, seed=seed)
    summary = fold.summary()
    return sum(counts.kept for counts in summary.tokens.values()) / summary.seconds, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=768, help="tokens a track")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--tracks", default="1,5,20")
    parser.add_argument("--acceptance", default="0.46,0.72,0.86")
    given = parser.parse_args()
    ratios: list[tuple[float, float]] = []
    heads = f"{'always/alone':>14}{'auto/alone':>12}{'auto/better':>13}{'changes':>9}"
    print(f"{'device':<8}{'acceptance':>10}{'tracks':>8}{'seed':>6}{heads}")
    for shared in (False, True):
        for acceptance in map(float, given.acceptance.split(",")):
            for tracks in map(int, given.tracks.split(",")):
                for seed in map(int, given.seeds.split(",")):
                    rates: dict[str, float] = {}
                    changes = 0
                    for mode in ("alone", "always", "auto"):
                        rates[mode], summary = simulate(
                            acceptance, tracks, mode, shared=shared, seed=seed, budget=given.budget
                        )
                        changes = summary.modes.changes
                    better = max(rates["alone"], rates["always"])
                    ratios.append((rates["auto"] / rates["alone"], rates["auto"] / better))
                    always = rates["always"] / rates["alone"]
                    print(
                        f"{'shared' if shared else 'own':<8}{acceptance:>10}{tracks:>8}{seed:>6}{always:>14.2f}"
                        f"{ratios[-1][0]:>12.2f}{ratios[-1][1]:>13.2f}{changes:>9}",
                        flush=True,
                    )
    alone, better = [one for one, _ in ratios], [two for _, two in ratios]
    print(
        f"auto/alone: worst {min(alone):.2f}, .98 or more in {sum(one >= 0.98 for one in alone)} of {len(alone)} cells"
    )
    print(
        f"auto/better: worst {min(better):.2f}, .95 or more in {sum(one >= 0.95 for one in better)} of {len(better)} cells"
    )


if __name__ == "__main__":
    main()
