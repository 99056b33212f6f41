"""Shows a strategy of your own in one file: the target writes only the first step, the draft all others, without scores.

python examples/own_strategy.py
"""

from __future__ import annotations

import speclrm

STEPS = ["We need the sum.\n\n", "It is four.\n\n", "The answer is \\boxed{4}."]


class FirstStepByTarget(speclrm.Family):
    name = "first-step-by-target"
    roles = frozenset({speclrm.Role.DRAFT, speclrm.Role.TARGET})

    async def run_track(self, track: speclrm.Track) -> speclrm.FinishReason:
        first = await track.draft()
        await track.commit(await track.rewrite(first))
        while (reason := self.end(track.state)) is None:
            await track.commit(await track.draft())
        return await self.closed(track, reason)


async def main() -> None:
    draft = speclrm.ScriptedEngine(speclrm.by_step(STEPS), name="draft")
    target = speclrm.ScriptedEngine(speclrm.by_step(STEPS), name="target")
    async with speclrm.Runtime(engines={speclrm.Role.DRAFT: draft, speclrm.Role.TARGET: target}) as runtime:
        recipe = speclrm.Recipe(tracks=2)
        strategy = FirstStepByTarget(recipe, speclrm.find_answer, finished_answer=speclrm.finished_answer)
        sample = await runtime.solve(speclrm.Problem("sum", "What is 2 + 2?", "4"), strategy)
    for track in sample.tracks.values():
        print(track.track, [step.origin for step in track.steps], track.answer)


if __name__ == "__main__":
    speclrm.run_virtual(main())
