"""What tests of resuming and replaying share: runs recorded into a folder, cut, gone on with, and played again."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support import ExactAnswers, parts

from speclrm.evaluators.metrics import Summary
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import ScriptedEngine
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.engines.simulated.presets import PRESETS
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.events import StepDrafted, StepScored, StepWritten
from speclrm.runtime.protocols import Role
from speclrm.runtime.replay.recorded_run import Past, read_past
from speclrm.runtime.run_parts import Resumption, RunResult
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace
from speclrm.runtime.trace.run_directory import RUN_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Problem, Strategy
    from speclrm.runtime.replay.playback import Playback
    from speclrm.runtime.state import SampleState


class Fold(Summary):
    """A sink that keeps the run's results as its folder would have them. ``samples``: what the run itself returned."""

    samples: tuple[SampleState, ...] = ()

    def emit(self, event: Event) -> None:
        self.add(event)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    @property
    def lines(self) -> list[str]:
        """results.jsonl, without what samples took"""
        return [row.decided() for row in self.summary().samples]


def world(steps: float = 6.0, seed: int = 0) -> SimulatedWorld:
    """Short tracks: a few steps, so that each boundary of a run can be tried."""
    return SimulatedWorld(WorldSettings((0.6,), steps=steps, draft_step=10, target_step=12), seed)


def simulated(one: SimulatedWorld) -> dict[Role, Engine]:
    """Fresh engines on a world."""
    return {
        Role.TARGET: SimulatedEngine("sim/qwq-32b", PRESETS["qwq-32b"], one, one.tokenizer),
        Role.DRAFT: SimulatedEngine("sim/r1-1.5b", PRESETS["r1-1.5b"], one, one.tokenizer),
    }


@dataclass
class Setup:
    """A run that can be had again: the same strategy, problems and engines."""

    engines: Callable[[], Mapping[Role, Engine]]
    strategy: Strategy
    problems: Sequence[Problem]
    repeats: int = 1
    seed: int | None = 0
    concurrency: int = 16

    def run(
        self,
        directory: Path,
        *,
        resumption: Resumption | None = None,
        cancel_after_s: float | None = None,
        engines: Mapping[Role, Engine] | None = None,
    ) -> Fold:
        fold = Fold()

        async def main() -> None:
            async with Runtime(parts(engines or self.engines(), ExactAnswers())) as runtime:
                task = asyncio.create_task(
                    runtime.run(
                        self.problems,
                        self.strategy,
                        repeats=self.repeats,
                        seed=self.seed,
                        concurrency=self.concurrency,
                        directory=directory,
                        sinks=[fold],
                        resumption=resumption,
                    )
                )
                if cancel_after_s is not None:
                    await asyncio.sleep(cancel_after_s)
                    task.cancel()
                done = await asyncio.gather(task, return_exceptions=cancel_after_s is not None)
                if isinstance(done[0], RunResult):
                    fold.samples = done[0].samples

        try:
            run_virtual(main())
        finally:
            for engine in (engines or {}).values():
                assert not engine.stats().running
        return fold

    def resume(self, directory: Path, **options: object) -> Fold:
        return self.run(directory, resumption=self.resumption(directory), **options)  # type: ignore[arg-type]

    def resumption(self, directory: Path) -> Resumption:
        past = read_past(directory)
        return Resumption(past, lambda _: (self.strategy, self.seed), lambda: read_trace(directory / TRACE_FILE))

    def replay(self, past: Past, strategy: Strategy | None = None) -> tuple[Playback, Fold]:
        """Plays a trace on engines that must not be asked."""
        fold = Fold()
        silent = {role: Silent(engine) for role, engine in self.engines().items()}

        async def main() -> Playback:
            async with Runtime(parts(silent, ExactAnswers())) as runtime:
                return await runtime.replay(
                    past, self.problems, lambda _: (strategy or self.strategy, self.seed), [fold]
                )

        return run_virtual(main()), fold


class Silent(ScriptedEngine):
    """An engine that stands for a recorded one."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(_never, name=engine.name, tokenizer=engine.tokenizer, max_model_len=engine.max_model_len)  # type: ignore[arg-type]


def _never(*_: object) -> object:
    raise AssertionError("an engine was asked in a replay")


def read_all(directory: Path) -> list[Event]:
    return list(read_trace(directory / TRACE_FILE))


def lines_of(directory: Path) -> list[str]:
    """results.jsonl as it follows from the trace in a folder."""
    fold = Fold()
    for event in read_trace(directory / TRACE_FILE):
        fold.add(event)
    return fold.lines


COSTS = ("seconds", "generated", "decode_flops", "all_flops")
"""Fields of a row that say what a sample took: a break costs more."""


def decisions(lines: Sequence[str]) -> dict[tuple[str, int], dict[str, JsonValue]]:
    """Results without what they took; votes in the order of their tracks, since who ends first is a matter of time."""
    rows: dict[tuple[str, int], dict[str, JsonValue]] = {}
    for line in lines:
        row = json.loads(line)
        for cost in COSTS:
            row.pop(cost, None)
        best = max((track["mean_score"] or 0.0 for track in row["tracks"]), default=0.0)
        if sum((track["mean_score"] or 0.0) == best for track in row["tracks"]) > 1:
            del row["winner"]  # of equals the one that came first
            sizes = sorted((len(tracks) for _, tracks in row["votes"]), reverse=True)
            if sizes[:1] == sizes[1:2]:
                del row["answer"], row["outcome"]
        row["votes"] = sorted((answer, sorted(tracks)) for answer, tracks in row["votes"])
        rows[row["problem"], row["repeat"]] = row
    return rows


def cut(source: Path, folder: Path, *, lines: int | None = None, size: int | None = None) -> Path:
    """A copy of a run's folder whose trace ends early, as a crash leaves it."""
    folder.mkdir(parents=True)
    shutil.copy(source / RUN_FILE, folder / RUN_FILE)
    data = (source / TRACE_FILE).read_bytes()
    if lines is not None:
        data = b"".join(data.splitlines(keepends=True)[:lines])
    (folder / TRACE_FILE).write_bytes(data[:size])
    return folder


def generated(events: Sequence[Event]) -> list[str]:
    """The ids of the requests whose steps were committed, each as often as an engine was asked for it."""
    asked: list[str] = []
    for event in events:
        if isinstance(event, StepDrafted | StepWritten | StepScored):
            asked += [op.id for op in event.operations if op.prompt_tokens]
    return asked
