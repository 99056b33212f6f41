"""Defines the events of a run: frozen, tagged by ``kind``, numbered by ``seq``.

A leaf module. Everything that is shown or counted is a fold over these; a trace is a file of them, one a line. Times
are seconds, lengths are tokens. Bump ``SCHEMA_VERSION`` when a reader of the old form would misread the new one.
"""

from __future__ import annotations

import base64
from array import array
from binascii import b2a_base64
from math import floor
from operator import not_
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    TypeAdapter,
)

from speclrm.runtime.engine import Finish
from speclrm.runtime.errors import FailureReason

SCHEMA_VERSION = 3

RoleName = Literal["draft", "target"]
"""A model role, as events and files write it."""
Scorer = Literal["judge", "likelihood"]
"""How a drafted step is scored: by the judge's digit, or by the likelihood that the target gives it."""
Verdict = Literal["sure", "doubtful"]
"""What the gate decides from a draft's confidence: keep it without a score, or leave the step to the target without one."""
Mode = Literal["speculate", "eager", "write"]
"""What a track does next: draft; draft, and work ahead of scores; or let the target write."""
WriteKind = Literal["rewrite", "write", "closing"]
"""The steps that the target writes."""
DropReason = Literal["stopped", "cancelled", "error", "useless"]
"""Why a request was given up. ``useless``: it was made ahead of a decision that went the other way."""
Purpose = Literal["choose", "draft", "score", "rewrite", "write", "closing"]
"""What a request is for."""
PauseReason = Literal["room", "reader", "turn"]
"""Why a track waits: for KV cache, for those who read its events, or for a more urgent request."""
ChosenBy = Literal["seed", "target", "fixed"]
"""Who chose the methods of a plan: the seed, the target model, or the options."""
StopReason = Literal["stopped", "cancelled"]
"""Why a track is stopped from outside: other tracks made it useless, or the caller gave the sample up."""

StepKind = Literal["draft", "rewrite", "write", "closing"]
"""Who wrote a step and why: the draft model; the target instead of a rejected draft; the target from the start; the
target when asked for its answer at the end."""

FinishReason = Literal["answer", "end_of_text", "repeated", "budget", "step_limit", "stopped", "cancelled", "error"]
"""Why a track ended. ``stopped``: other tracks made it useless. ``cancelled``: the caller gave the sample up."""

Outcome = Literal["correct", "wrong", "no_answer", "truncated", "grader_failed", "ungraded", "error"]
"""How a sample ended. ``truncated``: no answer, and some track ran into its budget. ``ungraded``: no gold answer.
``error``: every track failed."""


WIDE_IDS = "="
"""Begins the written form of ids that need four bytes each; base64 never begins with it."""


def _pack_ids(ids: tuple[int, ...]) -> str:
    # Three bytes an id, little-endian, in base64: exactly four characters a token, and the same four everywhere,
    # which compresses well.
    packed = bytearray(array("I", ids))
    if packed[3::4].count(0) < len(ids):
        return WIDE_IDS + base64.b64encode(packed).decode("ascii")
    del packed[3::4]
    return b2a_base64(packed, newline=False).decode("ascii")


def _unpack_ids(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    words = array("I")
    if value.startswith(WIDE_IDS):
        words.frombytes(base64.b64decode(value[len(WIDE_IDS) :], validate=True))
        return tuple(words)
    packed = base64.b64decode(value, validate=True)
    if len(packed) % 3:
        raise ValueError("token ids are three bytes each")
    wide = bytearray(len(packed) // 3 * 4)
    for place in range(3):
        wide[place::4] = packed[place::3]
    words.frombytes(bytes(wide))
    return tuple(words)


TokenIds = Annotated[
    tuple[int, ...],
    BeforeValidator(_unpack_ids),
    PlainSerializer(_pack_ids, return_type=str, when_used="json"),
]
"""Token ids; in JSON a base64 string of little-endian words of three bytes (of four, after ``=``, if one needs it)."""


def _pack_floats(values: tuple[float, ...]) -> str:
    # All 64 bits: a replay must see exactly the number that the loop saw.
    return b2a_base64(array("d", values), newline=False).decode("ascii")


def _unpack_floats(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    numbers = array("d")
    numbers.frombytes(base64.b64decode(value, validate=True))
    return tuple(numbers)


Floats = Annotated[
    tuple[float, ...],
    BeforeValidator(_unpack_floats),
    PlainSerializer(_pack_floats, return_type=str, when_used="json"),
]
"""Exact numbers; in JSON a base64 string of little-endian 64-bit floats."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _is_none(value: object) -> bool:
    return value is None


def _is_todays_form(value: object) -> bool:
    return value == SCHEMA_VERSION


def _is_judge(value: object) -> bool:
    return value == "judge"


class Operation(_Frozen):
    """The cost of one request to an engine.

    ``id`` is ``problem/repeat/track/step/kind``; the seed is derived from it and the run's seed. ``cached_tokens``:
    prompt tokens that the engine had computed before (0 if it does not say). ``prompt_tokens`` and ``cached_tokens``
    are 0 for a request that was abandoned before its first token. ``queue_s``: from the request until the engine takes
    it; ``engine_s``: from there to its end. If one request yields several steps, each carries its own share: prompt and
    queue on the first, output and engine seconds on all.

    The other fields are what a replay needs beside the event that carries the operation, each empty if it adds nothing.
    ``digest``: of the request, on its first share (``scheduling/requests.py``). ``finish``: why the engine stopped, if
    it had by then; ``early``: at a limit of its own, with fewer tokens than it was asked for.
    ``tail``: ids of this share that follow the event's step and are not in it. ``ahead``: ids that had
    arrived after this share when it was made. ``logprobs``: of the ``logprob_ids``, unless the event has the digits.
    ``sampled_logprobs`` (one for each id of share and ``ahead``), ``first_entropy``, ``prompt_logprobs``: as the engine
    gave them.
    """

    id: str
    engine: str
    seed: int | None
    prompt_tokens: int = Field(default=0, exclude_if=not_)
    cached_tokens: int = Field(default=0, exclude_if=not_)
    output_tokens: int
    queue_s: float = Field(default=0.0, exclude_if=not_)
    engine_s: float = Field(default=0.0, exclude_if=not_)
    digest: str = Field(default="", exclude_if=not_)
    finish: Finish | None = Field(default=None, exclude_if=not_)
    early: bool = Field(default=False, exclude_if=not_)
    tail: TokenIds = Field(default=(), exclude_if=not_)
    ahead: TokenIds = Field(default=(), exclude_if=not_)
    logprobs: Floats = Field(default=(), exclude_if=not_)
    sampled_logprobs: Floats = Field(default=(), exclude_if=not_)
    first_entropy: float | None = Field(default=None, exclude_if=_is_none)
    prompt_logprobs: Floats | None = Field(default=None, exclude_if=_is_none)


class EventBase(_Frozen):
    """``seq``: position in the run, from 0. ``attempt``: which start of the run, from 0. ``t``: seconds of run time."""

    seq: int = -1
    attempt: int = Field(default=0, exclude_if=not_)
    t: float = 0.0


class SampleEvent(EventBase):
    problem: str
    repeat: int


class TrackEvent(SampleEvent):
    track: str


class StepEvent(TrackEvent):
    """``step``: 0-based within the track."""

    step: int


class EngineFacts(_Frozen):
    """Describes the engines of a role. ``parameters``: of the model, None if unknown; ``kv_tokens``: KV cache of each
    engine in tokens, None if unknown; ``max_num_seqs``: of each; ``replicas``: how many there are.
    """

    name: str
    parameters: int | None = None
    kv_tokens: int | None = None
    max_num_seqs: int
    replicas: int = 1


class EngineReport(_Frozen):
    """The work of a role's engines during a run, for whichever caller; seconds are the mean of the role's engines,
    counts their sum.

    ``idle_ready_s``: without an operation though a track was ready to send one. ``iterations``; ``batched``: the sum of
    running requests over them; ``preemptions``: all 0 if an engine does not count them. ``operations``: those that got
    a place; ``waited_s``: the sum of their waits for it. ``output_tokens``: by the engines' own count, including tokens
    of aborted requests that never arrived.
    """

    idle_ready_s: float
    iterations: int
    batched: int
    preemptions: int
    operations: int
    waited_s: float
    output_tokens: int = Field(default=0, exclude_if=not_)


class RunStarted(EventBase):
    """The first line of a trace. ``engines``: by role."""

    kind: Literal["run_started"] = "run_started"
    schema_version: int = SCHEMA_VERSION
    run: str
    started: str
    """UTC, ISO 8601."""
    config: dict[str, JsonValue]
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    begun_in_form: int = Field(default=SCHEMA_VERSION, exclude_if=_is_todays_form)
    """The ``schema_version`` in which the trace was begun, if that was an older one."""
    context_max: dict[str, int] = Field(default_factory=dict)
    """By role, the most tokens that prompt and output may have together."""
    engines: dict[str, EngineFacts] = Field(default_factory=dict)


class RunResumed(EventBase):
    """The run continues in another process: the first event of an ``attempt`` after the first one.

    ``config``, ``versions``, ``machine``: as they are now. ``overrides``: settings that make results differ and were
    changed anyway, each with its old and its new value; they hold for samples that had not begun.
    """

    kind: Literal["run_resumed"] = "run_resumed"
    started: str
    config: dict[str, JsonValue]
    versions: dict[str, str]
    machine: dict[str, JsonValue]
    overrides: dict[str, tuple[JsonValue, JsonValue]] = Field(default_factory=dict)


class ProblemStarted(SampleEvent):
    kind: Literal["problem_started"] = "problem_started"
    text: str
    gold: str | None


class MethodsChosen(SampleEvent):
    """``codes``: one a track, in the order of the tracks.

    If the target chose: ``text`` is its reply, ``padded`` how many codes, the last ones, it did not name,
    ``operations`` the request, and ``error`` why there is no reply, in one line.
    """

    kind: Literal["methods_chosen"] = "methods_chosen"
    codes: tuple[str, ...]
    chosen_by: ChosenBy
    text: str | None = None
    padded: int = 0
    operations: tuple[Operation, ...] = ()
    error: str | None = Field(default=None, exclude_if=_is_none)


class TrackStarted(TrackEvent):
    """``prompt_ids``: what each model sees before the first step. ``opening_ids``: what follows that in every request
    but those that write the first step.
    """

    kind: Literal["track_started"] = "track_started"
    hint: str
    prompt_ids: dict[str, TokenIds]
    opening_ids: dict[str, TokenIds] = Field(default_factory=dict)


class StepDrafted(StepEvent):
    """``mean_logprob``: of the sampled tokens, natural log, before temperature; ``first_entropy``: of the first one, in
    nats; None if no gate needed them. ``left``: abandoned as doubtful before its end, so not a whole step.
    """

    kind: Literal["step_drafted"] = "step_drafted"
    text: str
    ids: TokenIds
    ended: bool = Field(default=False, exclude_if=not_)
    operations: tuple[Operation, ...]
    mean_logprob: float | None = Field(default=None, exclude_if=_is_none)
    first_entropy: float | None = Field(default=None, exclude_if=_is_none)
    left: bool = Field(default=False, exclude_if=not_)


class StepGated(StepEvent):
    """A draft that its writer's own confidence decided about, without a score: ``sure`` ones are kept, ``doubtful``
    ones left to the target. ``tokens``: how many ``mean_logprob`` is over.
    """

    kind: Literal["step_gated"] = "step_gated"
    verdict: Verdict
    mean_logprob: float
    first_entropy: float | None
    tokens: int


class StepScored(StepEvent):
    """A score. ``scorer`` ``judge``: ``value`` 0 to 9; ``mass``: probability of the ten digits together, 0 to 1;
    ``digits``: log-probabilities of 0 to 9 as the model gave them; ``said``: the token that it wrote. ``likelihood``:
    ``value`` is the mean natural-log likelihood of the step's ids under the target; there are no digits, and ``mass``
    is 1.
    """

    kind: Literal["step_scored"] = "step_scored"
    value: float
    mass: float
    digits: tuple[float, ...]
    said: str = ""
    scorer: Scorer = Field(default="judge", exclude_if=_is_judge)
    operations: tuple[Operation, ...]


class StepWritten(StepEvent):
    """A step by the target model. ``write_kind``: ``rewrite``, ``write`` or ``closing``."""

    kind: Literal["step_written"] = "step_written"
    write_kind: WriteKind
    text: str
    ids: TokenIds
    ended: bool = Field(default=False, exclude_if=not_)
    operations: tuple[Operation, ...]


class StepCommitted(StepEvent):
    """``tokens``: counted in the ids of the model that wrote it. ``score``: what the vote will count."""

    kind: Literal["step_committed"] = "step_committed"
    origin: StepKind
    tokens: int
    score: float | None


class OperationDropped(StepEvent):
    """A request that was abandoned before its end; ``operation.output_tokens`` counts what had arrived by then.

    ``useless``: it had been made ahead of a decision and was not needed. ``error``: one line, if that is the reason.
    """

    kind: Literal["operation_dropped"] = "operation_dropped"
    role: RoleName
    purpose: Purpose
    reason: DropReason
    operation: Operation
    error: str | None = Field(default=None, exclude_if=_is_none)


class TrackPaused(StepEvent):
    """Before this step the track released its engines: an open write is ended, and another one continues from here.

    ``room``: it waits for KV cache, or released its own to older tracks. ``reader``: whoever takes the run's events, a
    caller or the disk, is far behind. ``turn``: more urgent requests wait for the places of long writes; the track asks
    again at once. In the other two cases a ``track_continued`` follows when it continues.
    """

    kind: Literal["track_paused"] = "track_paused"
    reason: PauseReason


class TrackContinued(StepEvent):
    """A paused track has what it waited for, and asks for this step."""

    kind: Literal["track_continued"] = "track_continued"


class TrackResumed(TrackEvent):
    """The track continues though an earlier attempt had closed it, at its own end, as cancelled or failed.

    It keeps all that it had, also the step that it was on.
    """

    kind: Literal["track_resumed"] = "track_resumed"


class TrackFinished(TrackEvent):
    """``answer``: as the model wrote it. ``error``: one line, if the reason is ``error``."""

    kind: Literal["track_finished"] = "track_finished"
    reason: FinishReason
    answer: str | None
    tokens: int
    error: str | None = Field(default=None, exclude_if=_is_none)


class VoteUpdated(SampleEvent):
    """``classes``: names of the finished tracks with an answer, grouped by equal answers, first found first."""

    kind: Literal["vote_updated"] = "vote_updated"
    classes: tuple[tuple[str, ...], ...]
    leader: str | None


class SampleFinished(SampleEvent):
    """``winner``: the track whose answer was taken."""

    kind: Literal["sample_finished"] = "sample_finished"
    answer: str | None
    winner: str | None
    outcome: Outcome
    seconds: float


class ModeChanged(StepEvent):
    """From this step on, the track speculates or is written by the target alone.

    ``eager``: it speculates, and works ahead of scores. ``reason``: one line.
    """

    kind: Literal["mode_changed"] = "mode_changed"
    mode: Mode
    reason: str


class EngineCounters(NamedTuple):
    """Counters of the engines of a role together, since the runtime was opened; in JSON an array in this order.
    ``busy_s``: seconds in which they had work; ``batched``: the sum of running requests over the ``iterations``;
    ``new_tokens``: read or written.
    """

    busy_s: float
    iterations: int
    new_tokens: int
    batched: int


class EnginesObserved(EventBase):
    """The facts about the engines that the break-even controller was told. It knows nothing else but the events of tracks.

    ``engines``: by role. ``both_s``: seconds in which those of several roles had work at once. ``context``: tokens of a
    track's context at the target, on average. ``waiting``: tracks that waited for KV cache.
    """

    kind: Literal["engines_observed"] = "engines_observed"
    engines: dict[str, EngineCounters]
    both_s: float = Field(default=0.0, exclude_if=not_)
    context: float
    waiting: int = Field(default=0, exclude_if=not_)


class DraftPaced(EventBase):
    """From now on the draft makes ``iterations`` to one of the target while both work on one device; 0: as many as it can.

    ``interval_s``: seconds from the beginning of one iteration to that of the next, at least. ``reason``: one line.
    """

    kind: Literal["draft_paced"] = "draft_paced"
    iterations: int
    interval_s: float
    reason: str


class EngineFailed(EventBase):
    """An engine gets no requests from now on. ``requests``: in flight there; they continue at another engine of its role, or
    here once it works again, with the ids and seeds that they have.
    """

    kind: Literal["engine_failed"] = "engine_failed"
    engine: str
    error: str
    role: RoleName | None = Field(default=None, exclude_if=_is_none)
    reason: FailureReason | None = Field(default=None, exclude_if=_is_none)
    requests: int = Field(default=0, exclude_if=not_)


class EngineRecovered(EventBase):
    """It works again. ``down_s``: seconds since it failed. ``changed``: its settings that are smaller than before, after its
    memory ran out.
    """

    kind: Literal["engine_recovered"] = "engine_recovered"
    engine: str
    down_s: float
    role: RoleName | None = Field(default=None, exclude_if=_is_none)
    changed: dict[str, JsonValue] = Field(default_factory=dict, exclude_if=not_)


class OperationStuck(EventBase):
    """An operation in an engine brought nothing for ``seconds``. Told once, until it goes on. ``others``: how many more there
    bring nothing either and are not told of. ``limit_s``: seconds after which the engine counts as hung if it makes no progress.
    """

    kind: Literal["operation_stuck"] = "operation_stuck"
    operation: str
    engine: str
    role: RoleName
    seconds: float
    limit_s: float
    others: int = Field(default=0, exclude_if=not_)


class RunFinished(EventBase):
    """The last line of a trace that ended by itself. ``busy_s``, by role: seconds in which each engine had work;
    ``engines``: what else they did. ``deferred``: times that a track released its KV cache reservation to older ones
    and waited.
    """

    kind: Literal["run_finished"] = "run_finished"
    status: Literal["finished", "cancelled", "failed"]
    seconds: float
    error: str | None = Field(default=None, exclude_if=_is_none)
    busy_s: dict[str, float] = Field(default_factory=dict)
    engines: dict[str, EngineReport] = Field(default_factory=dict)
    deferred: int = Field(default=0, validation_alias=AliasChoices("deferred", "stood_up"))
    """Older traces call it ``stood_up``."""


Event = Annotated[
    RunStarted
    | RunResumed
    | ProblemStarted
    | MethodsChosen
    | TrackStarted
    | StepDrafted
    | StepGated
    | StepScored
    | StepWritten
    | StepCommitted
    | OperationDropped
    | TrackPaused
    | TrackContinued
    | TrackResumed
    | TrackFinished
    | VoteUpdated
    | SampleFinished
    | ModeChanged
    | EnginesObserved
    | DraftPaced
    | EngineFailed
    | EngineRecovered
    | OperationStuck
    | RunFinished,
    Field(discriminator="kind"),
]

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
"""Reads an event of any kind: ``EVENT.validate_json(line)``."""


_STAMPED = frozenset({"seq", "attempt", "t"})


def six_digits(value: float) -> float:
    """Rounds to six digits behind the point, halves up. ``round(value, 6)`` writes the number out and reads it again, which takes
    four times as long, and an event has up to a dozen. ``value`` is finite.
    """
    return floor(value * 1e6 + 0.5) / 1e6


def stamp(event: EventBase, seq: int, attempt: int, t: float) -> None:
    """Gives an event its place in the run: its only change, made before anybody else has it.

    A copy would cost as much as making the event did.
    """
    fields = vars(event)
    fields["seq"], fields["attempt"], fields["t"] = seq, attempt, t
    event.__pydantic_fields_set__.update(_STAMPED)


def to_line(event: EventBase) -> bytes:
    """Writes the event as a line of a trace. Calls the serializer directly, since ``model_dump_json`` decodes its bytes first."""
    return event.__pydantic_serializer__.to_json(event) + b"\n"
