"""Defines what a strategy, a judge of answers and a sink must do, and what a track offers.

A leaf module, so that strategies and evaluators may import it. ``engine.py`` defines what an engine must do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from speclrm.runtime.engine import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import Message
    from speclrm.runtime.events import ChosenBy, Event, FinishReason, Outcome, Scorer, StepKind, Verdict
    from speclrm.runtime.state import SampleState, TrackState


class Role(StrEnum):
    """The model that an operation is for."""

    DRAFT = "draft"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a dataset.

    ``answer`` is the gold answer as the dataset writes it, or None if nothing can be graded. ``grader`` names the rule
    that judges an answer against it: ``math``, ``choice`` (the answer is the letter of an option), or one that the
    dataset brings. ``details`` is what that rule needs beside the answer; for ``choice`` a JSON object of letters and
    options.
    """

    id: str
    text: str
    answer: str | None = None
    grader: str = "math"
    details: str = ""


# --------------------------------------------------------------------------------------------------------- engines


# ---------------------------------------------------------------------------------------------- strategies, answers


@dataclass(frozen=True, slots=True)
class TrackPlan:
    """The beginning of one track: its name, its method or role hint, and the conversation that each model sees first.

    ``code`` names the hint (a method A to L, M for none; a role). The runtime adds a think mark if the model has one.
    ``raw``: the conversation is one message that comes before the first step as plain text, without a chat template and
    without a mark. ``opening``: text of our own between that and the first step, in every request but those that write
    the first step itself (the layout of SSR's prompts); marks in it count.
    """

    track: str
    messages: tuple[Message, ...]
    code: str = "M"
    hint: str = ""
    raw: bool = False
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """The question that the target is asked before a sample's tracks are planned. ``reply``: the beginning of its answer.
    ``opening``: text of our own between a raw question and the reply; marks in it count.
    """

    messages: tuple[Message, ...]
    reply: str
    max_tokens: int
    raw: bool = False
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The tracks of a sample, at least one, and what chose their methods: the seed, the target, or who set the options.

    ``padded``: how many methods, those of the last tracks, the target was to name and did not.
    """

    tracks: tuple[TrackPlan, ...]
    chosen_by: ChosenBy
    padded: int = 0


@dataclass(frozen=True, slots=True)
class Confidence:
    """The draft model's confidence in what it wrote.

    ``tokens``: how many the mean is over; ``mean_logprob``: their mean natural-log probability, at most 0, before
    temperature; ``first_entropy``: of the step's first token, in nats, None if it was not requested.
    """

    tokens: int
    mean_logprob: float
    first_entropy: float | None = None


@record
class Step:
    """A piece of a track before it is committed. ``ids`` belong to the model of ``role``.

    ``ended``: the model closed its text or turn after this step. ``removed``: ids that count against the budget though
    they are not in it. ``confidence``: of a draft, if the strategy's gate needs it. ``left``: the draft was abandoned
    as doubtful before its end, so this is a part of a step and cannot be committed.
    """

    role: Role
    index: int
    text: str
    ids: tuple[int, ...]
    ended: bool
    kind: StepKind
    removed: int = 0
    confidence: Confidence | None = None
    left: bool = False


@record
class Score:
    """The target's rating of a step: a judge's digit, 0 (worst) to 9 (best), or the mean natural-log likelihood of the
    step's ids, at most 0.

    ``mass``: the probability that the judge gave to the ten digits together before the restriction, 0 to 1; a low mass
    means that the judge's prompt does not work with this model. 1 for a likelihood.
    """

    value: float
    mass: float


Speculate = Literal["auto", "always", "never"]
"""Whether tracks speculate: as the break-even controller decides, on every step, or on none."""


class Track(Protocol):
    """The verbs of a strategy's loop. Its results, its seed and its parameters are the loop's only inputs."""

    @property
    def problem(self) -> Problem: ...

    @property
    def repeat(self) -> int:
        """The number of the sample's repeat, 0-based."""
        ...

    @property
    def state(self) -> TrackState: ...

    async def speculates(self) -> bool:
        """Returns whether the next step is to be drafted, or written by the target, as the controller decides."""
        ...

    async def draft(self) -> Step:
        """Writes the next step with the draft model.

        Raises RequestError if the engine refuses the request; the loop may go on, with ``write`` for instance.
        """
        ...

    def ahead(self, step: Step, *, draft: bool, rewrite: bool) -> None:
        """Begins what would follow the score of this step: the next draft, and its rewrite. Does not wait.

        The next ``draft`` or ``rewrite`` uses what was begun; committing a step abandons what is not needed then.
        """
        ...

    async def score(self, step: Step) -> Score:
        """Scores the step with the target: by one digit, or by the step's likelihood.

        Raises RequestError if the engine refuses the request; the loop may go on, with ``rewrite`` for instance.
        """
        ...

    async def gate(self, step: Step, verdict: Verdict) -> None:
        """Records that the draft's own confidence decides about its step, which will not be scored."""
        ...

    async def rewrite(self, step: Step) -> Step:
        """Writes the step again with the target, from the context before it."""
        ...

    async def write(self) -> Step:
        """Writes the next step with the target. Steps in a row come from one open request."""
        ...

    async def close(self) -> Step:
        """Asks the target, in a short write, for its answer."""
        ...

    async def commit(self, step: Step, score: float | None = None) -> None:
        """Makes the step part of the track."""
        ...


class Strategy(Protocol):
    """Everything that decides: how a sample's tracks start, what each does, when they stop, and who wins.

    No I/O, no clock, no global random state.
    """

    @property
    def name(self) -> str: ...

    @property
    def roles(self) -> frozenset[Role]:
        """The models it needs."""
        ...

    @property
    def prompts(self) -> StepPrompts: ...

    @property
    def limits(self) -> Limits: ...

    def question(self, problem: Problem) -> Question | None:
        """Returns what the target must be asked before ``plan``, or None."""
        ...

    def plan(self, problem: Problem, repeat: int, seed: int | None, reply: str | None = None) -> Plan:
        """Returns how the sample's tracks start. ``reply``: the target's reply to the question; None if it was not asked."""
        ...

    async def run_track(self, track: Track) -> FinishReason: ...

    def score(self, digits: Sequence[float], said: str) -> Score:
        """Returns the score. ``digits``: (10,), natural-log probabilities of 0 to 9; ``said``: the token that the judge wrote."""
        ...

    def gate(self, confidence: Confidence, *, whole: bool) -> Verdict | None:
        """Returns what a draft's own confidence decides, None if it decides nothing.

        Not ``whole``: the draft is still being written, and is abandoned as soon as this returns ``doubtful``.
        """
        ...

    def answer(self, state: TrackState, problem: Problem, reason: FinishReason) -> str | None:
        """Returns the answer, as written by the model, of a track that ends for that reason; None if it has none to vote."""
        ...

    def same(self, one: str, other: str, problem: Problem) -> bool | None:
        """Returns whether two answers are equal by a rule of the strategy's own; None leaves it to the judge of answers."""
        ...

    def ends_sample(self, sample: SampleState) -> bool:
        """Returns whether the tracks that finished so far make the others useless."""
        ...

    def vote(self, sample: SampleState, classes: Sequence[Sequence[str]]) -> str | None:
        """Returns the winning track, or None. ``classes``: names of tracks with equal answers, in the order found."""
        ...


@dataclass(frozen=True, slots=True)
class StepPrompts:
    """The texts that the runtime puts around steps, chosen by the strategy.

    ``judge``: the question of the judge's turn. ``judge_reply``: how the judge's answer opens; a digit follows.
    ``closing``: the text after the reasoning that asks for the answer. ``raw``: the judge's text follows the step
    directly, without a turn of its own. ``any_token``: the judge may write any token, not digits alone.
    ``judge_ids_max``: the most ids that the judge's text and opening words may have together. ``scorer``: whether a
    judge scores a step, or the step's likelihood.
    """

    judge: str
    judge_reply: str
    closing: str
    raw: bool = False
    any_token: bool = False
    judge_ids_max: int | None = None
    scorer: Scorer = "judge"


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds and the sampling of a track. Lengths are in tokens.

    ``speculate``: whether its steps are drafted at all, or as the controller decides. ``min_step_tokens``: a blank line
    before this length does not end a step. ``confidence``, ``first_entropy``: what drafts are asked for beside their
    tokens, for the gate. ``original_marks``: if there are any, steps are cut as SSR's code does it: a piece with
    nothing visible is a step, the last step may run over the budget, and ``</think>`` is taken out of steps that have
    none of these marks.
    """

    token_budget: int
    max_step_tokens: int
    closing_tokens: int
    temperature: float
    top_p: float
    original_marks: tuple[str, ...] = ()
    min_step_tokens: int = 0
    confidence: bool = False
    first_entropy: bool = False
    speculate: Speculate = "always"


class Equivalence(Protocol):
    """Judges answers. Never raises for an odd answer and always ends: it works in processes of its own with a limit."""

    async def same(self, one: str, other: str) -> bool:
        """Returns whether two answers mean the same."""
        ...

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        """Returns ``correct``, ``wrong`` or ``grader_failed``."""
        ...


@runtime_checkable
class EquivalenceBySample(Protocol):
    """A judge of answers that limits the cost of one sample's answers: it provides another judge for each sample."""

    def of_sample(self) -> Equivalence: ...


class Sink(Protocol):
    """Receives a run's events, in order.

    A run awaits its trace and the caller of ``stream``. Any other sink has a bounded queue and a task of its own, which
    calls ``emit`` and ``room`` by turns: a sink that does I/O keeps the event in ``emit`` and does the rest in
    ``room``.
    """

    def emit(self, event: Event) -> None:
        """Takes the event at once, without waiting."""
        ...

    async def room(self) -> None:
        """Waits until the sink has kept up. Tracks wait here for a trace before each operation, so none is refused."""
        ...

    async def aclose(self) -> None: ...
