"""Chooses a threshold from a judge's scores, keeps it for each pair of models, and measures what the scores are worth."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from speclrm.app.safe_threshold import Promise
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.events import Scorer
from speclrm.runtime.files import write_whole
from speclrm.runtime.models import store
from speclrm.strategies.prompts import AUTO_LAYOUT, JudgeLayout
from speclrm.strategies.scoring import ScoreMethod

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Calibration(BaseModel):
    """The distribution of a judge's scores, and the threshold.

    ``scores``: of drafted steps, on the scorer's scale, sorted, in contexts as a run with a threshold near the middle has
    them. ``threshold``: None if none is safe. ``acceptance``: the share of the scores that it accepts, 0 without one.
    ``promise``: what is known of the threshold's cost; None if it was chosen by the share that it accepts. ``mass``: the mean
    probability that the judge gave to digits; far below one, it does not understand the question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = 1
    target: str
    draft: str
    score_method: ScoreMethod
    scorer: Scorer = "judge"
    judge: JudgeLayout = "auto"
    threshold: float | None
    acceptance: float
    scores: tuple[float, ...]
    mass: float
    promise: Promise | None = None


class Kept(NamedTuple):
    """A threshold that was kept; None if none is safe. ``said``: in words, what is promised, or why there is none."""

    threshold: float | None
    said: str


class JudgeQuality(BaseModel):
    """Tells how well scores predict outcomes.

    ``steps``: scored steps of samples that were graded right or wrong. ``auroc``: the chance that a step of a right
    sample has a higher score than one of a wrong sample; None if all ended alike. ``calibration_error``: the expected
    calibration error of score / 9 as the chance to be right, 0 to 1, over ten bins. ``thresholds``: thresholds with the
    share of drafts that each accepts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int
    right: int
    auroc: float | None
    calibration_error: float | None
    thresholds: tuple[tuple[float, float], ...]


THRESHOLDS = tuple(number / 2 for number in range(19))


def judge_quality(scores: Sequence[float], labelled: Sequence[tuple[float, bool]]) -> JudgeQuality:
    """Measures how well scores predict outcomes. ``scores``: sorted; ``labelled``: scores of steps with whether their
    sample was right.
    """
    return JudgeQuality(
        steps=len(labelled),
        right=sum(right for _, right in labelled),
        auroc=auroc(labelled),
        calibration_error=calibration_error(labelled),
        thresholds=tuple((bar, 1 - bisect_left(scores, bar) / len(scores)) for bar in THRESHOLDS),
    )


def auroc(labelled: Sequence[tuple[float, bool]]) -> float | None:
    """Returns the area under the ROC curve by ranks, equal scores counting half (Mann and Whitney's U)."""
    wrong = sorted(score for score, right in labelled if not right)
    right = [score for score, right in labelled if right]
    if not wrong or not right:
        return None
    wins = sum(bisect_left(wrong, score) + bisect_right(wrong, score) for score in right) / 2
    return wins / (len(right) * len(wrong))


def calibration_error(labelled: Sequence[tuple[float, bool]]) -> float | None:
    """Returns the error over ten bins of score / 9: the distance of a bin's mean from its share of right ones, weighted
    by size (Naeini 2015).
    """
    if not labelled:
        return None
    bins: dict[int, list[tuple[float, bool]]] = {}
    for score, right in labelled:
        bins.setdefault(min(9, int(score / 9 * 10)), []).append((score / 9, right))
    return sum(abs(sum(score for score, _ in one) - sum(right for _, right in one)) for one in bins.values()) / len(
        labelled
    )


def choose_threshold(scores: Sequence[float], acceptance: float) -> tuple[float, float]:
    """Returns the threshold, among the scores seen, whose accepted share is nearest to the one asked for; and that share.

    ``scores`` is sorted. A threshold that accepts all or nothing is taken only if there is no other.
    """
    candidates: dict[float, float] = {}
    for index, score in enumerate(scores):
        candidates.setdefault(score, (len(scores) - index) / len(scores))
    partial = {score: share for score, share in candidates.items() if share < 1.0} or candidates
    threshold = min(partial, key=lambda score: (abs(partial[score] - acceptance), score))
    return threshold, partial[threshold]


def share_above(scores: Sequence[float], threshold: float | None) -> float:
    """Returns the share of scores (sorted) that the threshold accepts; 0 without one."""
    return 0.0 if threshold is None else 1 - bisect_left(scores, threshold) / len(scores)


def way_of_scoring(scorer: Scorer, judge: JudgeLayout, method: ScoreMethod) -> str:
    """Names the way of scoring that a threshold holds for: other ways give other numbers."""
    if scorer == "likelihood":
        return scorer
    layout = AUTO_LAYOUT if judge == "auto" else judge
    return method if layout == "turn" else f"{layout}-{method}"


def calibration_path(target: str, draft: str, way: str) -> Path:
    """Returns the file of the threshold for a pair of models and a way of scoring."""
    return store.cache_dir() / "calibrations" / f"{pair_name(target, draft)}__{way}.json"


def pair_name(target: str, draft: str) -> str:
    """Returns a name for files about a pair of models."""
    names = [re.sub(r"[^\w.-]+", "--", name.removeprefix("vllm/")).strip("-") for name in (target, draft)]
    return "__".join(names)


def keep(calibration: Calibration) -> None:
    """Writes the calibration to the place where ``kept_threshold`` finds it, whole or not at all."""
    way = way_of_scoring(calibration.scorer, calibration.judge, calibration.score_method)
    path = calibration_path(calibration.target, calibration.draft, way)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, calibration.model_dump_json(indent=2) + "\n")


def kept_threshold(target: str, draft: str, *, scorer: Scorer, judge: JudgeLayout, method: ScoreMethod) -> Kept:
    """Returns what an earlier calibration kept. Raises SettingsError if there is none."""
    way = way_of_scoring(scorer, judge, method)
    path = calibration_path(target, draft, way)
    options = "--scorer likelihood" if scorer == "likelihood" else f"--score-method {method}"
    if scorer == "judge" and judge != "auto":
        options += f" --judge {judge}"
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SettingsError(
            f"There is no calibration of {target} with drafts by {draft} and {way} scores. Make one with `speclrm "
            f"calibrate {target} --draft {draft} {options}`, or give --score-threshold a number."
        ) from None
    except ValidationError as error:
        raise SettingsError(f"{path} is not a calibration. Delete it and run `speclrm calibrate` again.") from error
    if found.promise is not None:
        return Kept(found.threshold, found.promise.reason)
    return Kept(found.threshold, f"it keeps {found.acceptance:.0%} of the drafts; what it costs was not checked")
