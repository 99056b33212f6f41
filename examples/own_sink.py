"""Shows a sink of your own: it writes a line to a file for each sample that ends, during the run.

``emit`` takes an event at once; ``room`` may wait. The run gives each sink a queue and a task of its own, so a slow
disk or a far server delays nothing.

python examples/own_sink.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import aiofiles

import speclrm


class Ledger:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def emit(self, event: speclrm.Event) -> None:
        if event.kind == "sample_finished":
            self.lines.append(f"{event.problem}: {event.outcome} after {event.seconds:.2f} s\n")

    async def room(self) -> None:
        lines, self.lines = self.lines, []
        if lines:
            async with aiofiles.open(self.path, "a", encoding="utf-8") as file:
                await file.writelines(lines)

    async def aclose(self) -> None:
        await self.room()


async def main(path: Path) -> None:
    problems = [speclrm.Problem("two and two", "What is 2 + 2?", "4"), speclrm.Problem("two and three", "2 + 3?", "5")]
    engine = speclrm.ScriptedEngine(speclrm.by_step(["It is four.\n\n", "The answer is \\boxed{4}."]))
    async with speclrm.Runtime(engines={speclrm.Role.TARGET: engine}) as runtime:
        await runtime.run(problems, speclrm.strategy("baseline"), sinks=[Ledger(path)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "ledger.txt"
        speclrm.run_virtual(main(kept))
        print(kept.read_text(), end="")
