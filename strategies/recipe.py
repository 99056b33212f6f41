"""The parameters of a strategy: one home, one default and one sentence for each, with its source."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from speclrm.runtime.protocols import Speculate
from speclrm.strategies.acceptance import RANGES, THRESHOLDS, Gate
from speclrm.strategies.methods import METHODS, NO_METHOD
from speclrm.strategies.plan import PlanKind
from speclrm.strategies.prompts import JudgeLayout
from speclrm.strategies.scoring import ScoreMethod, Scorer
from speclrm.strategies.stopping import Fast

PromptStyle = Literal["chat", "raw"]
Fidelity = Literal["none", "original"]
WorkAhead = Literal["auto", "always", "never"]

ENTROPY_MAX = math.log(20)
"""The entropy of twenty equally likely tokens, which is over how many it is taken."""


def _threshold(values: dict[str, Any]) -> float:
    return THRESHOLDS[values.get("scorer", "judge")]


class Recipe(BaseModel):
    """Defaults are those of the original experiments' code (SSR, arXiv 2505.15340; SpecReason, arXiv 2504.07891)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tracks: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Tracks of a sample. SSR ran 3 and 5."""
    plan: PlanKind = "plain"
    """What the tracks are told to try: nothing, a role, methods drawn by the seed, or methods chosen by the target."""
    methods: tuple[str, ...] = ()
    """Method codes, one a track, instead of drawn or chosen ones; fewer than tracks are repeated in order."""
    duplicates: bool = True
    """Whether the target may choose a method more than once; it may in SSR's code."""
    prompt_style: PromptStyle = "chat"
    """``chat``: the models' own chat templates. ``raw``: plain text in the layout of SSR's code, which has none."""
    fast: Fast | None = None
    """1: the first answer ends the sample. 2: two tracks with equal answers end it."""
    speculate: Speculate = "auto"
    """Whether drafts are made: as the break-even controller decides, always, or never."""
    draft_ahead: WorkAhead = "auto"
    """Whether the next step is drafted while the score of one is on its way: where the controller says that engines have the
    time, always, or never."""
    rewrite_ahead: WorkAhead = "auto"
    """The same for the step's rewrite."""
    fidelity: Fidelity = "none"
    """``original``: the decisions of SSR's code (``strategies/original.py``)."""
    scorer: Scorer = "judge"
    """``judge``, as in both, or ``likelihood``."""
    judge: JudgeLayout = "auto"
    """``turn``, ``inline`` or ``auto``: where the judge is asked."""
    score_threshold: float = Field(default_factory=_threshold)
    """A draft under it is rewritten. A judge's is from 0 to 9, and 7.0 is the default of both; a likelihood's is in nats
    a token, at most 0."""
    score_method: ScoreMethod = "greedy"
    """``greedy`` or ``average``; greedy is the default of both."""
    token_budget: Annotated[int, Field(ge=1)] = 8192
    """Committed tokens of a track."""
    max_step_tokens: Annotated[int, Field(ge=1)] = 512
    """A step is cut there if no blank line ended it."""
    min_step_tokens: Annotated[int, Field(ge=0)] = 0
    """A blank line behind fewer tokens does not end a step. Off, as in both."""
    gate_sure: Annotated[float, Field(le=0)] | None = None
    """Drafts whose mean log-probability is at least this are kept without a score."""
    gate_doubt: Annotated[float, Field(le=0)] | None = None
    """Drafts whose mean log-probability is under this are left to the target without a score."""
    gate_entropy: Annotated[float, Field(ge=0, le=ENTROPY_MAX)] | None = None
    """Drafts whose first token's entropy (nats, over the twenty most probable ones) is above this are, too, at once."""
    gate_tokens: Annotated[int, Field(ge=1)] | None = None
    """With ``gate_doubt``: from so many tokens on, a draft that is under it is not written to its end."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.6
    """For drafting, rewriting and writing. Scores are taken before temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    step_limit: Annotated[int, Field(ge=1)] | None = None
    """Steps of a track; no limit unless asked for."""
    closing: bool = True
    """Whether a track that used up its budget without an answer is asked for one in a short write. Ours."""
    closing_tokens: Annotated[int, Field(ge=1)] = 48
    """The length of that write."""

    @field_validator("methods")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [code for code in codes if code not in METHODS and code != NO_METHOD]
        if unknown:
            raise ValueError(f"no method is called {', '.join(unknown)}; there are A to L, and M for none")
        return codes

    @property
    def gate(self) -> Gate:
        return Gate(self.gate_sure, self.gate_doubt, self.gate_entropy, self.gate_tokens)

    @model_validator(mode="after")
    def _threshold_on_the_scorers_scale(self) -> Self:
        least, most = RANGES[self.scorer]
        if not least <= self.score_threshold <= most:
            raise ValueError(
                f"score_threshold = {self.score_threshold:g}: with scorer {self.scorer} it is from {least:g} to {most:g}"
            )
        return self

    @model_validator(mode="after")
    def _no_layout_besides(self) -> Self:
        if self.judge != "auto":
            if self.prompt_style == "raw":
                raise ValueError(f"judge = {self.judge}: raw prompts have a layout of their own; leave it out")
            if self.scorer == "likelihood":
                raise ValueError(f"judge = {self.judge}: scorer likelihood asks no judge; leave it out")
        return self

    @model_validator(mode="after")
    def _gates_that_work(self) -> Self:
        if self.gate_tokens is not None and self.gate_doubt is None:
            raise ValueError("gate_tokens says when a draft is doubtful enough to be left; give gate_doubt, too")
        if self.gate_sure is not None and self.gate_doubt is not None and self.gate_sure < self.gate_doubt:
            raise ValueError(
                f"gate_sure = {self.gate_sure:g} is under gate_doubt = {self.gate_doubt:g}, so that a step would be both"
            )
        return self

    @model_validator(mode="after")
    def _steps_that_fit(self) -> Self:
        if self.min_step_tokens > self.max_step_tokens:
            raise ValueError(
                f"min_step_tokens = {self.min_step_tokens} is more than max_step_tokens = {self.max_step_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _original_as_it_was(self) -> Self:
        ours = ("gate_sure", "gate_doubt", "gate_entropy", "gate_tokens", "min_step_tokens")
        given = [name for name in ours if getattr(self, name) not in (None, 0)]
        if self.scorer != "judge":
            given.append("scorer")
        if self.fidelity == "original" and given:
            raise ValueError(f"fidelity original has no {' and no '.join(given)}; leave that out")
        return self

    @model_validator(mode="after")
    def _one_plan(self) -> Self:
        if self.methods and self.plan == "roles":
            raise ValueError("methods and roles exclude each other; give one of them")
        return self
