"""Finds the lowest threshold under which drafts cost few of the answers that the target alone gets, with a stated confidence.

Problems that the target solves alone are solved again with drafts, first under the strictest threshold. An answer that is
wrong then was lost to drafts. While the upper bound of the share of lost answers (Clopper and Pearson 1934) is within the
risk, the next lower threshold is tried; the first one that is not within ends the search. Tested in an order that was fixed
before, each at the full confidence, the chance that the result is none that keeps the promise is at most one less the
confidence: fixed sequence testing, as in Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052, section 3).
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Thresholds that are tried: those that keep such shares of the drafts."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Trial(_Frozen):
    """What a threshold cost. ``problems``: of those that the target alone solves, how many were tried; ``lost``: of these,
    answers that were wrong with drafts; ``bound``: the upper bound of the share of lost ones, 0 to 1. A trial ends early once
    too many are lost, and its bound is then that of what was tried.
    """

    threshold: float
    problems: int
    lost: int
    bound: float


class Promise(_Frozen):
    """``threshold``: the lowest that costs at most ``risk`` of the right answers, at this ``confidence``; None if there is
    none that can be promised. ``asked``: problems that the target was given alone; ``solved``: those of them that it got right.
    ``reason``: in words.
    """

    risk: float
    confidence: float
    asked: int
    solved: int
    trials: tuple[Trial, ...]
    threshold: float | None
    reason: str


def upper_bound(lost: int, problems: int, confidence: float) -> float:
    """Returns the one-sided upper bound of a share by Clopper and Pearson (Biometrika 26, 1934)."""
    if lost >= problems:
        return 1.0
    beta: Any = import_module("scipy.stats").beta  # takes a second to load
    return float(beta.ppf(confidence, lost + 1, problems - lost))


def lost_max(problems: int, risk: float, confidence: float) -> int | None:
    """Returns how many of so many answers may be lost within the risk; None if even none are too few to tell."""
    if problems < problems_min(risk, confidence):
        return None
    lost = 0
    while upper_bound(lost + 1, problems, confidence) <= risk:
        lost += 1
    return lost


def problems_min(risk: float, confidence: float) -> int:
    """Returns how many answers, none of them lost, show the risk: the least n with (1 - risk)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - risk) - 1e-9)


def candidates(scores: Sequence[float], least: float) -> list[float]:
    """Returns thresholds from the strictest to ``least``, which keeps all. ``scores``: sorted, of drafts that are not judged
    again; not empty.
    """
    found: list[float] = []
    for share in SHARES:
        place = round(len(scores) * (1 - share))
        threshold = least if share == 1.0 else scores[min(place, len(scores) - 1)]
        if threshold not in found:
            found.append(threshold)
    return found


async def find_promise(
    thresholds: Sequence[float],
    attempt: Callable[[float, int], Awaitable[tuple[int, int]]],
    *,
    asked: int,
    solved: int,
    risk: float,
    confidence: float,
) -> Promise:
    """Tries the thresholds in their order, strictest first.

    ``attempt(threshold, allowed)`` solves the solved problems again with drafts, and returns how many it tried and how many
    of these were lost; it may stop once more than ``allowed`` are.
    """

    def promise(threshold: float | None, trials: Sequence[Trial], reason: str) -> Promise:
        return Promise(
            risk=risk,
            confidence=confidence,
            asked=asked,
            solved=solved,
            trials=tuple(trials),
            threshold=threshold,
            reason=reason,
        )

    allowed = lost_max(solved, risk, confidence)
    stated = f"at most {risk:.1%} of the target's right answers lost, with {confidence:.0%} confidence"
    if allowed is None:
        return promise(
            None,
            [],
            f"too few problems for a promise: the target alone solved {solved} of {asked}, and it takes "
            f"{problems_min(risk, confidence)} to show {stated}. Give more --checks, a larger --token-budget, or problems that "
            "it can solve",
        )
    trials: list[Trial] = []
    for threshold in thresholds:
        tried, lost = await attempt(threshold, allowed)
        trials.append(Trial(threshold=threshold, problems=tried, lost=lost, bound=upper_bound(lost, tried, confidence)))
        if tried < solved or lost > allowed:
            break
    kept = [trial for trial in trials if trial.problems == solved and trial.lost <= allowed]
    if not kept:
        first = trials[0]
        return promise(
            None,
            trials,
            f"no threshold is safe for this pair: even at {first.threshold:.3f}, the strictest, drafts lost {first.lost} of "
            f"{first.problems} answers that the target alone gets; {stated}, cannot be promised",
        )
    best = kept[-1]
    return promise(best.threshold, trials, f"{stated} ({best.lost} of {best.problems} were)")
