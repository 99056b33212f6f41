"""Measures the runtime's own cost: CPU time a step and memory a track, on engines that cost nothing.

A step is a draft, its score and its commit, with a trace on disk and nobody who listens. The unit is an *empty operation*:
three trips through a queue to another task and back by a future, which is what a step's requests would be with nothing around
them. Both are measured in the same process, in turns.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import uvloop

from speclrm.app.resolve import make_strategy
from speclrm.benchmarks.null_engine import DELTA_TOKENS, STEP_TOKENS, CheapTokenizer, EmptyEngine
from speclrm.benchmarks.report import BenchReport, Chart, Figure, Row, figure, report, spread
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.gc_tuning import rare_collections
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AsyncExitStack

    from speclrm.strategies.family import Family

LoopKind = Literal["uvloop", "asyncio"]
LOOPS: dict[LoopKind, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}
TRIPS = 3
"""Trips to another task that an empty operation makes."""
TRACKS_PER_PROBLEM = 5
STEP_LIMIT_EMPTY_OPERATIONS = 15.0
"""Empty operations that a step may cost."""
GROWTH_MAX = 1.3
"""Factor by which a step may cost more at ten times as many tracks."""
TRACK_KB_MAX = 20.0
"""Memory of a track beside its token ids, which take four bytes each."""
ID_BYTES = 4


STEPS = 12
"""Steps of a track. The first and the last of each track are left out, with the starts and ends of tracks around them."""
MORE_RUNS = 10
"""Factor of runs if there are few tracks, whose runs are short."""
EMPTY_TRIPS = 20_000


def measure(
    *,
    loops: Sequence[LoopKind] = ("uvloop", "asyncio"),
    tracks: Sequence[int] = (10, 100, 1_000, 10_000),
    contexts: Sequence[int] = (200, 8_000),
    runs: int = 3,
    quick: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measures CPU time a step and memory a track, for each loop, number of ids in a context, and number of tracks.

    ``quick``: one run of each on the first loop, at up to 1,000 tracks.
    """
    if quick:
        loops, runs = loops[:1], 1
        tracks = [number for number in tracks if number <= 1_000] or tracks[:1]
    rows: list[Row] = []
    for loop in loops:
        for context in contexts:
            for number in tracks:
                notify(f"{loop}, contexts of {context} ids, {number} tracks")
                more = 1 if quick else max(1, min(MORE_RUNS, 1_000 // number))
                rows.append(_row(loop, context, number, runs * more))
    for context in contexts:
        notify(f"memory, contexts of {context} ids")
        number = max((one for one in tracks if one <= (100 if quick else 1_000)), default=min(tracks))
        kb = track_kb(number, context)
        for row in rows:
            if row["context ids"] == context and row["tracks"] == number:
                row["KB a track"] = kb
    return report(
        "overhead",
        "The runtime's own cost on engines that answer at once: CPU time of a step (draft, score, commit, trace on disk) and "
        "memory of a track",
        rows=rows,
        figures=_figures(rows),
        models={"target": "empty", "draft": "empty"},
        seeds=(0,),
        runs=runs,
        quick=quick,
        simulated=False,
        settings={"steps": STEPS, "step_tokens": STEP_TOKENS, "delta_tokens": DELTA_TOKENS, "max_num_seqs": 256},
        charts=[
            Chart(
                name="overhead",
                title="CPU time of the runtime itself a step",
                x="tracks",
                lines=("step us",),
                by="loop and context",
                y_label="microseconds",
                log_x=True,
            )
        ],
        notes=[
            f"an empty operation is {TRIPS} trips through a queue to another task and back by a future, by one caller alone; "
            "busy: by as many callers as tracks, which share the loop's passes as tracks do",
            "a step's time holds all threads of the process, the journal's too; a draft comes in "
            f"{STEP_TOKENS // DELTA_TOKENS} deltas",
        ],
    )


def _figures(rows: Sequence[Row]) -> list[Figure]:
    """Checks the bounds of the runtime, over rows at 1,000 and 10,000 tracks."""
    found: list[Figure] = []
    by_place = {(row["loop"], row["context ids"], row["tracks"]): row for row in rows}
    for (loop, context, tracks), row in by_place.items():
        ratio = row["step / empty"]
        if tracks == 1_000 and isinstance(ratio, float):
            name = f"step / empty operation, 1,000 tracks of {context} ids, {loop}"
            found.append(figure(name, ratio, at_most=STEP_LIMIT_EMPTY_OPERATIONS))
        tenth = by_place.get((loop, context, 1_000))
        if tracks == 10_000 and tenth is not None:
            name = f"step at 10,000 tracks / at 1,000, {context} ids, {loop}"
            found.append(figure(name, _number(row, "step us") / _number(tenth, "step us"), at_most=GROWTH_MAX))
        if (kb := row["KB a track"]) is not None:
            name = f"memory of a track beside its ids, {tracks:,} tracks of {context} ids"
            found.append(figure(name, float(kb), "KB", at_most=TRACK_KB_MAX))
    return found


def _number(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, float)
    return value


def _row(loop: LoopKind, context: int, tracks: int, runs: int) -> Row:
    steps: list[float] = []
    alone: list[float] = []
    busy: list[float] = []
    for _ in range(runs):
        with rare_collections(), asyncio.Runner(loop_factory=LOOPS[loop]) as runner:  # as the command line does
            alone.append(runner.run(empty_operation_s(1)))
            busy.append(runner.run(empty_operation_s(tracks)))
            steps.append(runner.run(step_s(tracks, context)))
    step, one, many = spread(steps), spread(alone), spread(busy)
    return {
        "loop and context": f"{loop}, {context} ids",
        "loop": loop,
        "context ids": context,
        "tracks": tracks,
        "runs": runs,
        "step us": step.median * 1e6,
        "least": step.low * 1e6,
        "most": step.high * 1e6,
        "empty us": one.median * 1e6,
        "empty us, busy": many.median * 1e6,
        "step / empty": step.median / one.median,
        "step / busy": step.median / many.median,
        "KB a track": None,
    }


async def empty_operation_s(callers: int) -> float:
    """Returns the CPU seconds of an empty operation, with a number of callers at once."""
    queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    trips = max(TRIPS, EMPTY_TRIPS // callers)

    async def serve() -> None:
        while True:
            (await queue.get()).set_result(None)

    async def call() -> None:
        for _ in range(trips):
            answer: asyncio.Future[None] = loop.create_future()
            queue.put_nowait(answer)
            await answer

    server = asyncio.create_task(serve())
    started = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
    spent = time.process_time() - started
    server.cancel()
    return spent / (callers * trips) * TRIPS


async def step_s(tracks: int, context: int) -> float:
    """Returns the CPU seconds of a step, mean over all but the first and the last of each track."""
    total = tracks * STEPS
    times: list[float] = []

    def note() -> None:
        times.append(time.process_time())

    gc.collect()
    with tempfile.TemporaryDirectory(prefix="speclrm-bench-") as folder:
        await run_empty(tracks, context, Path(folder) / "run", Gauge(tracks, total - tracks, note, note))
    began, ended = times
    return (ended - began) / (total - 2 * tracks)


def track_kb(tracks: int, context: int) -> float:
    """Returns Python's memory of a track that has taken half its steps, in units of 1,000 bytes, without four bytes an id."""
    held: list[int] = []

    def look() -> None:
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="speclrm-bench-") as folder:
            gauge = Gauge(1, tracks * STEPS // 2, lambda: None, look)
            await run_empty(tracks, context, Path(folder) / "run", gauge)

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    finally:
        tracemalloc.stop()
    ids = len(Role) * (context + STEPS // 2 * STEP_TOKENS) * ID_BYTES
    return ((held[0] - before) / tracks - ids) / 1_000


class Gauge:
    """Calls ``begin`` and ``end`` at given numbers of scored steps. The target's engine counts them: a sink that listens would
    add its queue and its task to what is measured.
    """

    def __init__(self, first: int, last: int, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._calls = {first: begin, last: end}
        self._seen = 0

    def scored(self) -> None:
        """Counts a step."""
        self._seen += 1
        if call := self._calls.get(self._seen):
            call()


def _problems(tracks: int, context: int, strategy: Family) -> list[Problem]:
    """Returns problems whose prompts have ``context`` ids for the models that read them."""
    shell = len(CheapTokenizer().render(strategy.plan(Problem("p", ""), 0, 0).tracks[0].messages))
    text = "x" * max(1, context - shell)
    return [Problem(f"p{number}", text) for number in range(-(-tracks // strategy.recipe.tracks))]


async def run_empty(tracks: int, context: int, directory: Path, gauge: Gauge) -> None:
    """Runs ``speculative`` on a number of tracks, every draft accepted, each track ended by the number of its steps."""
    strategy = make_strategy(
        "speculative",
        speculate="always",
        tracks=min(TRACKS_PER_PROBLEM, tracks),
        plan="plain",
        step_limit=STEPS,
        token_budget=10**9,
        closing=False,
    )

    async def parts(stack: AsyncExitStack) -> Components:
        engines = {role: EmptyEngine(f"empty {role}", scored=gauge.scored) for role in Role}  # only the target scores
        return Components(engines, ExactEquivalence())

    problems = _problems(tracks, context, strategy)
    async with Runtime(parts) as runtime:
        await runtime.run(problems, strategy, concurrency=len(problems), directory=directory)
