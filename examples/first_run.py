"""Runs a problem without any model: a scripted engine answers, and virtual time passes at once.

python examples/first_run.py
"""

from __future__ import annotations

import speclrm

STEPS = ["Two and two make four.\n\n", "So the answer is \\boxed{4}."]


async def main() -> None:
    draft = speclrm.ScriptedEngine(speclrm.by_step(STEPS), name="draft")
    target = speclrm.ScriptedEngine(speclrm.by_step(STEPS, scores=[8, 5]), name="target")
    async with speclrm.Runtime(engines={speclrm.Role.DRAFT: draft, speclrm.Role.TARGET: target}) as runtime:
        problem = speclrm.Problem("sum", "What is 2 + 2?", "4")
        async for event in runtime.stream(problem, speclrm.strategy("speculative")):
            print(f"{event.t:6.2f} s  {event.kind}")


if __name__ == "__main__":
    speclrm.run_virtual(main())
