"""What a run came to: a fold over its events, the same while it runs and from its trace."""

from __future__ import annotations

from collections import Counter
from math import comb
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from speclrm.evaluators.statistics import Intervals
from speclrm.runtime.events import (
    Event,
    ModeChanged,
    Outcome,
    RunFinished,
    RunResumed,
    RunStarted,
    SampleEvent,
    SampleFinished,
    StepCommitted,
    StepGated,
    StepScored,
    TrackFinished,
    TrackResumed,
)
from speclrm.runtime.ledger import EngineUse, FlopCounts, Ledger, PhaseTime, TokenCounts
from speclrm.runtime.state import SampleState, TrackState, apply

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrackRow(_Model):
    track: str
    reason: str
    answer: str | None
    steps: int
    tokens: int
    mean_score: float | None
    error: str | None = None


class SampleRow(_Model):
    """One line of ``results.jsonl``. ``votes``: answers with the tracks that gave them, as grouped by the vote.

    ``tokens``: in committed steps; ``generated``: all that its requests came to, by role. ``accepted`` and ``rejected`` drafts,
    and floating-point operations, as in the summary.
    """

    schema_version: int = SCHEMA_VERSION
    problem: str
    repeat: int
    answer: str | None
    gold: str | None
    outcome: Outcome
    winner: str | None
    votes: tuple[tuple[str, tuple[str, ...]], ...]
    tracks: tuple[TrackRow, ...]
    tokens: int
    seconds: float
    generated: dict[str, int] = Field(default_factory=dict)
    accepted: int = 0
    rejected: int = 0
    decode_flops: int | None = None
    all_flops: int | None = None

    def decided(self) -> str:
        """Returns the row as JSON without what it took: what a replay comes to again, also after a break threw work away."""
        return self.model_dump_json(exclude={"generated", "accepted", "rejected", "decode_flops", "all_flops"})


class ModeCounts(_Model):
    """What the break-even controller made of the steps. ``speculated``: committed steps that were drafted first, of them
    ``eager`` while work ahead of scores was allowed; ``written``: those that it left to the target alone. ``changes``: how
    often a track changed its mode.
    """

    speculated: int = 0
    eager: int = 0
    written: int = 0
    changes: int = 0


class RunSummary(_Model):
    """The form of ``summary.json``.

    ``acceptance``: accepted steps among those drafted and decided, None where nothing was drafted;
    ``token_acceptance``: the same in tokens. ``scores``: how many scores rounded to 0..9. ``digit_mass``: the mean
    probability that the judge gave to digits at all. ``seconds``: of the run; ``busy_s``: of each engine.
    ``discarded_drafts``: the share of the draft's tokens that was thrown away, 0 to 1; ``draft_share``: of all kept tokens
    those by the draft. ``chains``: tracks with an answer; ``chain_length``: their mean tokens generated and kept. ``flops``:
    by role, where the parameters are known; ``decode_flops`` and ``all_flops``: of both, None where one is not known.
    ``deferred``: how often a track gave its room to older ones. Formulas: docs/ledger.md. ``intervals``: in what is written
    and shown at a run's end (docs/statistics.md).
    """

    schema_version: int = SCHEMA_VERSION
    run: str = ""
    status: str = "running"
    error: str | None = None
    samples: tuple[SampleRow, ...] = ()
    outcomes: dict[str, int] = {}
    accuracy: float | None = None
    drafted: int = 0
    accepted: int = 0
    rewritten: int = 0
    written: int = 0
    closings: int = 0
    acceptance: float | None = None
    token_acceptance: float | None = None
    scores: tuple[int, ...] = (0,) * 10
    digit_mass: float | None = None
    likelihood: float | None = None
    sure: int = 0
    doubtful: int = 0
    tokens: dict[str, TokenCounts] = {}
    phases: dict[str, PhaseTime] = {}
    seconds: float = 0.0
    busy_s: dict[str, float] = {}
    engines: dict[str, EngineUse] = {}
    deferred: int = 0
    modes: ModeCounts = ModeCounts()
    discarded_drafts: float | None = None
    draft_share: float | None = None
    chains: int = 0
    chain_length: float | None = None
    flops: dict[str, FlopCounts] = {}
    decode_flops: int | None = None
    all_flops: int | None = None
    intervals: Intervals | None = None

    @property
    def tokens_per_s(self) -> dict[str, float]:
        """Generated tokens of each model over the whole run's time."""
        return {role: counts.generated / self.seconds for role, counts in self.tokens.items() if self.seconds > 0}


class Summary:
    """The fold itself: ``add`` each event, ask ``summary()`` at any time."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, int], SampleState] = {}
        self._rows: dict[tuple[str, int], SampleRow] = {}
        self._errors: dict[tuple[str, int, str], str] = {}
        self._ledger = Ledger()
        self._costs: dict[tuple[str, int], Ledger] = {}
        self._count: Counter[str] = Counter()
        self._scores = [0] * 10
        self._mass = 0.0
        self._likelihood = 0.0
        self._run = RunStarted(run="", started="", config={}, versions={}, machine={})
        self._end: RunFinished | None = None

    def add(self, event: Event) -> None:
        self._ledger.add(event)
        if isinstance(event, RunStarted):
            self._run = event
        elif isinstance(event, RunResumed):
            self._end = None
        elif isinstance(event, RunFinished):
            self._end = event
        if isinstance(event, SampleEvent):
            sample = event.problem, event.repeat
            state = self.states.get(sample) or SampleState(event.problem, event.repeat)
            self.states[sample] = apply(state, event)
            if (costs := self._costs.get(sample)) is None:
                costs = self._costs[sample] = Ledger()
            costs.add(event)
            self._fold(event, sample)

    def _fold(self, event: SampleEvent, sample: tuple[str, int]) -> None:
        match event:
            case StepScored():
                if event.scorer == "likelihood":
                    self._count["read"] += 1
                    self._likelihood += event.value
                else:
                    self._scores[min(9, max(0, round(event.value)))] += 1
                    self._count["scored"] += 1
                    self._mass += event.mass
            case StepGated():
                self._count[event.verdict] += 1
            case StepCommitted():
                self._count_mode(event, self.states[sample].tracks[event.track])
            case ModeChanged():
                self._count["changes"] += 1
            case TrackFinished() if event.error is not None:
                self._errors[(*sample, event.track)] = event.error
            case TrackResumed():
                self._errors.pop((*sample, event.track), None)
            case SampleFinished():
                self._rows[sample] = self._row(self.states[sample], event)
                self.states[sample] = _without_text(self.states[sample])
            case _:
                pass

    def _count_mode(self, event: StepCommitted, track: TrackState) -> None:
        if event.origin in ("draft", "rewrite"):
            self._count["speculated"] += 1
            self._count["eager"] += track.mode == "eager"
        elif event.origin == "write":
            self._count["left_to_target"] += track.mode == "write"

    def _row(self, state: SampleState, event: SampleFinished) -> SampleRow:
        key = event.problem, event.repeat
        costs = self._costs.pop(key)  # a sample is over with this
        steps, flops = costs.steps(), costs.all_flops(self._ledger.parameters)
        return SampleRow(
            problem=event.problem,
            repeat=event.repeat,
            answer=event.answer,
            gold=state.gold,
            outcome=event.outcome,
            winner=event.winner,
            votes=tuple((state.tracks[names[0]].answer or "", names) for names in state.classes),
            tracks=tuple(_track_row(track, self._errors.get((*key, track.track))) for track in state.tracks.values()),
            tokens=sum(track.tokens for track in state.tracks.values()),
            seconds=event.seconds,
            generated={role: counts.generated for role, counts in costs.tokens().items()},
            accepted=steps.accepted,
            rejected=steps.rejected,
            decode_flops=flops and flops.decode,
            all_flops=flops and flops.all,
        )

    def row(self, problem: str, repeat: int) -> SampleRow:
        """Of a finished sample. Raises KeyError for another."""
        return self._rows[problem, repeat]

    def track_rewrites(self) -> list[float]:
        """Of each track with drafted steps: the share of rewritten ones among accepted and rewritten, 0 to 1."""
        rates: list[float] = []
        for state in self.states.values():
            for track in state.tracks.values():
                origins = Counter(step.origin for step in track.steps)
                if decided := origins["draft"] + origins["rewrite"]:
                    rates.append(origins["rewrite"] / decided)
        return rates

    def summary(self) -> RunSummary:
        outcomes = Counter(row.outcome for row in self._rows.values())
        graded = sum(count for outcome, count in outcomes.items() if outcome != "ungraded")
        ledger = self._ledger
        steps, tokens, flops = ledger.steps(), ledger.tokens(), ledger.all_flops()
        draft = tokens.get("draft", TokenCounts())
        kept = sum(counts.kept for counts in tokens.values())
        return RunSummary(
            run=self._run.run,
            status=self._end.status if self._end else "running",
            error=self._end.error if self._end else None,
            samples=tuple(self._rows.values()),
            outcomes=dict(outcomes),
            accuracy=outcomes["correct"] / graded if graded else None,
            drafted=steps.drafted,
            accepted=steps.accepted,
            rewritten=steps.rewritten,
            written=steps.written,
            closings=steps.closings,
            acceptance=steps.acceptance,
            token_acceptance=steps.token_acceptance,
            scores=tuple(self._scores),
            digit_mass=self._mass / self._count["scored"] if self._count["scored"] else None,
            likelihood=self._likelihood / self._count["read"] if self._count["read"] else None,
            sure=self._count["sure"],
            doubtful=self._count["doubtful"],
            tokens=tokens,
            phases=ledger.phases(),
            seconds=ledger.seconds,
            busy_s=ledger.busy_s(),
            engines=ledger.engines(),
            deferred=ledger.deferred,
            modes=ModeCounts(
                speculated=self._count["speculated"],
                eager=self._count["eager"],
                written=self._count["left_to_target"],
                changes=self._count["changes"],
            ),
            discarded_drafts=draft.discarded,
            draft_share=draft.kept / kept if kept and steps.drafted else None,
            chains=ledger.chains,
            chain_length=ledger.chain_length,
            flops=ledger.flops(),
            decode_flops=flops and flops.decode,
            all_flops=flops and flops.all,
        )


def _without_text(state: SampleState) -> SampleState:
    """A finished sample's state without what its tracks wrote: a long run's texts are no load for its memory."""
    tracks = {
        name: track._replace(steps=tuple(step._replace(text="") for step in track.steps))
        for name, track in state.tracks.items()
    }
    return state._replace(tracks=MappingProxyType(tracks))


def summarize(events: Iterable[Event]) -> RunSummary:
    """The summary of a whole trace."""
    fold = Summary()
    for event in events:
        fold.add(event)
    return fold.summary()


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k attempts drawn from the samples is right.

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374): 1 - C(n - c, k) / C(n, k). Raises ValueError unless
    1 <= k <= samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of each problem; there are {samples}")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def _track_row(track: TrackState, error: str | None) -> TrackRow:
    return TrackRow(
        track=track.track,
        reason=track.reason or "",
        answer=track.answer,
        steps=len(track.steps),
        tokens=track.tokens,
        mean_score=track.mean_score,
        error=error,
    )
