"""The parameters of a strategy: one home, one default and one sentence for each, with its source."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from speclrm.runtime.protocols import Speculate
from speclrm.strategies.methods import METHODS, NO_METHOD
from speclrm.strategies.plan import PlanKind
from speclrm.strategies.scoring import ScoreMethod
from speclrm.strategies.stopping import Fast

PromptStyle = Literal["chat", "raw"]
Fidelity = Literal["none", "original"]


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
    fidelity: Fidelity = "none"
    """``original``: the decisions of SSR's code (``strategies/original.py``)."""
    score_threshold: Annotated[float, Field(ge=0, le=9)] = 7.0
    """A draft under it is rewritten; 7.0 is the default of both."""
    score_method: ScoreMethod = "greedy"
    """``greedy`` or ``average``; greedy is the default of both."""
    token_budget: Annotated[int, Field(ge=1)] = 8192
    """Committed tokens of a track."""
    max_step_tokens: Annotated[int, Field(ge=1)] = 512
    """A step is cut there if no blank line ended it."""
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

    @model_validator(mode="after")
    def _one_plan(self) -> Self:
        if self.methods and self.plan == "roles":
            raise ValueError("methods and roles exclude each other; give one of them")
        return self
