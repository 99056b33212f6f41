"""Defines the base class of all strategies: a recipe, the plan, the rule that ends a track, the closing write, and the vote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from speclrm.runtime.protocols import Limits, Plan, Role, Score
from speclrm.strategies import original
from speclrm.strategies.acceptance import Gate
from speclrm.strategies.method_choice import ask_for_methods, read_methods
from speclrm.strategies.methods import NO_METHOD
from speclrm.strategies.plan import draw_methods, repeat_codes, tracks_for
from speclrm.strategies.prompts import step_prompts
from speclrm.strategies.roles import ROLES
from speclrm.strategies.scoring import read_score
from speclrm.strategies.stopping import end_of_track, enough
from speclrm.strategies.voting import vote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from speclrm.runtime.events import ChosenBy, FinishReason, Verdict
    from speclrm.runtime.protocols import Confidence, Problem, Question, StepPrompts, Track
    from speclrm.runtime.state import SampleState, TrackState
    from speclrm.strategies.recipe import Recipe


class Family(ABC):
    """A strategy made of a recipe and a loop.

    ``find_answer``: returns the answer in a whole text, as written, or None. ``finished_answer``: returns the answer by which a
    step ends its track, given the text of the step and of the one before it. Both are injected, since the evaluators know what an
    answer looks like; without the second, a step ends its track if the first finds an answer in it. ``name``: the
    strategy's name, if one loop serves several strategies.
    """

    name: str
    roles: frozenset[Role]
    raw_opening: str = ""
    """Text between prompt and first step if the prompt is raw text."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """Defaults of recipe options that differ from those of ``Recipe``; for strategies that are found by their class."""

    def __init__(
        self,
        recipe: Recipe,
        find_answer: Callable[[str], str | None],
        name: str | None = None,
        *,
        finished_answer: Callable[[str, str], str | None] | None = None,
    ) -> None:
        self.name = name or type(self).name
        self.recipe = recipe
        self._find_answer = find_answer
        self._finds_finished = finished_answer
        self._original = recipe.fidelity == "original"

    # ------------------------------------------------------------------------------------------------------- the start

    @property
    def _chosen_by(self) -> ChosenBy:
        if self.recipe.methods or self.recipe.plan in ("plain", "roles"):
            return "fixed"
        return "target" if self.recipe.plan == "chosen" else "seed"

    def question(self, problem: Problem) -> Question | None:
        if self._chosen_by != "target":
            return None
        return ask_for_methods(problem, self.recipe.tracks, raw=self._raw, original=self._original)

    def plan(self, problem: Problem, repeat: int, seed: int | None, reply: str | None = None) -> Plan:
        recipe, padded = self.recipe, 0
        if reply is None:
            codes = self._codes(problem, repeat, seed)
        else:
            codes, padded = read_methods(reply, recipe.tracks, duplicates=recipe.duplicates, original=self._original)
        tracks = tracks_for(problem, codes, raw=self._raw, opening=self.raw_opening if self._raw else "")
        return Plan(tracks, self._chosen_by, padded)

    def _codes(self, problem: Problem, repeat: int, seed: int | None) -> Sequence[str]:
        recipe = self.recipe
        if recipe.methods:
            return repeat_codes(recipe.methods, recipe.tracks)
        match recipe.plan:
            case "plain" | "chosen":  # a choice comes from the target; without a reply there is none
                return [NO_METHOD] * recipe.tracks
            case "roles":
                return repeat_codes(tuple(ROLES), recipe.tracks)
            case "drawn":
                return draw_methods(recipe.tracks, seed, problem.id, repeat)

    @property
    def _raw(self) -> bool:
        return self.recipe.prompt_style == "raw"

    # -------------------------------------------------------------------------------------------------------- the tracks

    @property
    def prompts(self) -> StepPrompts:
        # The original lets the judge write any token and counts anything but a digit as 0.
        return replace(
            step_prompts(self.recipe.judge, raw=self._raw), any_token=self._original, scorer=self.recipe.scorer
        )

    @property
    def limits(self) -> Limits:
        recipe = self.recipe
        return Limits(
            token_budget=recipe.token_budget,
            max_step_tokens=recipe.max_step_tokens,
            closing_tokens=recipe.closing_tokens if recipe.closing else 0,
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            original_marks=original.FINISHED_MARKS if self._original else (),
            min_step_tokens=recipe.min_step_tokens,
            confidence=recipe.gate != Gate(),
            first_entropy=recipe.gate_entropy is not None,
            speculate=recipe.speculate,
        )

    @abstractmethod
    async def run_track(self, track: Track) -> FinishReason: ...

    def end(self, state: TrackState) -> FinishReason | None:
        """Returns why the track ends after its last step, None if it continues."""
        if self._original:
            return original.end_of_track(state, token_budget=self.recipe.token_budget)
        return end_of_track(
            state,
            token_budget=self.recipe.token_budget,
            step_limit=self.recipe.step_limit,
            answer=self._finished_answer,
        )

    def finishes(self, step: str, state: TrackState) -> bool:
        """Returns whether a step ends its track by an answer. It is the track's last step or the one that would follow it."""
        steps = state.steps
        last = steps[-1].text if steps else ""
        before = steps[-2].text if last == step and len(steps) > 1 else last if last != step else ""
        return self._finished_answer(step, before) is not None

    def _finished_answer(self, step: str, before: str = "") -> str | None:
        return self._find_answer(step) if self._finds_finished is None else self._finds_finished(step, before)

    async def closed(self, track: Track, reason: FinishReason) -> FinishReason:
        """Asks for the answer if a limit ended the track before there was one."""
        if (
            self.recipe.closing
            and reason in ("budget", "step_limit")
            and self._finished_answer(track.state.text) is None
        ):
            await track.commit(await track.close())
        return reason

    def score(self, digits: Sequence[float], said: str) -> Score:
        if self._original and self.recipe.score_method == "greedy":
            return original.score(said)
        return read_score(digits, self.recipe.score_method)

    def gate(self, confidence: Confidence, *, whole: bool) -> Verdict | None:
        return self.recipe.gate.verdict(confidence, whole=whole)

    # -------------------------------------------------------------------------------------------------------- the answer

    def answer(self, state: TrackState, problem: Problem, reason: FinishReason) -> str | None:
        if self._original:
            return original.answer(state.text, problem, reason)
        return self._find_answer(state.text)

    def same(self, one: str, other: str, problem: Problem) -> bool | None:
        return one == other if self._original else None

    def ends_sample(self, sample: SampleState) -> bool:
        return enough(sample, self.recipe.fast)

    def vote(self, sample: SampleState, classes: Sequence[Sequence[str]]) -> str | None:
        return original.vote(sample) if self._original else vote(sample, classes, self.recipe.ties)
