"""Compares schedules (``bench schedule``) on simulated engines with the target alone at equal concurrency.

Seconds are virtual, so the table is the same on every machine. The target alone has as many tracks, batched, under the
same scheduler. Lock-step has the same tracks, judge and engines as ``plain`` and a barrier after each phase of a step,
as in the original experiments. ``LEVERS`` are one configuration, and the same with one thing taken away.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from speclrm.app import original_faults
from speclrm.app.resolve import make_strategy
from speclrm.app.summary_sink import SummarySink
from speclrm.benchmarks.report import BenchReport, Chart, Figure, Row, figure, report
from speclrm.benchmarks.virtual_run import simulate_run
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speclrm.evaluators.metrics import RunSummary


TARGET, DRAFT = "sim/qwq-32b", "sim/r1-1.5b"
NAMES = {Role.TARGET: TARGET, Role.DRAFT: DRAFT}
TRACKS_A_PROBLEM = 5
PLAIN: dict[str, Any] = {"speculate": "always", "draft_ahead": "never", "rewrite_ahead": "never"}
CONFIGURATION: dict[str, Any] = {"judge": "inline", "gate_sure": -0.1}
"""The configuration of ``auto``: cheap scores, and a gate that keeps a third of the good steps unscored."""
LEVERS: dict[str, dict[str, Any]] = {
    "auto": CONFIGURATION,
    "auto, no gate": {"judge": "inline"},
    "auto, judge's turn": {"gate_sure": -0.1},
    "auto, nothing ahead": {**CONFIGURATION, "draft_ahead": "never", "rewrite_ahead": "never"},
    "always": {**CONFIGURATION, "speculate": "always"},
}
QUICK_LEVERS = ("auto",)


class Outcome(NamedTuple):
    """One simulated run. ``seconds``: virtual. ``idle_ready``: of each engine, the share of the run in which it had nothing to
    do though a track stood ready.
    """

    summary: RunSummary
    preemptions: int

    @property
    def kept(self) -> int:
        return sum(counts.kept for counts in self.summary.tokens.values())

    @property
    def rate(self) -> float:
        return self.kept / self.summary.seconds

    @property
    def idle_ready(self) -> float:
        return max((use.idle_ready or 0.0 for use in self.summary.engines.values()), default=0.0)


def simulate(
    mix: str,
    tracks: int,
    strategy: str,
    options: dict[str, Any],
    *,
    shared: bool,
    seed: int,
    mps: bool = False,
    fault: str | None = None,
) -> Outcome:
    """Runs ``tracks`` tracks, five to a problem if there are that many. ``shared``, ``mps``: as ``simulate_run`` takes them.

    Raises:
        SettingsError: there is no such mix.
    """
    if mix not in MIXES:
        raise SettingsError(f"There is no simulated dataset {mix!r}. There are: {', '.join(MIXES)}.")
    each = min(TRACKS_A_PROBLEM, tracks)
    world = SimulatedWorld(MIXES[mix], seed)
    chosen = make_strategy(strategy, tracks=each, plan="plain", **options)
    fold = SummarySink()
    problems = max(1, tracks // each)
    with original_faults.reproduced([fault]) if fault else contextlib.nullcontext():
        engines = simulate_run(
            chosen, world, NAMES, fold, problems=problems, concurrency=problems, shared=shared, seed=seed, mps=mps
        )
    return Outcome(fold.summary(), sum(engine.preemptions for engine in engines.values()))


def measure(
    *,
    mixes: Sequence[str],
    tracks: Sequence[int],
    devices: Sequence[Literal["own", "shared"]],
    seed: int,
    quick: bool,
    notify: Callable[[str], None],
) -> BenchReport:
    """Measures all mixes, devices and numbers of tracks, each schedule once: a simulation repeats itself to the byte."""
    rows: list[Row] = []
    figures: list[Figure] = []
    for device in devices:
        for mix in mixes:
            for count in tracks:
                notify(f"{mix}, {count} tracks, {device} device")
                rows += _case(mix, count, device == "shared", seed, quick, figures)
    if "own" in devices and "aime-mix" in mixes:
        notify("aime-mix, discarded drafts")
        figures += _discarded(seed, quick)
    return report(
        "schedule",
        "Committed tokens a virtual second, beside the target alone with as many tracks",
        rows=rows,
        figures=figures,
        models={"target": TARGET, "draft": DRAFT},
        seeds=[seed],
        runs=1,
        quick=quick,
        simulated=True,
        settings={"configuration": CONFIGURATION, "tracks_a_problem": TRACKS_A_PROBLEM},
        charts=(
            Chart(
                name="speedup",
                title="against the target alone",
                x="tracks",
                lines=("x alone",),
                by="case",
                log_x=True,
            ),
        ),
        notes=(
            "the gate lets some bad steps pass unscored: read accuracy and acceptance beside the rate",
            "with few problems accuracy says little; it is there to show what a lever changes",
        ),
    )


def _case(mix: str, tracks: int, shared: bool, seed: int, quick: bool, figures: list[Figure]) -> list[Row]:
    device = "shared" if shared else "own"
    alone = simulate(mix, tracks, "parallel", {}, shared=shared, seed=seed)
    plain = simulate(mix, tracks, "speculative", PLAIN, shared=shared, seed=seed)
    rows = [_row(mix, tracks, device, "target alone", alone, alone), _row(mix, tracks, device, "plain", plain, alone)]
    where = f"{mix}, {tracks} tracks, {device} device"
    if tracks == TRACKS_A_PROBLEM or (tracks > 1 and not quick):
        locked = simulate(mix, tracks, "speculative", PLAIN, shared=shared, seed=seed, fault="rounds")
        rows.append(_row(mix, tracks, device, "lock-step", locked, alone))
        goal = 1.9 if tracks == TRACKS_A_PROBLEM and not shared else None
        figures.append(figure(f"free-running against lock-step, {where}", plain.rate / locked.rate, "x", at_least=goal))
    levers = QUICK_LEVERS if quick else tuple(LEVERS)
    for name in levers:
        found = simulate(mix, tracks, "speculative", LEVERS[name], shared=shared, seed=seed)
        rows.append(_row(mix, tracks, device, name, found, alone))
        if name == "auto":
            ratio = found.rate / alone.rate
            figures.append(
                figure(f"auto against the target alone, {where}", ratio, "x", at_least=_goal(mix, tracks, shared))
            )
            figures.append(figure(f"engine idle while a track was ready, {where}", found.idle_ready, at_most=0.05))
            target = found.summary.tokens["target"]
            figures.append(
                figure(f"the target's prompt tokens found in its cache, {where}", target.cached / target.prompt)
            )
    if tracks == 1 and not shared and mix in ("a70", "a85"):
        one = {**CONFIGURATION, "speculate": "always", "draft_ahead": "always"}
        found = simulate(mix, 1, "speculative", one, shared=False, seed=seed)
        goal = 1.75 if mix == "a70" else 2.3
        rows.append(_row(mix, 1, device, "always, draft ahead", found, alone))
        figures.append(figure(f"one track with draft-ahead, {where}", found.rate / alone.rate, "x", at_least=goal))
    return rows


def _goal(mix: str, tracks: int, shared: bool) -> float:
    """Returns the goal of ``auto``: never noticeably slower than the target alone, and faster if drafts are good."""
    if shared or mix not in ("a70", "a85"):
        return 0.98
    if mix == "a70":
        return 1.4 if tracks <= 20 else 0.98
    return 1.8 if tracks <= 20 else 1.6


def _discarded(seed: int, quick: bool) -> list[Figure]:
    """Measures which share of the drafts is discarded on the mix of problems, and how much of the final text is still theirs."""
    tracks = 10 if quick else 55
    fixed = simulate("aime-mix", tracks, "speculative", PLAIN, shared=False, seed=seed).summary
    gate = {**PLAIN, "judge": "inline", "gate_sure": -0.1, "gate_entropy": 1.4}
    gated = simulate("aime-mix", tracks, "speculative", gate, shared=False, seed=seed).summary
    share = (gated.draft_share or 0.0) / (fixed.draft_share or 1.0)
    return [
        figure("aime-mix, drafted tokens discarded at a fixed threshold", fixed.discarded_drafts),
        figure("aime-mix, drafted tokens discarded with the gate", gated.discarded_drafts, at_most=0.35),
        figure("aime-mix, final tokens by the draft with the gate, of those at a fixed threshold", share, at_least=0.9),
    ]


def _row(mix: str, tracks: int, device: str, schedule: str, found: Outcome, alone: Outcome) -> Row:
    summary = found.summary
    target = summary.tokens["target"]
    devices = 1 if device == "shared" or "draft" not in summary.tokens else 2
    return {
        "case": f"{mix}, {device}, {schedule}",
        "mix": mix,
        "device": device,
        "tracks": tracks,
        "schedule": schedule,
        "x alone": found.rate / alone.rate,
        "x alone, a device": found.rate / alone.rate / devices,
        "seconds": summary.seconds,
        "acceptance": summary.acceptance,
        "draft's share": summary.draft_share,
        "discarded": summary.discarded_drafts,
        "accuracy": summary.accuracy,
        "cached": target.cached / target.prompt if target.prompt else None,
        "mode changes": summary.modes.changes,
        "preempted": found.preemptions,
    }
