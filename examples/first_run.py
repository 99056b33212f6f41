"""A whole run without any model: a scripted engine answers, virtual time passes at once.

python examples/first_run.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import speclrm
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.runtime import Parts, Runtime

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

STEPS = ["Two and two make four.\n\n", "So the answer is \\boxed{4}."]


async def open_parts(stack: AsyncExitStack) -> Parts:
    draft = speclrm.ScriptedEngine(by_step(STEPS), name="draft")
    target = speclrm.ScriptedEngine(by_step(STEPS, scores=[8, 5]), name="target")
    return Parts({speclrm.Role.DRAFT: draft, speclrm.Role.TARGET: target}, ExactEquivalence())


async def main() -> None:
    async with Runtime(open_parts) as runtime:
        problem = speclrm.Problem("sum", "What is 2 + 2?", "4")
        async for event in runtime.stream(problem, speclrm.strategy("speculative")):
            print(f"{event.t:6.2f} s  {event.kind}")


if __name__ == "__main__":
    run_virtual(main())
