"""Drafts each step, lets the target score it, and rewrites it if the score is too low.

After SSR (arXiv 2505.15340) and SpecReason (arXiv 2504.07891), without rounds: no track waits for another. With a gate,
steps of which the draft itself is sure, or doubtful, need no score. A request that an engine refuses costs its step the
draft: the target writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.errors import RequestError
from speclrm.runtime.protocols import Role
from speclrm.strategies.acceptance import REWRITTEN_SCORES, accepts
from speclrm.strategies.family import Family
from speclrm.strategies.prompts import RAW_OPENING

if TYPE_CHECKING:
    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Step, Track
    from speclrm.strategies.recipe import WorkAhead


class Speculative(Family):
    """``speculative`` and ``speculative-methods``: draft, score, rewrite, each track independently."""

    name: str = "speculative"
    raw_opening: str = RAW_OPENING

    @property
    def roles(self) -> frozenset[Role]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A draft model is not loaded where it would never be asked."""
        return frozenset({Role.TARGET} if self.recipe.speculate == "never" else {Role.DRAFT, Role.TARGET})

    async def run_track(self, track: Track) -> FinishReason:
        best = REWRITTEN_SCORES[self.recipe.scorer]
        while (reason := self.end(track.state)) is None:
            if not await track.speculates():
                await track.commit(await track.write(), best)
                continue
            try:
                step = await track.draft()
            except RequestError:
                step = None  # the trace has the reason
            if step is None:
                await track.commit(await track.write(), best)
                continue
            kept, score = await self._judged(track, step)
            if kept:
                await track.commit(step, score)
            else:
                await track.commit(await track.rewrite(step), best)
        return await self.closed(track, reason)

    async def _judged(self, track: Track, step: Step) -> tuple[bool, float | None]:
        """Returns whether the step is kept, and its score. A draft that is sure, or doubtful, of itself is not scored,
        and one that the target's engine refuses to read is not kept.
        """
        verdict = self.gate(step.confidence, whole=not step.left) if step.confidence else None
        if verdict is not None:
            await track.gate(step, verdict)
            return verdict == "sure", None
        eager = track.state.mode == "eager"
        draft, rewrite = _does(self.recipe.draft_ahead, eager), _does(self.recipe.rewrite_ahead, eager)
        if (draft or rewrite) and not step.ended and not self.finishes(step.text, track.state):
            track.ahead(step, draft=draft, rewrite=rewrite)
        try:
            score = await track.score(step)
        except RequestError:
            return False, None
        return accepts(score.value, self.recipe.score_threshold), score.value


def _does(ahead: WorkAhead, eager: bool) -> bool:
    return eager if ahead == "auto" else ahead == "always"
