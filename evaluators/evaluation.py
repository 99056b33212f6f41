"""Evaluates runs side by side: runs of one configuration are taken together, others stand apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from speclrm.evaluators.intervals import intervals
from speclrm.evaluators.metrics import pass_at_k
from speclrm.evaluators.statistics import Interval, Intervals, Part, share_interval
from speclrm.runtime.ledger import PhaseTime, TokenCounts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from pydantic import JsonValue

    from speclrm.evaluators.metrics import RunSummary, SampleRow

SCHEMA_VERSION = 1
PASS_AT_MAX = 16
"""pass@k is given for each k up to here, then for powers of two."""


@dataclass(frozen=True, slots=True)
class RunResults:
    """One run as read from its trace. ``finished``: whether the trace has its end."""

    directory: str
    config: dict[str, JsonValue]
    summary: RunSummary
    finished: bool
    track_rewrites: tuple[float, ...]
    """Of each track that was speculated on: rewritten steps among its steps, 0 to 1."""


class RepeatAccuracy(BaseModel):
    """``correct`` of ``graded`` samples with this repeat number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repeat: int
    correct: int
    graded: int
    accuracy: float


class Comparison(BaseModel):
    """Ratios to the baseline ``to``; under 1 is less than it took. None where one side does not tell, and all of them where
    ``refused`` says why the two are not of the same work.

    ``chain_length``: of the mean lengths. ``decode_flops``, ``all_flops``: a sample; None also where a run is unfinished,
    whose operations belong to samples that are not counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: str
    chain_length: float | None
    decode_flops: float | None
    all_flops: float | None
    refused: str | None = None


class Evaluation(BaseModel):
    """Runs of one configuration. Shares are 0 to 1; times are seconds.

    ``accuracy``: correct among graded samples; whatever has no right answer is not correct. ``solved``: problems with at
    least one correct sample. ``pass_at``: the unbiased estimator of Chen et al. 2021, mean over problems, up to the
    fewest samples that any problem has. ``majority``: the vote over the samples of each problem, ties split evenly.
    ``rewrite_rate``: rewritten among decided steps; ``track_rewrite_rate``: the mean of the tracks' own rates, as SSR's
    code reports it. ``scores``: how many scores rounded to 0..9. ``chain_length``, over ``chains`` tracks, and the
    floating-point operations as in a run's summary; these are None where a run does not tell a model's size. ``compared``:
    beside a baseline among what was evaluated together. Intervals: 95 %, by problem over its samples (docs/statistics.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    strategy: str
    dataset: str
    target: str
    draft: str | None
    recipe: dict[str, Any]
    reproduce_fault: tuple[str, ...] = ()
    runs: tuple[str, ...]
    unfinished: tuple[str, ...]
    problems: int
    samples: int
    graded: int
    outcomes: dict[str, int]
    accuracy: float | None
    by_repeat: tuple[RepeatAccuracy, ...]
    solved: int
    pass_at: dict[int, float]
    majority: float | None
    acceptance: float | None
    token_acceptance: float | None
    rewrite_rate: float | None
    track_rewrite_rate: float | None
    scores: tuple[int, ...]
    tokens: dict[str, TokenCounts]
    phases: dict[str, PhaseTime]
    seconds: float
    sample_seconds: float | None
    chains: int
    chain_length: float | None
    decode_flops: int | None
    all_flops: int | None
    compared: Comparison | None = None
    intervals: Intervals | None = None
    pass_at_intervals: dict[int, Interval] = {}
    majority_interval: Interval | None = None


def grouped(runs: Iterable[RunResults], key: Callable[[dict[str, JsonValue]], str]) -> list[list[RunResults]]:
    """Returns the runs of each configuration, in the order in which configurations were found. ``key``: equal for equal ones."""
    groups: dict[str, list[RunResults]] = {}
    for run in runs:
        groups.setdefault(key(run.config), []).append(run)
    return list(groups.values())


async def evaluate(runs: Sequence[RunResults], same: Callable[[str, str], Awaitable[bool]]) -> Evaluation:
    """Returns the runs of one configuration together. ``same``: whether two answers mean the same."""
    rows = [row for run in runs for row in run.summary.samples]
    graded = [row for row in rows if row.outcome != "ungraded"]
    correct = [row for row in graded if row.outcome == "correct"]
    grouped_rows: dict[str, list[SampleRow]] = defaultdict(list)
    for row in graded:
        grouped_rows[row.problem].append(row)
    by_problem = list(grouped_rows.values())
    majorities = [await _majority(some, same) for some in by_problem]
    pass_at = _pass_at(by_problem)
    config = runs[0].config
    summaries = [run.summary for run in runs]
    accepted = sum(summary.accepted for summary in summaries)
    rewritten = sum(summary.rewritten for summary in summaries)
    track_rates = [rate for run in runs for rate in run.track_rewrites]
    recipe = config.get("recipe")
    faults = config.get("reproduce_fault") or []
    return Evaluation(
        strategy=str(config.get("strategy")),
        dataset=str(config.get("dataset")),
        target=str(config.get("target")),
        draft=None if config.get("draft") is None else str(config["draft"]),
        recipe=recipe if isinstance(recipe, dict) else {},
        reproduce_fault=tuple(map(str, faults)) if isinstance(faults, list) else (),
        runs=tuple(run.directory for run in runs),
        unfinished=tuple(run.directory for run in runs if not run.finished),
        problems=len({row.problem for row in rows}),
        samples=len(rows),
        graded=len(graded),
        outcomes=dict(sorted(Counter(row.outcome for row in rows).items())),
        accuracy=len(correct) / len(graded) if graded else None,
        by_repeat=_by_repeat(graded),
        solved=len({row.problem for row in correct}),
        pass_at={k: sum(chances) / len(chances) for k, chances in pass_at.items()},
        majority=sum(majorities) / len(majorities) if majorities else None,
        acceptance=_weighted([(s.acceptance, s.drafted) for s in summaries]),
        token_acceptance=_weighted([(s.token_acceptance, s.drafted) for s in summaries]),
        rewrite_rate=rewritten / (accepted + rewritten) if accepted + rewritten else None,
        track_rewrite_rate=sum(track_rates) / len(track_rates) if track_rates else None,
        scores=tuple(map(sum, zip(*(summary.scores for summary in summaries), strict=True))),
        tokens=_tokens(summaries),
        phases=_phases(summaries),
        seconds=sum(summary.seconds for summary in summaries),
        sample_seconds=sum(row.seconds for row in rows) / len(rows) if rows else None,
        chains=sum(summary.chains for summary in summaries),
        chain_length=_weighted([(s.chain_length, s.chains) for s in summaries]),
        decode_flops=_sum([summary.decode_flops for summary in summaries]),
        all_flops=_sum([summary.all_flops for summary in summaries]),
        intervals=intervals(rows) if rows else None,
        pass_at_intervals={
            k: found for k, chances in pass_at.items() if (found := share_interval([Part(one, 1) for one in chances]))
        },
        majority_interval=share_interval([Part(one, 1) for one in majorities]),
    )


def _by_repeat(graded: Sequence[SampleRow]) -> tuple[RepeatAccuracy, ...]:
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for row in graded:
        counts[row.repeat][0] += row.outcome == "correct"
        counts[row.repeat][1] += 1
    return tuple(
        RepeatAccuracy(repeat=repeat, correct=right, graded=total, accuracy=right / total)
        for repeat, (right, total) in sorted(counts.items())
    )


def _pass_at(problems: Sequence[Sequence[SampleRow]]) -> dict[int, list[float]]:
    """For each k, the chance of each problem."""
    if not problems:
        return {}
    fewest = min(map(len, problems))
    wanted = [k for k in range(1, fewest + 1) if k <= PASS_AT_MAX or k & (k - 1) == 0]
    return {
        k: [pass_at_k(len(rows), sum(row.outcome == "correct" for row in rows), k) for rows in problems] for k in wanted
    }


async def _majority(rows: Sequence[SampleRow], same: Callable[[str, str], Awaitable[bool]]) -> float:
    """Whether the vote over a problem's samples is right, 0 or 1; in between where the leaders are as many."""
    classes: list[list[SampleRow]] = []
    for row in rows:
        if row.answer is None:
            continue
        for members in classes:
            if await same(members[0].answer or "", row.answer):
                members.append(row)
                break
        else:
            classes.append([row])
    most = max(map(len, classes), default=0)
    leaders = [members for members in classes if len(members) == most]
    if not leaders:
        return 0.0
    return sum(any(row.outcome == "correct" for row in members) for members in leaders) / len(leaders)


def _weighted(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in pairs if value is not None and weight]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _tokens(summaries: Sequence[RunSummary]) -> dict[str, TokenCounts]:
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for summary in summaries:
        for role, counts in summary.tokens.items():
            sums[role].update(counts.model_dump())
    return {role: TokenCounts(**counts) for role, counts in sorted(sums.items())}


def _phases(summaries: Sequence[RunSummary]) -> dict[str, PhaseTime]:
    names = sorted({name for summary in summaries for name in summary.phases})
    return {
        name: PhaseTime(
            requests=sum(phase.requests for phase in phases),
            queue_s=sum(phase.queue_s for phase in phases),
            engine_s=sum(phase.engine_s for phase in phases),
        )
        for name in names
        for phases in [[summary.phases[name] for summary in summaries if name in summary.phases]]
    }
