"""Compares what a configuration costs with plain decoding by the same target on the same problems: ratios to a baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.evaluators.evaluation import Comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speclrm.evaluators.evaluation import Evaluation

BASELINES = ("baseline", "parallel")
"""Strategies in which the target thinks alone."""


def compared(
    evaluations: Sequence[Evaluation],
    tasks: Sequence[str] | None = None,
    refused: Callable[[int, int], str | None] = lambda one, other: None,
) -> list[Evaluation]:
    """Returns the evaluations, each beside the first of a baseline with the same task, if there is one.

    ``tasks``: a key for each evaluation, equal for those that can be set side by side; by default dataset and target.
    ``refused``: why an evaluation and its baseline, by their places, are not of the same work; None if they are.
    """
    keys = tasks or [f"{one.dataset} {one.target}" for one in evaluations]
    first: dict[str, int] = {}
    for place, (key, one) in enumerate(zip(keys, evaluations, strict=True)):
        if one.strategy in BASELINES:
            first.setdefault(key, place)
    found: list[Evaluation] = []
    for place, (key, one) in enumerate(zip(keys, evaluations, strict=True)):
        base = first.get(key, place)
        if base != place:
            one = one.model_copy(update={"compared": _compare(one, evaluations[base], refused(place, base))})
        found.append(one)
    return found


def _compare(one: Evaluation, other: Evaluation, refused: str | None) -> Comparison:
    if refused is not None:
        return Comparison(to=other.runs[0], chain_length=None, decode_flops=None, all_flops=None, refused=refused)
    whole = not one.unfinished and not other.unfinished
    return Comparison(
        to=other.runs[0],
        chain_length=_ratio(one.chain_length, other.chain_length),
        decode_flops=_ratio(_each(one.decode_flops, one), _each(other.decode_flops, other)) if whole else None,
        all_flops=_ratio(_each(one.all_flops, one), _each(other.all_flops, other)) if whole else None,
    )


def _each(flops: int | None, one: Evaluation) -> float | None:
    return flops / one.samples if flops is not None and one.samples else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
