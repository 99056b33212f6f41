"""A judge's scores and the threshold drawn from them, kept for each pair of models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from speclrm.runtime import models
from speclrm.runtime.errors import SettingsError
from speclrm.strategies.scoring import ScoreMethod

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Calibration(BaseModel):
    """What a judge's scores look like, and the threshold drawn from them.

    ``scores``: of drafted steps, 0 to 9, sorted, in contexts as a run with about this threshold has them.
    ``acceptance``: the share of them that the threshold keeps. ``mass``: the mean probability that the judge gave to
    digits; far below one, it does not understand the question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = 1
    target: str
    draft: str
    score_method: ScoreMethod
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


def calibration_path(target: str, draft: str, method: str) -> Path:
    """Where the threshold for a pair of models is kept."""
    names = [re.sub(r"[^\w.-]+", "--", name.removeprefix("vllm/")).strip("-") for name in (target, draft)]
    return models.cache_dir() / "calibrations" / f"{names[0]}__{names[1]}__{method}.json"


def keep(calibration: Calibration) -> None:
    """Writes the calibration where ``kept_threshold`` finds it, whole or not at all."""
    path = calibration_path(calibration.target, calibration.draft, calibration.score_method)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def kept_threshold(target: str, draft: str, method: str) -> float:
    """The threshold that an earlier calibration kept. Raises SettingsError where there was none."""
    path = calibration_path(target, draft, method)
    try:
        return Calibration.model_validate_json(path.read_bytes()).threshold
    except FileNotFoundError:
        raise SettingsError(
            f"There is no calibration of {target} with drafts by {draft} and {method} scores. Make one with `speclrm "
            f"calibrate {target} --draft {draft} --score-method {method}`, or give --score-threshold a number 0 to 9."
        ) from None
    except ValidationError as error:
        raise SettingsError(f"{path} is not a calibration. Delete it and run `speclrm calibrate` again.") from error
