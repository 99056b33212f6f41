"""A listener of one's own: keeps a line for each sample that ends, in a file, while the run goes on.

``emit`` takes an event at once; ``room`` is where waiting is allowed. The run gives each sink a queue and a task of its own,
so a slow disk or a far server holds nothing up.

python examples/own_sink.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import aiofiles

import speclrm
from speclrm.evaluators.answers import find_answer
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.events import SampleFinished
from speclrm.runtime.runtime import Parts, Runtime
from speclrm.strategies.catalog import strategy

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from speclrm.runtime.events import Event


class Ledger:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, SampleFinished):
            self.lines.append(f"{event.problem}: {event.outcome} after {event.seconds:.2f} s\n")

    async def room(self) -> None:
        lines, self.lines = self.lines, []
        if lines:
            async with aiofiles.open(self.path, "a", encoding="utf-8") as file:
                await file.writelines(lines)

    async def aclose(self) -> None:
        await self.room()


async def open_parts(stack: AsyncExitStack) -> Parts:
    engine = speclrm.ScriptedEngine(by_step(["It is four.\n\n", "The answer is \\boxed{4}."]))
    return Parts({speclrm.Role.TARGET: engine}, ExactEquivalence())


async def main(path: Path) -> None:
    problems = [speclrm.Problem("two and two", "What is 2 + 2?", "4"), speclrm.Problem("two and three", "2 + 3?", "5")]
    async with Runtime(open_parts) as runtime:
        await runtime.run(problems, strategy("baseline", find_answer), sinks=[Ledger(path)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "ledger.txt"
        run_virtual(main(kept))
        print(kept.read_text(), end="")
