"""A strategy of one's own in one file: the target writes only the first step, the draft all others, unjudged.

python examples/own_strategy.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import speclrm
from speclrm.evaluators.answers import find_answer
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.runtime import Parts, Runtime
from speclrm.strategies.family import Family
from speclrm.strategies.recipe import Recipe

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from speclrm.runtime.events import FinishReason

STEPS = ["We need the sum.\n\n", "It is four.\n\n", "The answer is \\boxed{4}."]


class FirstStepByTarget(Family):
    name = "first-step-by-target"
    roles = frozenset({speclrm.Role.DRAFT, speclrm.Role.TARGET})

    async def run_track(self, track: speclrm.Track) -> FinishReason:
        first = await track.draft()
        await track.commit(await track.rewrite(first))
        while (reason := self.end(track.state)) is None:
            await track.commit(await track.draft())
        return await self.closed(track, reason)


async def open_parts(stack: AsyncExitStack) -> Parts:
    draft = speclrm.ScriptedEngine(by_step(STEPS), name="draft")
    target = speclrm.ScriptedEngine(by_step(STEPS), name="target")
    return Parts({speclrm.Role.DRAFT: draft, speclrm.Role.TARGET: target}, ExactEquivalence())


async def main() -> None:
    async with Runtime(open_parts) as runtime:
        strategy = FirstStepByTarget(Recipe(tracks=2), find_answer)
        sample = await runtime.solve(speclrm.Problem("sum", "What is 2 + 2?", "4"), strategy)
    for track in sample.tracks.values():
        print(track.track, [step.origin for step in track.steps], track.answer)


if __name__ == "__main__":
    run_virtual(main())
