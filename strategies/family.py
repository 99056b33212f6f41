"""What all strategies share: a recipe, the rule that ends a track, the closing write, and the vote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.protocols import Limits, Role, Score, StepPrompts, TrackPlan
from speclrm.strategies.prompts import STEP_PROMPTS
from speclrm.strategies.scoring import read_score
from speclrm.strategies.stopping import end_of_track
from speclrm.strategies.voting import vote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Problem, Track
    from speclrm.runtime.state import SampleState, TrackState
    from speclrm.strategies.recipe import Recipe


class Family(ABC):
    """A strategy made of a recipe and a loop.

    ``find_answer``: the answer in a whole text, as written, or None; injected, since what an answer looks like is
    known to the evaluators.
    """

    name: str
    roles: frozenset[Role]

    def __init__(self, recipe: Recipe, find_answer: Callable[[str], str | None]) -> None:
        self.recipe = recipe
        self._find_answer = find_answer

    @property
    def methods_by(self) -> Literal["seed", "target", "fixed"]:
        return "fixed"

    @property
    def prompts(self) -> StepPrompts:
        return STEP_PROMPTS

    @property
    def limits(self) -> Limits:
        recipe = self.recipe
        return Limits(
            token_budget=recipe.token_budget,
            max_step_tokens=recipe.max_step_tokens,
            closing_tokens=recipe.closing_tokens if recipe.closing else 0,
            temperature=recipe.temperature,
            top_p=recipe.top_p,
        )

    @abstractmethod
    def plan(self, problem: Problem, repeat: int, seed: int | None) -> Sequence[TrackPlan]: ...

    @abstractmethod
    async def run_track(self, track: Track) -> FinishReason: ...

    def end(self, state: TrackState) -> FinishReason | None:
        """Why the track ends after its last step, or None."""
        return end_of_track(
            state,
            token_budget=self.recipe.token_budget,
            step_limit=self.recipe.step_limit,
            has_answer=lambda text: self._find_answer(text) is not None,
        )

    async def closed(self, track: Track, reason: FinishReason) -> FinishReason:
        """Asks for the answer where a limit ended the track before there was one."""
        if self.recipe.closing and reason in ("budget", "step_limit") and self.answer(track.state) is None:
            await track.commit(await track.close())
        return reason

    def score(self, digits: Sequence[float]) -> Score:
        return read_score(digits, self.recipe.score_method)

    def answer(self, state: TrackState) -> str | None:
        return self._find_answer(state.text)

    def ends_sample(self, sample: SampleState) -> bool:
        """Every track runs to its own end."""
        return False

    def vote(self, sample: SampleState, classes: Sequence[Sequence[str]]) -> str | None:
        return vote(sample, classes)
