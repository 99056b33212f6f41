"""A judge's scores and the threshold drawn from them, kept for each pair of models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from speclrm.runtime import models
from speclrm.runtime.errors import SettingsError
from speclrm.strategies.prompts import AUTO_LAYOUT, JudgeLayout
from speclrm.strategies.scoring import ScoreMethod, Scorer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Calibration(BaseModel):
    """What a judge's scores look like, and the threshold drawn from them.

    ``scores``: of drafted steps, on the scorer's scale, sorted, in contexts as a run with about this threshold has them.
    ``acceptance``: the share of them that the threshold keeps. ``mass``: the mean probability that the judge gave to
    digits; far below one, it does not understand the question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = 1
    target: str
    draft: str
    score_method: ScoreMethod
    scorer: Scorer = "judge"
    judge: JudgeLayout = "auto"
    threshold: float
    acceptance: float
    scores: tuple[float, ...]
    mass: float


def choose_threshold(scores: Sequence[float], acceptance: float) -> tuple[float, float]:
    """The threshold, among the scores seen, whose kept share comes nearest to the one asked for; and that share.

    ``scores`` is sorted. A threshold that keeps all or nothing is taken only where there is no other.
    """
    candidates: dict[float, float] = {}
    for index, score in enumerate(scores):
        candidates.setdefault(score, (len(scores) - index) / len(scores))
    partial = {score: share for score, share in candidates.items() if share < 1.0} or candidates
    threshold = min(partial, key=lambda score: (abs(partial[score] - acceptance), score))
    return threshold, partial[threshold]


def way_of_scoring(scorer: Scorer, judge: JudgeLayout, method: ScoreMethod) -> str:
    """What a threshold holds for: the scores of another way are different numbers."""
    if scorer == "likelihood":
        return scorer
    layout = AUTO_LAYOUT if judge == "auto" else judge
    return method if layout == "turn" else f"{layout}-{method}"


def calibration_path(target: str, draft: str, way: str) -> Path:
    """Where the threshold for a pair of models and a way of scoring is kept."""
    names = [re.sub(r"[^\w.-]+", "--", name.removeprefix("vllm/")).strip("-") for name in (target, draft)]
    return models.cache_dir() / "calibrations" / f"{names[0]}__{names[1]}__{way}.json"


def keep(calibration: Calibration) -> None:
    """Writes the calibration where ``kept_threshold`` finds it, whole or not at all."""
    way = way_of_scoring(calibration.scorer, calibration.judge, calibration.score_method)
    path = calibration_path(calibration.target, calibration.draft, way)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def kept_threshold(target: str, draft: str, *, scorer: Scorer, judge: JudgeLayout, method: ScoreMethod) -> float:
    """The threshold that an earlier calibration kept. Raises SettingsError where there was none."""
    way = way_of_scoring(scorer, judge, method)
    path = calibration_path(target, draft, way)
    options = "--scorer likelihood" if scorer == "likelihood" else f"--score-method {method}"
    if scorer == "judge" and judge != "auto":
        options += f" --judge {judge}"
    try:
        return Calibration.model_validate_json(path.read_bytes()).threshold
    except FileNotFoundError:
        raise SettingsError(
            f"There is no calibration of {target} with drafts by {draft} and {way} scores. Make one with `speclrm "
            f"calibrate {target} --draft {draft} {options}`, or give --score-threshold a number."
        ) from None
    except ValidationError as error:
        raise SettingsError(f"{path} is not a calibration. Delete it and run `speclrm calibrate` again.") from error
