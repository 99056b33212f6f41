"""Says which of the controller's numbers change a figure: each is put where it has no effect, the others stay.

    python benchmarks/studies/ablation.py [--budget 2000] [--seed 0] [--tracks 5,20] [NAME ...]

Prints, for each number, in how many of the simulated cells the speed of ``auto`` changes, and the largest gain and loss that
it brings there. A number that changes nothing in any cell has no place in the controller.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from typing import TYPE_CHECKING
from unittest.mock import patch

from speclrm.benchmarks.schedule import simulate
from speclrm.runtime.scheduling import controller
from speclrm.runtime.scheduling.controller_settings import ControllerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIXES = ("a70", "a85", "aime-mix")
WITHOUT: Mapping[str, float] = {
    "look_s": 0.0,
    "look_iterations": 1,
    "decide_s": 0.0,
    "moved": 10.0,
    "margin": 0.0,
    "change_steps": 0.0,
    "tail": 0.0,
    "accepted_prior": 0.3,
    "prior_verdicts": 0.5,
    "verdicts_others": 0.5,
    "verdicts_max": 1e9,
    "favour": 0.0,
    "stay": 0.5,
    "crowd": 10**9,
    "hope": 0.0,
    "hope_gain": 0.0,
    "probes": 0,
    "probe_tracks": 0.0,
    "probe_share": 1.0,
    "try_again": 10**9,
}
"""The value at which each number has no effect, or the farthest one that makes sense."""
CHANGED = 0.002
"""Share by which a speed must change to count."""


Cell = tuple[str, int, bool]
"""A simulated dataset, the number of tracks, and whether the engines share a device."""


def rates(settings: ControllerSettings, cells: Sequence[Cell], budget: int, seed: int) -> list[float]:
    """Returns the kept tokens a virtual second in each cell."""
    with patch.object(controller, "ControllerSettings", lambda: settings):
        return [
            simulate(mix, tracks, "speculative", {"token_budget": budget}, shared=shared, seed=seed).rate
            for mix, tracks, shared in cells
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="numbers to try; all of them unless told")
    parser.add_argument("--budget", type=int, default=2_000, help="tokens of a track")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tracks", default="5,20", help="numbers of concurrent tracks, separated by commas")
    chosen = parser.parse_args()
    known = [field.name for field in fields(ControllerSettings)]
    assert known == list(WITHOUT), "a number needs a value at which it has no effect"
    numbers = [int(one) for one in chosen.tracks.split(",")]
    cells = [(mix, tracks, shared) for mix in MIXES for tracks in numbers for shared in (False, True)]
    plain = rates(ControllerSettings(), cells, chosen.budget, chosen.seed)
    print(f"{'number':18} {'without':>12}  cells changed   gain of having it, least to most")
    for name in chosen.names or known:
        without = rates(replace(ControllerSettings(), **{name: WITHOUT[name]}), cells, chosen.budget, chosen.seed)
        gains = [one / other - 1 for one, other in zip(plain, without, strict=True)]
        changed = sum(abs(gain) > CHANGED for gain in gains)
        print(
            f"{name:18} {WITHOUT[name]:12g}  {changed:2} of {len(gains):2}        {min(gains):+.1%} to {max(gains):+.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
