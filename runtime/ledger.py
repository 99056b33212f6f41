"""Folds events into what a run cost: tokens by model and fate, requests by phase, FLOPs, idle engines, chain lengths.

A leaf: one fold over events, the same during a run and from its trace. docs/ledger.md has each figure's formula.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from operator import not_
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from speclrm.runtime.events import (
    EngineFacts,
    EngineFailed,
    EngineRecovered,
    EngineReport,
    Event,
    MethodsChosen,
    OperationDropped,
    RoleName,
    RunFinished,
    RunResumed,
    RunStarted,
    StepCommitted,
    StepDrafted,
    StepGated,
    StepScored,
    StepWritten,
    TrackFinished,
    TrackResumed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speclrm.runtime.events import Operation, TrackEvent

FLOPS_PER_PARAMETER = 2
"""Floating-point operations of a forward pass for each parameter and token: one multiplication and one addition. Kaplan
et al. 2020 (arXiv 2001.08361), section 2.1, without their term for attention over the context."""

_Track = tuple[str, int, str]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenCounts(_Model):
    """Tokens of one model. ``generated`` = kept + rejected + dropped + useless + judge + choice.

    ``kept``: in committed steps. ``rejected``: drafted, then rewritten or abandoned as doubtful. ``dropped``: aborted
    early, blank, cut off after a step's end, or written for a step that was never committed. ``useless``: made ahead
    and not needed. ``judge``: scores. ``choice``: replies that chose methods. ``prompt`` counts every request's whole
    context, of which ``cached`` had been computed before. ``forced``: not generated but inserted to ask for an answer.
    """

    kept: int = 0
    rejected: int = 0
    dropped: int = 0
    useless: int = 0
    judge: int = 0
    choice: int = 0
    generated: int = 0
    prompt: int = 0
    cached: int = 0
    forced: int = 0

    @property
    def cache_hit(self) -> float | None:
        """The share of prompt tokens that had been computed before, 0 to 1."""
        return self.cached / self.prompt if self.prompt else None

    @property
    def discarded(self) -> float | None:
        """The share of generated tokens that was thrown away, 0 to 1."""
        return (self.rejected + self.dropped + self.useless) / self.generated if self.generated else None


class PhaseTime(_Model):
    """Sums over requests, which run side by side: more seconds than the clock shows. ``mean_s``: of one request."""

    requests: int = 0
    queue_s: float = 0.0
    engine_s: float = 0.0

    @property
    def mean_s(self) -> float:
        return self.engine_s / self.requests if self.requests else 0.0


class StepCounts(_Model):
    """Counts of steps. ``drafted``: complete drafts. ``rejected``: drafts that the target had to rewrite. The others:
    committed steps, by who wrote them. ``accepted_tokens``, ``rejected_tokens``: tokens generated for accepted and
    rejected drafts.
    """

    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    rewritten: int = 0
    written: int = 0
    closings: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0

    @property
    def acceptance(self) -> float | None:
        decided = self.accepted + self.rejected
        return self.accepted / decided if decided else None

    @property
    def token_acceptance(self) -> float | None:
        decided = self.accepted_tokens + self.rejected_tokens
        return self.accepted_tokens / decided if decided else None


class FlopCounts(_Model):
    """``decode``: of generated tokens. ``all``: of these and of prompt tokens that were not cached."""

    decode: int
    all: int

    @classmethod
    def of(cls, counts: TokenCounts, parameters: int) -> FlopCounts:
        each = FLOPS_PER_PARAMETER * parameters
        return cls(decode=each * counts.generated, all=each * (counts.generated + counts.prompt - counts.cached))


class EngineUse(_Model):
    """The time of a role's engines by use. Shares, 0 to 1, are of the seconds of attempts that ended by themselves, and the
    mean of the role's engines; None if unknown. An attempt that was killed told nothing of its engines.

    ``idle``: without work. ``idle_ready``: without work though a track was ready to send some. ``batch``: requests in
    an iteration, on average. ``preemptions``, ``waited_s`` (of all operations, for a place): of the same attempts.
    ``cache_hit``: of prompt tokens. ``operations``, ``output_tokens``: by the engines' own count, and for an attempt
    that was killed by what its events tell. ``failures``: times that one of the role's engines failed; ``down_s``: seconds
    that they did not work, summed over them.
    """

    facts: EngineFacts | None = None
    cache_hit: float | None = None
    idle: float | None = None
    idle_ready: float | None = None
    batch: float | None = None
    preemptions: int = 0
    operations: int = 0
    waited_s: float = 0.0
    output_tokens: int = Field(default=0, exclude_if=not_)
    failures: int = Field(default=0, exclude_if=not_)
    down_s: float = Field(default=0.0, exclude_if=not_)


@dataclass(slots=True)
class _Used:
    """The sums of a role's reports, one for each time that the run ended."""

    idle_ready_s: float = 0.0
    iterations: int = 0
    batched: int = 0
    preemptions: int = 0
    operations: int = 0
    waited_s: float = 0.0
    output_tokens: int = 0

    def add(self, report: EngineReport) -> None:
        self.idle_ready_s += report.idle_ready_s
        self.iterations += report.iterations
        self.batched += report.batched
        self.preemptions += report.preemptions
        self.operations += report.operations
        self.waited_s += report.waited_s
        self.output_tokens += report.output_tokens


@dataclass(slots=True)
class _Pending:
    """A step that was written and not yet committed. ``fate``: of its tokens if it never is."""

    role: RoleName
    tokens: int
    fate: Literal["dropped", "rejected"] = "dropped"


class Ledger:
    """The fold: ``add`` each event, read any figure at any time."""

    def __init__(self) -> None:
        self._tokens: dict[str, Counter[str]] = defaultdict(Counter)
        self._phases: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        self._steps: Counter[str] = Counter()
        self._pending: dict[_Track, _Pending] = {}
        self._lapsed: dict[_Track, _Pending] = {}
        self._kept: Counter[_Track] = Counter()
        self._chain_tokens = 0
        self._facts: dict[str, EngineFacts] = {}
        self._busy_s: dict[str, float] = defaultdict(float)
        self._used: dict[str, _Used] = defaultdict(_Used)
        self._began_s: float | None = None
        """Run time at which the attempt began that has not ended; None once it has."""
        self._reported_s = 0.0
        """Seconds of attempts that ended by themselves."""
        self._told: dict[str, Counter[str]] = defaultdict(Counter)
        """Operations and their output tokens in the attempt that has not ended, by role."""
        self._failures: Counter[str] = Counter()
        self._down_s: dict[str, float] = defaultdict(float)
        self._down: dict[str, tuple[str, float]] = {}
        self.seconds = 0.0
        """Run time so far."""
        self.chains = 0
        """Tracks that ended with an answer."""
        self.deferred = 0
        """Times that a track released its KV cache reservation to older ones and waited."""

    def add(self, event: Event) -> None:
        self.seconds = event.t
        match event:
            case StepDrafted():
                key = _track(event)
                self._forget(key)
                spent = self._spend("draft", "draft", event.operations)
                self._pending[key] = _Pending("draft", spent, "rejected" if event.left else "dropped")
                self._steps["drafted"] += 1
            case StepWritten():
                key = _track(event)
                self._forget(key, "rejected" if event.write_kind == "rewrite" else None)
                self._pending[key] = _Pending("target", self._spend("target", event.write_kind, event.operations))
            case StepScored():
                self._tokens["target"]["judge"] += self._spend("target", "score", event.operations)
            case StepGated():
                if event.verdict == "doubtful" and (pending := self._pending.get(_track(event))) is not None:
                    pending.fate = "rejected"
            case StepCommitted():
                self._commit(event)
            case OperationDropped():
                spent = self._spend(event.role, event.purpose, (event.operation,))
                fate = "useless" if event.reason == "useless" else "dropped"
                self._tokens[event.role]["judge" if event.purpose == "score" else fate] += spent
            case MethodsChosen() if event.operations:
                self._tokens["target"]["choice"] += self._spend("target", "choose", event.operations)
            case TrackFinished():
                self._lapse(_track(event))
                if event.answer is not None:
                    self.chains += 1
                    self._chain_tokens += self._kept[_track(event)]
            case TrackResumed():
                self._take_up(_track(event))
            case RunStarted():
                self._facts = dict(event.engines)
                self._began_s = event.t
            case RunResumed():
                self._cut_short()
                self._began_s = event.t
            case EngineFailed() if event.role is not None:
                self._failures[event.role] += 1
                self._down[event.engine] = event.role, event.t
            case EngineRecovered():
                self._work_again(event.engine, event.t)
            case RunFinished():
                self._end(event)
            case _:
                pass

    def _commit(self, event: StepCommitted) -> None:
        key = _track(event)
        pending = self._pending.pop(key, None)
        if pending is None:
            return
        counts = self._tokens["draft" if event.origin == "draft" else "target"]
        # Tokens after the step's end, or before it in blank pieces, were not kept.
        kept = min(pending.tokens, event.tokens)
        counts["kept"] += kept
        counts["dropped"] += pending.tokens - kept
        counts["forced"] += event.tokens - kept
        self._kept[key] += kept
        match event.origin:
            case "draft":
                self._steps["accepted"] += 1
                self._steps["accepted_tokens"] += pending.tokens
            case "rewrite":
                self._steps["rewritten"] += 1
            case "write":
                self._steps["written"] += 1
            case "closing":
                self._steps["closings"] += 1

    def _forget(self, key: _Track, fate: Literal["dropped", "rejected"] | None = None) -> None:
        """Notes that a track's pending step will not be committed. ``fate``: of its tokens, if other than its own."""
        if (pending := self._pending.pop(key, None)) is None:
            return
        fate = fate or pending.fate
        self._tokens[pending.role][fate] += pending.tokens
        if fate == "rejected" and pending.role == "draft":
            self._steps["rejected"] += 1
            self._steps["rejected_tokens"] += pending.tokens

    def _lapse(self, key: _Track) -> None:
        """Ends the track on this step, unless a later attempt continues it."""
        if (pending := self._pending.get(key)) is not None:
            self._lapsed[key] = pending
            self._forget(key)

    def _take_up(self, key: _Track) -> None:
        """Notes that a later attempt continues the track: the step that it was on is not lost."""
        if (lapsed := self._lapsed.pop(key, None)) is not None:
            self._tokens[lapsed.role][lapsed.fate] -= lapsed.tokens
            if lapsed.fate == "rejected" and lapsed.role == "draft":
                self._steps["rejected"] -= 1
                self._steps["rejected_tokens"] -= lapsed.tokens
            self._pending[key] = lapsed

    def _spend(self, role: str, purpose: str, operations: Sequence[Operation]) -> int:
        """Books the operations and returns how many tokens they generated."""
        counts, phase, told = self._tokens[role], self._phases[purpose], self._told[role]
        spent = 0
        for operation in operations:
            spent += operation.output_tokens
            told["operations"] += operation.prompt_tokens > 0
            counts["prompt"] += operation.prompt_tokens
            counts["cached"] += operation.cached_tokens
            phase[0] += operation.prompt_tokens > 0  # only the first share of a request carries its prompt
            phase[1] += operation.queue_s
            phase[2] += operation.engine_s
        counts["generated"] += spent
        told["output_tokens"] += spent
        return spent

    def _work_again(self, engine: str, now_s: float) -> None:
        if (down := self._down.pop(engine, None)) is not None:
            self._down_s[down[0]] += now_s - down[1]

    def _cut_short(self) -> None:
        """Counts what an attempt without an end did, as far as its events tell."""
        if self._began_s is not None:
            for role, told in self._told.items():
                self._used[role].operations += told["operations"]
                self._used[role].output_tokens += told["output_tokens"]
        self._told.clear()

    def _end(self, event: RunFinished) -> None:
        self.seconds = event.seconds
        self._reported_s += event.seconds - (self._began_s or 0.0)
        self._began_s = None
        self._told.clear()
        for engine in list(self._down):
            self._work_again(engine, event.t)
        for key in list(self._pending):
            self._lapse(key)
        self.deferred += event.deferred
        for role, seconds in event.busy_s.items():
            self._busy_s[role] += seconds
        for role, report in event.engines.items():
            self._used[role].add(report)

    # ------------------------------------------------------------------------------------------------------- figures

    def tokens(self) -> dict[str, TokenCounts]:
        return {role: TokenCounts(**counts) for role, counts in sorted(self._tokens.items())}

    def phases(self) -> dict[str, PhaseTime]:
        return {
            name: PhaseTime(requests=int(requests), queue_s=round(queue_s, 6), engine_s=round(engine_s, 6))
            for name, (requests, queue_s, engine_s) in sorted(self._phases.items())
        }

    def steps(self) -> StepCounts:
        return StepCounts(**self._steps)

    def busy_s(self) -> dict[str, float]:
        return {role: round(seconds, 6) for role, seconds in self._busy_s.items()}

    @property
    def chain_length(self) -> float | None:
        """The mean of the generated and kept tokens of tracks that ended with an answer."""
        return self._chain_tokens / self.chains if self.chains else None

    @property
    def parameters(self) -> dict[str, int]:
        """The number of parameters of each role's model, where it is known."""
        known = {role: facts.parameters for role, facts in self._facts.items()}
        return {role: parameters for role, parameters in known.items() if parameters is not None}

    def flops(self, parameters: Mapping[str, int] | None = None) -> dict[str, FlopCounts]:
        """Returns the FLOPs by role, for those whose number of parameters is given, or else known from the run's beginning."""
        known = self.parameters if parameters is None else parameters
        return {role: FlopCounts.of(counts, known[role]) for role, counts in self.tokens().items() if role in known}

    def all_flops(self, parameters: Mapping[str, int] | None = None) -> FlopCounts | None:
        """Returns the FLOPs of all roles together; None if one of them has an unknown number of parameters."""
        flops = self.flops(parameters)
        if not flops or not flops.keys() >= self._tokens.keys():
            return None
        return FlopCounts(decode=sum(one.decode for one in flops.values()), all=sum(one.all for one in flops.values()))

    def engines(self) -> dict[str, EngineUse]:
        """Returns the engine use by role, for roles of which the trace has something."""
        tokens = self.tokens()
        roles = sorted({*self._facts, *self._busy_s, *tokens})
        return {role: self._use(role, tokens.get(role, TokenCounts())) for role in roles}

    def _use(self, role: str, counts: TokenCounts) -> EngineUse:
        busy_s = self._busy_s.get(role)
        idle = None if busy_s is None else self._share(self._reported_s - busy_s)
        facts = self._facts.get(role)
        failures, down_s = self._failures[role], round(self._down_s.get(role, 0.0), 6)
        if role not in self._used:
            return EngineUse(facts=facts, cache_hit=counts.cache_hit, idle=idle, failures=failures, down_s=down_s)
        used = self._used[role]
        return EngineUse(
            facts=facts,
            cache_hit=counts.cache_hit,
            idle=idle,
            idle_ready=self._share(used.idle_ready_s),
            batch=used.batched / used.iterations if used.iterations else None,
            preemptions=used.preemptions,
            operations=used.operations,
            waited_s=round(used.waited_s, 6),
            output_tokens=used.output_tokens,
            failures=failures,
            down_s=down_s,
        )

    def _share(self, seconds: float) -> float | None:
        # Sums of rounded times may be a microsecond off.
        whole = self._reported_s
        return round(min(1.0, max(0.0, seconds / whole)), 6) if whole > 0 else None


def _track(event: TrackEvent) -> _Track:
    return event.problem, event.repeat, event.track
