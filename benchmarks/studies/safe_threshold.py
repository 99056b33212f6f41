"""Checks what `calibrate` promises, on simulated problems that it did not see.

    python benchmarks/studies/safe_threshold.py [--seeds 200] [--risk 0.05] [--confidence 0.9] [--checks 80]

A seed is a world: its target solves problems alone, thresholds are tried on those that it solves, as `calibrate` does it, and
the one that is found is then used on other problems of the same kind, and on harder ones (where fewer drafts are good, and
a bad one does more harm). Lost: the share of the answers that the target gets alone and that are wrong with drafts. The
steps are those of the simulated world, read without engines; a test holds that the command finds the same.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean
from typing import TYPE_CHECKING

from speclrm.app.safe_threshold import Promise, candidates, find_promise
from speclrm.runtime.engine import Request
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.strategies.acceptance import RANGES, accepts
from speclrm.strategies.scoring import read_score

if TYPE_CHECKING:
    from collections.abc import Sequence

PILOT = 4
HELD_OUT = 300
WITHIN = 0.02
"""Two points."""
_PLAIN = WorldSettings(
    (0.85, 0.75, 0.8),
    steps=8.0,
    solved_alpha=6.0,
    solved_beta=2.0,
    judge_error=0.02,
    harm=0.3,
    draft_step=8,
    target_step=8,
)
WORLDS = {
    "a good judge": _PLAIN,
    "a fair judge": replace(_PLAIN, judge_error=0.06),
    "a judge that hardly tells": replace(_PLAIN, acceptance=(0.5,), judge_error=0.25),
    "losses as large as the risk": replace(_PLAIN, judge_error=0.1, harm=0.06),
    "drafts that do no harm": replace(_PLAIN, judge_error=0.1, harm=0.0),
}


def harder(settings: WorldSettings) -> WorldSettings:
    """Problems with fewer good drafts, more of which are taken wrongly, and each of which does more harm."""
    lower = tuple(max(0.1, one - 0.2) for one in settings.acceptance)
    return replace(settings, acceptance=lower, harm=min(1.0, 1.5 * settings.harm))


@dataclass
class Outcome:
    """Of a seed: what was promised, the share of the drafts that were kept, and the shares of answers that were lost."""

    promise: Promise
    kept: float = 0.0
    wrong: float = 0.0
    """Of the steps that were kept, the bad ones."""
    lost: float = 0.0
    lost_harder: float = 0.0


class Tracks:
    """Tracks of a world, as a run at temperature 0 would make them."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.world = world
        self.scores = cache(self._scores)  # asked again for each threshold

    def _request(self, problem: str, step: int, kind: str, context: Sequence[int] = ()) -> Request:
        return Request(f"{problem}/0/M1/{step}/{kind}", list(context), 16, temperature=0.0)

    def _scores(self, problem: str) -> list[tuple[float, bool]]:
        """The score of each draft, and whether it is good."""
        steps = round(self.world.settings.steps)
        return [
            (
                read_score(self.world.digits(self._request(problem, step, "score")), "average").value,
                self.world.good_draft((problem, "0", "M1"), step),
            )
            for step in range(steps)
        ]

    def right(self, problem: str, bad: int) -> bool:
        """Whether a track with so many bad steps has the right answer."""
        context = self.world.tokenizer.encode(" hm " * bad)
        said = self.world.tokenizer.decode(self.world.write(self._request(problem, 0, "closing", context)))
        return said.strip(" }") == self.world.truth(problem)

    def drafted(self, problem: str, threshold: float) -> tuple[bool, int, int]:
        """Whether the answer is right with drafts, how many were kept, and how many of these were bad."""
        kept = [good for score, good in self.scores(problem) if accepts(score, threshold)]
        bad = kept.count(False)
        return self.right(problem, bad), len(kept), bad


def names(first: int, count: int) -> list[str]:
    return [f"sim-{number}" for number in range(first, first + count)]


def lost_share(tracks: Tracks, problems: Sequence[str], threshold: float) -> tuple[float, float, float]:
    """Returns the share of answers lost, of drafts kept, and of kept ones that are bad, over the problems solved alone."""
    solved = [name for name in problems if tracks.right(name, 0)]
    found = [tracks.drafted(name, threshold) for name in solved]
    kept = sum(many for _, many, _ in found)
    steps = len(solved) * round(tracks.world.settings.steps)
    bad = sum(many for _, _, many in found)
    return 1 - mean(right for right, _, _ in found), kept / steps, bad / max(1, kept)


async def one(settings: WorldSettings, seed: int, risk: float, confidence: float, checks: int) -> Outcome:
    tracks = Tracks(SimulatedWorld(settings, seed))
    scores = sorted(score for name in names(0, PILOT) for score, _ in tracks.scores(name))
    solved = [name for name in names(PILOT, checks) if tracks.right(name, 0)]

    async def attempt(threshold: float, allowed: int) -> tuple[int, int]:
        lost = 0
        for tried, name in enumerate(solved, 1):
            lost += not tracks.drafted(name, threshold)[0]
            if lost > allowed:
                return tried, lost
        return len(solved), lost

    promise = await find_promise(
        candidates(scores, RANGES["judge"][0]),
        attempt,
        asked=checks,
        solved=len(solved),
        risk=risk,
        confidence=confidence,
    )
    if promise.threshold is None:
        return Outcome(promise)
    lost, kept, wrong = lost_share(tracks, names(PILOT + checks, HELD_OUT), promise.threshold)
    others = Tracks(SimulatedWorld(harder(settings), seed))
    lost_harder, _, _ = lost_share(others, names(PILOT + checks, HELD_OUT), promise.threshold)
    return Outcome(promise, kept, wrong, lost, lost_harder)


@dataclass(frozen=True)
class Row:
    """Over seeds. ``found``: those with a threshold; the other figures are of these. ``over``: those that lost more than was
    promised; ``far``: more than two points more.
    """

    found: float
    kept: float
    wrong: float
    lost: float
    over: float
    far: float
    lost_harder: float
    over_harder: float


def row(settings: WorldSettings, seeds: range, risk: float, confidence: float, checks: int) -> Row:
    outcomes = [asyncio.run(one(settings, seed, risk, confidence, checks)) for seed in seeds]
    found = [outcome for outcome in outcomes if outcome.promise.threshold is not None]
    if not found:
        return Row(0.0, *[math.nan] * 7)
    return Row(
        found=len(found) / len(outcomes),
        kept=mean(outcome.kept for outcome in found),
        wrong=mean(outcome.wrong for outcome in found),
        lost=mean(outcome.lost for outcome in found),
        over=mean(outcome.lost > risk for outcome in found),
        far=mean(outcome.lost > risk + WITHIN for outcome in found),
        lost_harder=mean(outcome.lost_harder for outcome in found),
        over_harder=mean(outcome.lost_harder > risk for outcome in found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--risk", type=float, default=0.05)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--checks", type=int, default=80)
    given = parser.parse_args()
    heads = ("found", "kept", "bad", "lost", "over", "+2 points", "harder", "over")
    print(f"risk {given.risk}, confidence {given.confidence}, {given.checks} checks, {given.seeds} seeds")
    print(f"{'world':<30}" + "".join(f"{head:>11}" for head in heads))
    for name, settings in WORLDS.items():
        found = row(settings, range(given.seeds), given.risk, given.confidence, given.checks)
        values = (found.found, found.kept, found.wrong, found.lost, found.over, found.far)
        values = (*values, found.lost_harder, found.over_harder)
        print(f"{name:<30}" + "".join(f"{value:>11.1%}" for value in values), flush=True)


if __name__ == "__main__":
    main()
