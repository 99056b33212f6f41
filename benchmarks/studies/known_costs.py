"""Compares ``auto`` that knows what its engines cost with one that has to find it out, in the simulator.

    python benchmarks/studies/known_costs.py [--mixes a70,a85,aime-mix] [--seed 0]

Cells are numbers of tracks at work at once, five a problem if there are that many, and twelve problems one after the other
(``one by one``). Each gives committed tokens a virtual second over those of the better of two others: the target alone, and every
step drafted.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from speclrm.app.resolve import make_strategy
from speclrm.app.summary_sink import SummarySink
from speclrm.benchmarks.schedule import NAMES, TRACKS_A_PROBLEM
from speclrm.benchmarks.virtual_run import simulate_run
from speclrm.runtime.engine import KnowsItsCosts
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld
from speclrm.runtime.scheduling import controller

ONE_BY_ONE = 12
WORK = ((1, 768, False), (5, 768, False), (20, 2048, False), (1, 512, True), (5, 512, True))
"""Tracks, tokens of each, and whether problems come one by one."""


class Cell(NamedTuple):
    mix: str
    tracks: int
    budget: int
    one_by_one: bool
    shared: bool
    known: bool
    seed: int

    @property
    def where(self) -> str:
        device = "shared" if self.shared else "own"
        how = "one by one" if self.one_by_one else "at once"
        return f"{self.mix}, {self.tracks} tracks of {self.budget} tokens, {how}, {device}"


class _Nothing:
    """What no engine is."""


def measured(cell: Cell) -> tuple[float, float]:
    """Returns the rate of ``auto`` over that of the target alone, and over the better of that and of *always*."""
    controller.KnowsItsCosts = KnowsItsCosts if cell.known else _Nothing  # type: ignore[misc, assignment]
    rates: dict[str, float] = {}
    for way in ("never", "always", "auto"):
        each = min(TRACKS_A_PROBLEM, cell.tracks)
        chosen = make_strategy(
            "speculative", tracks=each, plan="plain", speculate=way, judge="inline", token_budget=cell.budget
        )
        at_once = 1 if cell.one_by_one else cell.tracks // each
        fold = SummarySink()
        simulate_run(
            chosen,
            SimulatedWorld(MIXES[cell.mix], cell.seed),
            NAMES,
            fold,
            problems=ONE_BY_ONE if cell.one_by_one else at_once,
            concurrency=at_once,
            shared=cell.shared,
            seed=cell.seed,
        )
        summary = fold.summary()
        rates[way] = sum(counts.kept for counts in summary.tokens.values()) / summary.seconds
    return rates["auto"] / rates["never"], rates["auto"] / max(rates["never"], rates["always"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", default="a70,a85,aime-mix")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    cells = [
        Cell(mix, *work, shared, known, given.seed)
        for mix in given.mixes.split(",")
        for work in WORK
        for shared in (False, True)
        for known in (True, False)
    ]
    with ProcessPoolExecutor(2) as pool:
        found = dict(zip(cells, pool.map(measured, cells), strict=True))
    print("| cell | known: / alone | / the better | not known: / alone | / the better |\n|---|---|---|---|---|")
    for cell in cells[::2]:
        (alone, better), (alone_unknown, better_unknown) = found[cell], found[cell._replace(known=False)]
        print(f"| {cell.where} | {alone:.2f} | {better:.2f} | {alone_unknown:.2f} | {better_unknown:.2f} |")


if __name__ == "__main__":
    main()
