"""The seams between the parts: what a strategy, a judge of answers and a sink must do, and what a track offers.

A leaf module, so that strategies and evaluators may use it. What an engine must do stands in ``engine.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import Message
    from speclrm.runtime.events import Event, FinishReason, Outcome
    from speclrm.runtime.state import SampleState, TrackState


class Role(StrEnum):
    """Which model an operation is for."""

    DRAFT = "draft"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a dataset.

    ``answer`` is the gold answer as the dataset writes it, or None where nothing can be graded.
    ``grader`` names the rule that judges an answer against it: ``math``, ``choice`` (the answer is the letter of an
    option), or one that the dataset brings. ``details`` is what that rule needs beside the answer; for ``choice`` a JSON
    object of letters and options.
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
    """How one track starts: its name, its method or role hint, and the conversation that each model sees first.

    ``code`` names the hint (a method A to L, M for none; a role). A think mark is added by the runtime where the model
    has one. ``raw``: the conversation is one message that stands before the first step as plain text, without a chat
    template and without a mark. ``opening``: text of our own between that and the first step, which every request sees but
    those that write the first step itself (the layout of SSR's prompts); marks in it count.
    """

    track: str
    messages: tuple[Message, ...]
    code: str = "M"
    hint: str = ""
    raw: bool = False
    opening: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What the target is asked before a sample's tracks are planned. ``reply``: how its answer opens. ``opening``: text of
    our own between a raw question and the reply; marks in it count.
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
    chosen_by: Literal["seed", "target", "fixed"]
    padded: int = 0


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure the draft model was of what it wrote.

    ``tokens``: over how many; ``mean_logprob``: their mean natural-log probability, at most 0, before temperature;
    ``first_entropy``: of the step's first token, in nats, None where it was not asked for.
    """

    tokens: int
    mean_logprob: float
    first_entropy: float | None = None


Verdict = Literal["sure", "doubtful"]
"""What the gate makes of a draft's confidence: kept without a score, or left to the target without one."""


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of a track before it is committed. ``ids`` belong to the model of ``role``.

    ``ended``: the model closed its text or turn after this step. ``removed``: ids that count against the budget though
    they are not in it. ``confidence``: of a draft, where the strategy's gate needs it. ``left``: the draft was given up
    as doubtful before its end, so this is a part of a step and nothing to commit.
    """

    role: Role
    index: int
    text: str
    ids: tuple[int, ...]
    ended: bool
    kind: Literal["draft", "rewrite", "write", "closing"]
    removed: int = 0
    confidence: Confidence | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """The target's opinion of a step: a judge's digit, 0 (worst) to 9 (best), or the mean natural-log likelihood of the
    step's ids, at most 0.

    ``mass``: the probability that the judge gave to the ten digits together before the restriction, 0 to 1;
    a low mass means that the judge's prompt does not work with this model. 1 for a likelihood.
    """

    value: float
    mass: float


Speculate = Literal["auto", "always", "never"]
"""Whether tracks speculate: as the break-even controller decides, on every step, or on none."""


class Track(Protocol):
    """What a strategy's loop can do. Its results, its seed and its parameters are the loop's only inputs."""

    @property
    def problem(self) -> Problem: ...

    @property
    def repeat(self) -> int:
        """The number of the sample's repeat, 0-based."""
        ...

    @property
    def state(self) -> TrackState: ...

    async def speculates(self) -> bool:
        """Whether the next step is to be drafted, or written by the target: what the controller decided for it."""
        ...

    async def draft(self) -> Step:
        """The draft model writes the next step."""
        ...

    def ahead(self, step: Step, *, draft: bool, rewrite: bool) -> None:
        """Begins what would follow the score of this step: the draft behind it, its rewrite. Does not wait.

        The next ``draft`` or ``rewrite`` takes up what was begun; committing a step gives up what then has no use.
        """
        ...

    async def score(self, step: Step) -> Score:
        """The target model judges the step in one token, or reads it for its likelihood."""
        ...

    async def gate(self, step: Step, verdict: Verdict) -> None:
        """The draft's own confidence decides about its step; it will not be scored."""
        ...

    async def rewrite(self, step: Step) -> Step:
        """The target model writes the step anew, from the context before it."""
        ...

    async def write(self) -> Step:
        """The target model writes the next step. Steps in a row come from one open request."""
        ...

    async def close(self) -> Step:
        """The target model is asked, in a short write, for its answer."""
        ...

    async def commit(self, step: Step, score: float | None = None) -> None:
        """The step becomes part of the track."""
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
        """What the target must be asked before ``plan``, or None."""
        ...

    def plan(self, problem: Problem, repeat: int, seed: int | None, reply: str | None = None) -> Plan:
        """How the sample's tracks start. ``reply``: what the target said to the question; None where it was not asked."""
        ...

    async def run_track(self, track: Track) -> FinishReason: ...

    def score(self, digits: Sequence[float], said: str) -> Score:
        """The judge's opinion. ``digits``: (10,), natural-log probabilities of 0 to 9; ``said``: the token it wrote."""
        ...

    def gate(self, confidence: Confidence, *, whole: bool) -> Verdict | None:
        """What a draft's own confidence decides, or None where it decides nothing.

        Not ``whole``: the draft is still being written; it is left as soon as this says ``doubtful``.
        """
        ...

    def answer(self, state: TrackState, problem: Problem, reason: FinishReason) -> str | None:
        """The answer, as written by the model, of a track that ends for that reason; None where it has none to vote."""
        ...

    def same(self, one: str, other: str, problem: Problem) -> bool | None:
        """Whether two answers are equal by a rule of the strategy's own; None leaves it to the judge of answers."""
        ...

    def ends_sample(self, sample: SampleState) -> bool:
        """Whether the tracks that finished so far make the others useless."""
        ...

    def vote(self, sample: SampleState, classes: Sequence[Sequence[str]]) -> str | None:
        """The winning track, or None. ``classes``: tracks (names) whose answers are equal, in the order found."""
        ...


@dataclass(frozen=True, slots=True)
class StepPrompts:
    """The texts that the runtime puts around steps, chosen by the strategy.

    ``judge``: what the judge's turn asks. ``judge_reply``: how the judge's answer opens; a digit follows.
    ``closing``: what follows the reasoning when the answer is asked for. ``raw``: the judge's text follows the step as
    it is, without a turn of its own. ``any_token``: the judge may write what it likes, not digits alone.
    ``judge_ids_max``: the most ids that the judge's text and opening words may have together. ``scorer``: whether there is
    a judge at all, or the step's likelihood is its score.
    """

    judge: str
    judge_reply: str
    closing: str
    raw: bool = False
    any_token: bool = False
    judge_ids_max: int | None = None
    scorer: Literal["judge", "likelihood"] = "judge"


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds and the sampling of a track. Lengths are in tokens.

    ``speculate``: whether its steps are drafted at all, or as the controller decides.
    ``min_step_tokens``: a step that a blank line would end sooner goes on. ``confidence``, ``first_entropy``: what drafts
    are asked for beside their tokens, for the gate.
    ``original_marks``: where there are any, steps are cut as SSR's code did it: a piece with nothing visible is a step,
    the last step may run over the budget, and ``</think>`` is taken out of steps that hold none of these marks.
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
        """Whether two answers mean the same."""
        ...

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        """``correct``, ``wrong`` or ``grader_failed``."""
        ...


@runtime_checkable
class EquivalenceBySample(Protocol):
    """A judge that bounds what one sample's answers may cost: each sample is judged by one that it gives for it."""

    def of_sample(self) -> Equivalence: ...


class Sink(Protocol):
    """Receives a run's events, in order.

    A run awaits its trace and the caller of ``stream``. Any other sink has a bounded queue and a task of its own, in which
    ``emit`` and ``room`` are called by turns: one that does I/O keeps the event in ``emit`` and does the rest in ``room``.
    """

    def emit(self, event: Event) -> None:
        """Takes the event at once, without waiting."""
        ...

    async def room(self) -> None:
        """Waits until the sink has kept up. Tracks wait here for a trace before each operation, so none is refused."""
        ...

    async def aclose(self) -> None: ...
