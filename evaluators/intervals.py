"""The intervals of a run's figures, by problem over its repeats."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from speclrm.evaluators.statistics import Intervals, Part, mean_interval, share_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from speclrm.evaluators.metrics import RunSummary, SampleRow


def intervals(rows: Sequence[SampleRow]) -> Intervals:
    """Those of finished samples."""
    graded = [row for row in rows if row.outcome != "ungraded"]
    return Intervals(
        problems=len({row.problem for row in rows}),
        accuracy=share_interval(by_problem(graded, lambda row: (row.outcome == "correct", 1))),
        acceptance=share_interval(by_problem(rows, lambda row: (row.accepted, row.accepted + row.rejected))),
        # Rows of older versions do not say what was generated for them.
        tokens=mean_interval(by_problem(rows, lambda row: (sum(row.generated.values()), 1)))
        if all(row.generated for row in rows)
        else None,
        seconds=mean_interval(by_problem(rows, lambda row: (row.seconds, 1))),
    )


def with_intervals(summary: RunSummary) -> RunSummary:
    """The summary with the intervals of its samples, which a fold leaves out while a run goes on."""
    if summary.intervals is not None or not summary.samples:
        return summary
    return summary.model_copy(update={"intervals": intervals(summary.samples)})


def by_problem(rows: Iterable[SampleRow], counts: Callable[[SampleRow], tuple[float, float]]) -> list[Part]:
    """The sums over each problem's samples of what ``counts`` says of one, in the order of the problems."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        top, bottom = counts(row)
        sums[row.problem][0] += top
        sums[row.problem][1] += bottom
    return [Part(top, bottom) for top, bottom in sums.values()]
