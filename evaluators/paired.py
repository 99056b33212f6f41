"""Compares two runs pair by pair: the samples of the same problem and repeat."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from speclrm.evaluators.intervals import by_problem
from speclrm.evaluators.statistics import (
    Interval,
    Part,
    difference_interval,
    mcnemar,
    problems_to_settle,
    ratio_interval,
    sign_flips,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speclrm.evaluators.metrics import SampleRow

    Pairs = Sequence[tuple[SampleRow, SampleRow]]

Cost = Literal["tokens", "target_tokens", "decode_flops", "all_flops", "seconds"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(_Model):
    """``base`` and ``other``: correct among the ``pairs`` of which both samples are graded, 0 to 1. ``difference``: other less
    base, over problems, with its interval. ``both``, ``only_base``, ``only_other``, ``neither``: pairs by who is right.

    ``mcnemar``: the p-value of the exact test over pairs. ``p``: the one to go by: the same where a problem has one pair, else
    that of flipping the signs of the problems' differences, since a problem's repeats are no pairs of their own. ``settle``:
    how many problems would show a difference of this size, as likely as 80 %; None where there is none.
    """

    pairs: int
    problems: int
    base: float
    other: float
    difference: Interval
    both: int
    only_base: int
    only_other: int
    neither: int
    mcnemar: float
    p: float
    settle: int | None


class CostRatio(_Model):
    """``base`` and ``other``: the mean of a sample. ``ratio``: of other to base, with its interval; under 1 is less. ``settle``:
    as for the accuracy, of the difference of the means.
    """

    cost: Cost
    base: float
    other: float
    ratio: Interval | None
    settle: int | None


class Differing(_Model):
    """A problem that one side has right more often than the other, of ``pairs``; those that differ most come first. The answers
    stand in the order of repeats.
    """

    problem: str
    pairs: int
    base_right: int
    other_right: int
    base_answers: tuple[str | None, ...]
    other_answers: tuple[str | None, ...]


class Paired(_Model):
    """Two runs, pair by pair. ``accuracy``: None where no pair is graded. ``costs``: those that both runs tell of."""

    problems: int
    pairs: int
    accuracy: Accuracy | None
    costs: tuple[CostRatio, ...]
    differing: tuple[Differing, ...]


def paired(pairs: Pairs, *, times: bool = True) -> Paired:
    """Compares the second of each pair with the first. ``times``: whether their seconds mean the same."""
    return Paired(
        problems=len({base.problem for base, _ in pairs}),
        pairs=len(pairs),
        accuracy=_accuracy([pair for pair in pairs if "ungraded" not in (pair[0].outcome, pair[1].outcome)]),
        costs=tuple(_costs(pairs, times=times)),
        differing=tuple(_differing(pairs)),
    )


def _right(row: SampleRow) -> bool:
    return row.outcome == "correct"


def _accuracy(pairs: Pairs) -> Accuracy | None:
    if not pairs:
        return None
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for base, other in pairs:
        sums[base.problem][0] += _right(other) - _right(base)
        sums[base.problem][1] += 1
    parts = [Part(difference, count) for difference, count in sums.values()]
    found = difference_interval(parts)
    assert found is not None
    only_base = sum(_right(base) and not _right(other) for base, other in pairs)
    only_other = sum(_right(other) and not _right(base) for base, other in pairs)
    both = sum(_right(base) and _right(other) for base, other in pairs)
    exact = mcnemar(only_base, only_other)
    single = all(part.bottom == 1 for part in parts)
    return Accuracy(
        pairs=len(pairs),
        problems=len(parts),
        base=(both + only_base) / len(pairs),
        other=(both + only_other) / len(pairs),
        difference=found,
        both=both,
        only_base=only_base,
        only_other=only_other,
        neither=len(pairs) - both - only_base - only_other,
        mcnemar=exact,
        p=exact if single else sign_flips([part.top for part in parts]),
        settle=problems_to_settle(parts, found.value),
    )


def _costs(pairs: Pairs, *, times: bool) -> list[CostRatio]:
    of: dict[Cost, Callable[[SampleRow], float | None]] = {
        "tokens": lambda row: sum(row.generated.values()) if row.generated else None,
        "target_tokens": lambda row: row.generated.get("target", 0) if row.generated else None,
        "decode_flops": lambda row: row.decode_flops,
        "all_flops": lambda row: row.all_flops,
    }
    if times:
        of["seconds"] = lambda row: row.seconds
    found: list[CostRatio] = []
    for name, cost in of.items():
        known = [(one, two) for base, other in pairs if None not in (one := cost(base), two := cost(other))]
        if len(known) < len(pairs) or not pairs:
            continue  # a mean over those that tell would be of other samples than the rest of the table
        below = by_problem([base for base, _ in pairs], lambda row, cost=cost: (cost(row) or 0, 1))
        above = by_problem([other for _, other in pairs], lambda row, cost=cost: (cost(row) or 0, 1))
        parts = [Part(top.top, bottom.top) for top, bottom in zip(above, below, strict=True)]
        moved = [Part(top.top - bottom.top, bottom.bottom) for top, bottom in zip(above, below, strict=True)]
        found.append(
            CostRatio(
                cost=name,
                base=sum(part.top for part in below) / len(pairs),
                other=sum(part.top for part in above) / len(pairs),
                ratio=ratio_interval(parts),
                settle=problems_to_settle(moved, sum(part.top for part in moved) / len(pairs)),
            )
        )
    return found


def _differing(pairs: Pairs) -> list[Differing]:
    of: dict[str, list[tuple[SampleRow, SampleRow]]] = defaultdict(list)
    for pair in pairs:
        if "ungraded" not in (pair[0].outcome, pair[1].outcome):
            of[pair[0].problem].append(pair)
    found = [
        Differing(
            problem=problem,
            pairs=len(some),
            base_right=sum(_right(base) for base, _ in some),
            other_right=sum(_right(other) for _, other in some),
            base_answers=tuple(base.answer for base, _ in some),
            other_answers=tuple(other.answer for _, other in some),
        )
        for problem, some in of.items()
    ]
    moved = [one for one in found if one.base_right != one.other_right]
    return sorted(moved, key=lambda one: -abs(one.base_right - one.other_right) / one.pairs)
