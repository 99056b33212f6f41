"""What a run came to: a fold over its events, the same while it runs and from its trace."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import comb
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from speclrm.runtime.events import (
    Event,
    MethodsChosen,
    OperationDropped,
    Outcome,
    RunFinished,
    RunStarted,
    SampleEvent,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepGated,
    StepScored,
    StepWritten,
    TrackFinished,
)
from speclrm.runtime.state import SampleState, TrackState, apply

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from speclrm.runtime.events import Operation

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
    """One line of ``results.jsonl``. ``votes``: answers with the tracks that gave them, as grouped by the vote."""

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


class TokenCounts(_Model):
    """Tokens of one model. ``generated`` = kept + rejected + dropped + judge + choice.

    ``kept``: in committed steps. ``rejected``: drafted, then rewritten. ``dropped``: given up before its end, blank, cut
    off behind a step's end, or written for a step that was never committed. ``judge``: scores. ``choice``: replies that
    chose methods. ``prompt`` counts every
    request's whole context, of which ``cached`` had been computed before. ``forced``: not generated but put into the
    text to ask for an answer.
    """

    kept: int = 0
    rejected: int = 0
    dropped: int = 0
    judge: int = 0
    choice: int = 0
    generated: int = 0
    prompt: int = 0
    cached: int = 0
    forced: int = 0


class PhaseTime(_Model):
    """Sums over requests, which run side by side: more seconds than the clock shows. ``mean_s``: of one request."""

    requests: int = 0
    queue_s: float = 0.0
    engine_s: float = 0.0

    @property
    def mean_s(self) -> float:
        return self.engine_s / self.requests if self.requests else 0.0


class RunSummary(_Model):
    """The form of ``summary.json``.

    ``acceptance``: accepted steps among those drafted and decided, None where nothing was drafted;
    ``token_acceptance``: the same in tokens. ``scores``: how many scores rounded to 0..9. ``digit_mass``: the mean
    probability that the judge gave to digits at all. ``seconds``: of the run; ``busy_s``: of each engine.
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
        self._tokens: dict[str, Counter[str]] = defaultdict(Counter)
        self._phases: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        self._pending: dict[tuple[str, int, str], tuple[StepDrafted | StepWritten, int]] = {}
        self._count: Counter[str] = Counter()
        self._scores = [0] * 10
        self._mass = 0.0
        self._likelihood = 0.0
        self._run = RunStarted(run="", started="", config={}, versions={}, machine={})
        self._end: RunFinished | None = None
        self._t = 0.0

    def add(self, event: Event) -> None:
        self._t = event.t
        if isinstance(event, RunStarted):
            self._run = event
        elif isinstance(event, RunFinished):
            self._end = event
            for key in list(self._pending):
                self._forget(key, "dropped")
        if isinstance(event, SampleEvent):
            sample = event.problem, event.repeat
            state = self.states.get(sample) or SampleState(event.problem, event.repeat)
            self.states[sample] = apply(state, event)
            self._fold(event, sample)

    def _fold(self, event: SampleEvent, sample: tuple[str, int]) -> None:
        match event:
            case MethodsChosen() if event.operations:
                self._spend("target", "choose", event.operations)
                self._tokens["target"]["choice"] += sum(op.output_tokens for op in event.operations)
            case StepDrafted():
                key = (*sample, event.track)
                self._forget(key, "dropped")
                self._spend("draft", "draft", event.operations)
                self._pending[key] = event, sum(op.output_tokens for op in event.operations)
                self._count["drafted"] += 1
            case StepWritten():
                key = (*sample, event.track)
                if event.write_kind == "rewrite":
                    before = self._pending.get(key)
                    if before is not None and isinstance(before[0], StepDrafted):
                        self._count["rejected_tokens"] += before[1]
                        self._count["rejected"] += 1
                    self._forget(key, "rejected")
                else:
                    self._forget(key, "dropped")
                self._spend("target", event.write_kind, event.operations)
                self._pending[key] = event, sum(op.output_tokens for op in event.operations)
            case StepScored():
                self._spend("target", "score", event.operations)
                self._tokens["target"]["judge"] += sum(op.output_tokens for op in event.operations)
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
                self._commit(event, (*sample, event.track))
            case OperationDropped():
                self._spend(event.role, event.purpose, (event.operation,))
                fate = "judge" if event.purpose == "score" else "dropped"
                self._tokens[event.role][fate] += event.operation.output_tokens
            case TrackFinished():
                self._forget((*sample, event.track), "dropped")
                if event.error is not None:
                    self._errors[(*sample, event.track)] = event.error
            case SampleFinished():
                self._rows[sample] = self._row(self.states[sample], event)
                self.states[sample] = _without_text(self.states[sample])
            case _:
                pass

    def _commit(self, event: StepCommitted, key: tuple[str, int, str]) -> None:
        pending = self._pending.pop(key, None)
        if pending is None:
            return
        _, spent = pending
        role = "draft" if event.origin == "draft" else "target"
        # What a request brought behind the step's end, or before it as blank pieces, was not kept.
        kept = min(spent, event.tokens)
        self._tokens[role]["kept"] += kept
        self._tokens[role]["dropped"] += spent - kept
        self._tokens[role]["forced"] += event.tokens - kept
        match event.origin:
            case "draft":
                self._count["accepted"] += 1
                self._count["accepted_tokens"] += spent
            case "rewrite":
                self._count["rewritten"] += 1
            case "write":
                self._count["written"] += 1
            case "closing":
                self._count["closings"] += 1

    def _forget(self, key: tuple[str, int, str], fate: str) -> None:
        """The pending step of a track will not be committed."""
        if (pending := self._pending.pop(key, None)) is not None:
            role = "draft" if isinstance(pending[0], StepDrafted) else "target"
            self._tokens[role][fate] += pending[1]

    def _spend(self, role: str, purpose: str, operations: Sequence[Operation]) -> None:
        counts, phase = self._tokens[role], self._phases[purpose]
        for operation in operations:
            counts["generated"] += operation.output_tokens
            counts["prompt"] += operation.prompt_tokens
            counts["cached"] += operation.cached_tokens
            phase[0] += operation.prompt_tokens > 0  # shares of one request carry its prompt once
            phase[1] += operation.queue_s
            phase[2] += operation.engine_s

    def _row(self, state: SampleState, event: SampleFinished) -> SampleRow:
        key = event.problem, event.repeat
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
        )

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
        decided = self._count["accepted"] + self._count["rejected"]
        decided_tokens = self._count["accepted_tokens"] + self._count["rejected_tokens"]
        return RunSummary(
            run=self._run.run,
            status=self._end.status if self._end else "running",
            error=self._end.error if self._end else None,
            samples=tuple(self._rows.values()),
            outcomes=dict(outcomes),
            accuracy=outcomes["correct"] / graded if graded else None,
            drafted=self._count["drafted"],
            accepted=self._count["accepted"],
            rewritten=self._count["rewritten"],
            written=self._count["written"],
            closings=self._count["closings"],
            acceptance=self._count["accepted"] / decided if decided else None,
            token_acceptance=self._count["accepted_tokens"] / decided_tokens if decided_tokens else None,
            scores=tuple(self._scores),
            digit_mass=self._mass / self._count["scored"] if self._count["scored"] else None,
            likelihood=self._likelihood / self._count["read"] if self._count["read"] else None,
            sure=self._count["sure"],
            doubtful=self._count["doubtful"],
            tokens={role: TokenCounts(**counts) for role, counts in sorted(self._tokens.items())},
            phases={
                name: PhaseTime(requests=int(requests), queue_s=round(queue_s, 6), engine_s=round(engine_s, 6))
                for name, (requests, queue_s, engine_s) in sorted(self._phases.items())
            },
            seconds=self._end.seconds if self._end else self._t,
            busy_s=self._end.busy_s if self._end else {},
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
