"""Compares ``auto`` with its two pure choices on the built-in engines: the target alone, and every step drafted.

    python benchmarks/studies/controller.py [--budget 768] [--seeds 0,1,2] [--tracks 1,5,20] [--drafts .46,.72,.86] [--times 4]

``--drafts``: shares that pass, with steps of 32 tokens and an inline judge, or simulated datasets such as ``a70``, with the gate
of `speclrm bench schedule`. Virtual time, so the table is the same on every machine. Closed sets of tracks, five to a problem,
to their end: no other problems wait, so the slowest track decides. With ``--times``, so many problems for each place: the rate
while all places are taken. One line a cell, the mean over seeds; the worst of all cells at the end. ``changes``: how often the
mode of one track changed, at most, without the single steps that only look.
"""

from __future__ import annotations

import argparse
from collections import Counter
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from speclrm.app.resolve import make_strategy
from speclrm.benchmarks.gpu import Steady
from speclrm.benchmarks.schedule import CONFIGURATION
from speclrm.benchmarks.virtual_run import simulate_run
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld, WorldSettings
from speclrm.runtime.events import ModeChanged
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.controller import PROBE_REASON

if TYPE_CHECKING:
    from speclrm.runtime.events import Event

NAMES = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
TRACKS_A_PROBLEM = 5
STEP = (32.0, 32.0, 32.0)
"""Quantiles of step lengths: all the same."""
MODES = ("alone", "always", "auto")


class Changes(Steady):
    """The summary of a run, its steady rate, and how often each track's mode changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: Counter[tuple[str, int, str]] = Counter()

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, ModeChanged) and event.reason != PROBE_REASON:
            self.changes[event.problem, event.repeat, event.track] += 1


class Run(NamedTuple):
    """``rate``: kept tokens a virtual second. ``changes``: of the mode of one track, at most."""

    rate: float
    changes: int


class Cell(NamedTuple):
    """Speeds over that of the target alone, each the mean over seeds. ``worst``: of ``auto`` in one seed."""

    always: float
    auto: float
    worst: float
    changes: int

    @property
    def better(self) -> float:
        """``auto`` over the better of the two pure choices."""
        return self.auto / max(1.0, self.always)


def simulate(drafts: str, tracks: int, mode: str, *, shared: bool, seed: int, budget: int, times: int) -> Run:
    """Runs so many tracks at once. ``mode``: one of ``MODES``. ``times``: problems for each place, 1 for a closed set."""
    each = min(TRACKS_A_PROBLEM, tracks)
    options: dict[str, Any] = {"tracks": each, "plan": "plain", "token_budget": budget}
    drafting: dict[str, Any] = CONFIGURATION
    settings = MIXES.get(drafts)
    if settings is None:
        settings = WorldSettings((float(drafts),), steps=2000, judge_error=0.0, draft_lengths=STEP, target_lengths=STEP)
        options["closing"], drafting = False, {"judge": "inline"}
    if mode == "alone":
        chosen = make_strategy("parallel", **options)
    else:
        chosen = make_strategy("speculative", speculate=mode, **drafting, **options)
    fold = Changes()
    places = max(1, tracks // each)
    world = SimulatedWorld(settings, seed)
    simulate_run(chosen, world, NAMES, fold, problems=places * times, concurrency=places, shared=shared, seed=seed)
    summary = fold.summary()
    rate = fold.steady_rate() if times > 1 else None
    if rate is None:
        rate = sum(counts.kept for counts in summary.tokens.values()) / summary.seconds
    return Run(rate, max(fold.changes.values(), default=0))


def measure(drafts: str, tracks: int, *, shared: bool, seeds: list[int], budget: int, times: int = 1) -> Cell:
    """Compares the modes in one cell."""
    found = [
        {mode: simulate(drafts, tracks, mode, shared=shared, seed=seed, budget=budget, times=times) for mode in MODES}
        for seed in seeds
    ]
    always, auto = ([runs[mode].rate / runs["alone"].rate for runs in found] for mode in ("always", "auto"))
    return Cell(mean(always), mean(auto), min(auto), max(runs["auto"].changes for runs in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=768, help="tokens a track")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tracks", default="1,5,20")
    parser.add_argument("--drafts", default="0.46,0.72,0.86")
    parser.add_argument("--times", type=int, default=1, help="problems for each place; 1 is a closed set")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    cells: list[Cell] = []
    heads = f"{'always/alone':>14}{'auto/alone':>12}{'worst seed':>12}{'auto/better':>13}{'changes':>9}"
    print(f"{'device':<8}{'drafts':>10}{'tracks':>8}{heads}")
    for shared in (False, True):
        for drafts in given.drafts.split(","):
            for tracks in map(int, given.tracks.split(",")):
                cell = measure(drafts, tracks, shared=shared, seeds=seeds, budget=given.budget, times=given.times)
                cells.append(cell)
                print(
                    f"{'shared' if shared else 'own':<8}{drafts:>10}{tracks:>8}{cell.always:>14.2f}{cell.auto:>12.3f}"
                    f"{cell.worst:>12.3f}{cell.better:>13.3f}{cell.changes:>9}",
                    flush=True,
                )
    print(
        f"auto/alone: worst {min(cell.auto for cell in cells):.3f}, .98 or more in "
        f"{sum(cell.auto >= 0.98 for cell in cells)} of {len(cells)} cells"
    )
    print(
        f"auto/better: worst {min(cell.better for cell in cells):.3f}, .95 or more in "
        f"{sum(cell.better >= 0.95 for cell in cells)} of {len(cells)} cells"
    )


if __name__ == "__main__":
    main()
