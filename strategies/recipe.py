"""Declares the options of a strategy: type, default, range, one sentence, group and source of each."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from speclrm.runtime.events import Scorer
from speclrm.runtime.protocols import Speculate
from speclrm.strategies.acceptance import RANGES, THRESHOLDS, Gate
from speclrm.strategies.methods import METHODS, NO_METHOD
from speclrm.strategies.option import DRAFTS, FIDELITY, LENGTHS, SCORES, STRATEGY, Option
from speclrm.strategies.plan import PlanKind
from speclrm.strategies.prompts import JudgeLayout
from speclrm.strategies.scoring import ScoreMethod
from speclrm.strategies.stopping import Fast
from speclrm.strategies.voting import Ties

PromptStyle = Literal["chat", "raw"]
Fidelity = Literal["none", "original"]
WorkAhead = Speculate

ENTROPY_TOKENS = 20
"""Number of most probable tokens that an entropy is taken over."""
ENTROPY_MAX = math.log(ENTROPY_TOKENS)
"""In nats: all of them equally likely."""


def _threshold(values: dict[str, Any]) -> float:
    return THRESHOLDS[values.get("scorer", "judge")]


class Recipe(BaseModel):
    """The options of a strategy. Defaults are those of the original code (SSR, arXiv 2505.15340; SpecReason, arXiv
    2504.07891).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tracks: Annotated[
        int,
        Field(ge=1, le=10_000),
        Option(
            "Parallel tracks per sample.",
            STRATEGY,
            source="SSR ran 3 and 5",
            shown="1 for baseline, else 3",
            flags=("--method-num",),
        ),
    ] = 1
    plan: Annotated[
        PlanKind,
        Option(
            "Hints for the tracks: plain (none), roles, drawn (methods by the seed), or chosen (methods by the target).",
            STRATEGY,
            source="SSR: drawn; SSR-m: chosen",
            shown="by the strategy",
            metavar="PLAN",
        ),
    ] = "plain"
    methods: Annotated[
        tuple[str, ...],
        Option(
            "Method codes for the tracks (A to L, M for none), such as A,C,M; repeated in order if there are fewer.",
            STRATEGY,
            source="SSR's twelve methods",
            shown="set by --plan",
        ),
    ] = ()
    duplicates: Annotated[
        bool, Option("Let the target choose the same method twice.", STRATEGY, source="SSR's code allows it")
    ] = True
    fast: Annotated[
        Fast | None,
        Option(
            "Early stop: 1 ends a sample at the first answer, 2 at two equal answers.",
            STRATEGY,
            source="SSR",
            shown="off: all tracks finish",
        ),
    ] = None
    ties: Annotated[
        Ties,
        Option(
            "Winner among tracks with the same mean score: the shortest, or the first that ended.",
            STRATEGY,
            source="short-m@k, arXiv 2505.17813",
        ),
    ] = "shortest"
    speculate: Annotated[
        Speculate,
        Option(
            "Use draft steps: auto (when measured to be faster), always, or never.", DRAFTS, source="docs/scheduling.md"
        ),
    ] = "auto"
    draft_ahead: Annotated[
        WorkAhead,
        Option(
            "Draft the next step while a score is pending; auto: if --speculate auto forecasts a gain.",
            DRAFTS,
            source="docs/scheduling.md",
        ),
    ] = "auto"
    rewrite_ahead: Annotated[
        WorkAhead,
        Option(
            "Start the rewrite while a score is pending; auto: if --speculate auto forecasts a gain.",
            DRAFTS,
            source="docs/scheduling.md",
        ),
    ] = "auto"
    gate_sure: Annotated[
        float | None,
        Field(le=0),
        Option(
            "Experimental: accept draft steps with at least this mean log-probability without scoring them.",
            DRAFTS,
            source="ConfSpec",
            shown="off",
        ),
    ] = None
    gate_doubt: Annotated[
        float | None,
        Field(le=0),
        Option(
            "Experimental: reject draft steps below this mean log-probability without scoring them.",
            DRAFTS,
            source="ours",
            shown="off",
        ),
    ] = None
    gate_entropy: Annotated[
        float | None,
        Field(ge=0, le=ENTROPY_MAX),
        Option(
            "Experimental: reject draft steps whose first token has a higher entropy than this (nats, 0 to "
            f"{ENTROPY_MAX:.2f}).",
            DRAFTS,
            source="GlimpRouter, arXiv 2601.05110",
            shown="off",
        ),
    ] = None
    gate_tokens: Annotated[
        int | None,
        Field(ge=1),
        Option(
            "Experimental: apply --gate-doubt from this many tokens on, before the step is complete.",
            DRAFTS,
            source="ours",
            shown="at the step's end",
        ),
    ] = None
    scorer: Annotated[
        Scorer,
        Option(
            "Score of a draft step: a digit written by the target, or its mean log-likelihood (experimental).",
            SCORES,
            source="SSR and SpecReason",
        ),
    ] = "judge"
    judge: Annotated[
        JudgeLayout,
        Option(
            "Where the judge's question stands: in a turn of its own, or inline after the step (experimental).",
            SCORES,
            source="docs/scoring.md",
        ),
    ] = "auto"
    score_threshold: Annotated[
        float,
        Option(
            "Lowest accepted score: 0 to 9 (judge), nats per token up to 0 (likelihood), or auto (from `calibrate`).",
            SCORES,
            source="7 in SSR's and SpecReason's code; -1: docs/scoring.md",
            shown="7, or -1 for likelihood",
            words=("auto",),
            metavar="NUMBER|auto",
        ),
    ] = Field(default_factory=_threshold)
    score_method: Annotated[
        ScoreMethod,
        Option(
            "The judge's most probable digit (greedy), or the expected value over digits (average).",
            SCORES,
            source="greedy in SSR's and SpecReason's code",
        ),
    ] = "greedy"
    token_budget: Annotated[
        int, Field(ge=1), Option("Maximum tokens per track.", LENGTHS, source="SSR's and SpecReason's code")
    ] = 8192
    max_step_tokens: Annotated[
        int, Field(ge=1), Option("Maximum tokens per step.", LENGTHS, source="SSR's and SpecReason's code")
    ] = 512
    min_step_tokens: Annotated[
        int,
        Field(ge=0),
        Option("Experimental: minimum tokens before a blank line ends a step.", LENGTHS, source="0, as in SSR"),
    ] = 0
    step_limit: Annotated[
        int | None, Field(ge=1), Option("Maximum steps per track.", LENGTHS, source="ours", shown="unlimited")
    ] = None
    closing: Annotated[
        bool, Option("Ask for the final answer when a track runs out of tokens or steps.", LENGTHS, source="ours")
    ] = True
    closing_tokens: Annotated[
        int, Field(ge=1), Option("Maximum tokens of the answer that --closing asks for.", LENGTHS, source="ours")
    ] = 48
    temperature: Annotated[
        float,
        Field(ge=0, le=2),
        Option("Sampling temperature of both models; scores ignore it.", LENGTHS, source="SSR's and SpecReason's code"),
    ] = 0.6
    top_p: Annotated[
        float,
        Field(gt=0, le=1),
        Option("Nucleus sampling: cumulative probability.", LENGTHS, source="SSR's and SpecReason's code"),
    ] = 0.95
    prompt_style: Annotated[
        PromptStyle,
        Option(
            "Prompt format: the models' chat templates, or raw text in the layout of the original code.",
            FIDELITY,
            source="ours; SSR's code is raw",
        ),
    ] = "chat"
    fidelity: Annotated[
        Fidelity,
        Option(
            "original: reproduce the decisions of the original code, with raw prompts and no final-answer request.",
            FIDELITY,
            source="strategies/original.py",
        ),
    ] = "none"

    @field_validator("methods", mode="before")
    @classmethod
    def _codes(cls, codes: Any) -> Any:
        """Also reads text with commas, in any letter case."""
        parts: Any = codes.split(",") if isinstance(codes, str) else codes
        if isinstance(parts, list | tuple):
            return tuple(part.strip().upper() if isinstance(part, str) else part for part in cast("list[Any]", parts))
        return parts

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
