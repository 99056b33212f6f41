"""Splits how much faster one run was than another into its causes. docs/statistics.md derives the formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from speclrm.evaluators.metrics import RunSummary

DECODING = ("write", "rewrite", "closing")
"""The phases in which the target writes."""


class Work(BaseModel):
    """What made a run take its ``seconds`` = ``tracks`` x ``chain`` x ``work`` / ``rate``.

    ``tracks``: of all samples. ``chain``: tokens in committed steps, of one of them. ``work``: seconds of requests for one such
    token, in units of ``target_token_s``, the target's own seconds for a token that it writes: 1 where the target writes alone
    and nothing is thrown away. ``rate``: such units of work that were done in a second of the run, side by side.
    ``side_by_side``: requests in the engines at a time, on average.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    tracks: int
    chain: float
    work: float
    rate: float
    target_token_s: float
    side_by_side: float


class Split(BaseModel):
    """How many times as fast as the base a run was: ``total`` = ``chains`` x ``speculation`` x ``schedule`` x ``tracks``; under 1
    is slower.

    ``chains``: fewer kept tokens a track. ``speculation``: less work for a kept token: cheap drafts, less what is thrown away
    and what scores take. ``schedule``: more work done in a second: more side by side, or by faster engines. ``tracks``: fewer of
    them; 1 where both have as many. ``decode_flops`` and ``all_flops``: the base's operations by the run's, None where unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: float
    chains: float
    speculation: float
    schedule: float
    tracks: float
    decode_flops: float | None
    all_flops: float | None
    base: Work
    other: Work


def split(base: RunSummary, other: RunSummary) -> Split | None:
    """Of two whole runs of the same samples; None where one of them kept nothing, or its target wrote nothing."""
    one, two = work(base), work(other)
    if one is None or two is None:
        return None
    return Split(
        total=one.seconds / two.seconds,
        chains=one.chain / two.chain,
        speculation=one.work / two.work,
        schedule=two.rate / one.rate,
        tracks=one.tracks / two.tracks,
        decode_flops=_ratio(base.decode_flops, other.decode_flops),
        all_flops=_ratio(base.all_flops, other.all_flops),
        base=one,
        other=two,
    )


def work(summary: RunSummary) -> Work | None:
    """The work of a run, by its ledger; None where that does not say."""
    target = summary.tokens.get("target")
    kept = sum(counts.kept for counts in summary.tokens.values())
    busy_s = sum(phase.engine_s for phase in summary.phases.values())
    wrote = target.generated - target.judge - target.choice if target else 0
    wrote_s = sum(summary.phases[name].engine_s for name in DECODING if name in summary.phases)
    tracks = sum(len(row.tracks) for row in summary.samples)
    if not kept or not tracks or wrote <= 0 or min(wrote_s, busy_s, summary.seconds) <= 0:
        return None
    token_s = wrote_s / wrote
    return Work(
        seconds=summary.seconds,
        tracks=tracks,
        chain=kept / tracks,
        work=busy_s / token_s / kept,
        rate=busy_s / token_s / summary.seconds,
        target_token_s=token_s,
        side_by_side=busy_s / summary.seconds,
    )


def _ratio(base: int | None, other: int | None) -> float | None:
    return base / other if base is not None and other else None
