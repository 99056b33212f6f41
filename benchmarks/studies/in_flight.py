"""Measures how many operations a second one event loop carries with thousands of tracks at once, on engines in its process.

    python benchmarks/studies/in_flight.py [--tracks 2000 10000]

*empty*: engines that answer at once and take all requests. *simulated*: the simulated H200 pair, which also imitates vLLM's
scheduler and writes texts. A step is a draft, its score and its commit, with a trace on disk; the seconds are processor time of
the whole run. For servers see http_clients.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from speclrm import api
from speclrm.app.options import RunOptions
from speclrm.app.resolve import make_strategy
from speclrm.app.summary_sink import SummarySink
from speclrm.benchmarks.null_engine import EmptyEngine
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import VirtualTimeLoop
from speclrm.runtime.gc_tuning import rare_collections
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from speclrm.evaluators.metrics import RunSummary

TRACKS_PER_PROBLEM = 5
STEPS = 6
BUDGET = 150
"""Tokens of a track on simulated engines: about as many steps."""


async def empty(tracks: int, folder: Path) -> RunSummary:
    strategy = make_strategy(
        "speculative",
        speculate="always",
        tracks=TRACKS_PER_PROBLEM,
        plan="plain",
        step_limit=STEPS,
        token_budget=10**9,
        closing=False,
    )

    async def parts(stack: AsyncExitStack) -> Components:
        return Components(
            {role: EmptyEngine(f"empty {role}", max_num_seqs=tracks) for role in Role}, ExactEquivalence()
        )

    problems = [Problem(f"p{number}", "x" * 100) for number in range(tracks // TRACKS_PER_PROBLEM)]
    async with Runtime(parts) as runtime:
        sink = SummarySink()
        await runtime.run(problems, strategy, concurrency=len(problems), directory=folder, required=[sink])
    return sink.summary()


async def simulated(tracks: int, folder: Path) -> RunSummary:
    samples = tracks // TRACKS_PER_PROBLEM
    options = RunOptions(
        strategy="speculative",
        target="sim/qwq-32b",
        draft="sim/r1-1.5b",
        dataset=f"sim:a70?size={samples}",
        recipe={"speculate": "always", "tracks": TRACKS_PER_PROBLEM, "token_budget": BUDGET},
        concurrency=samples,
        output_dir=folder,
    )
    return (await api.run(options)).summary


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "empty": uvloop.new_event_loop,
    "simulated": VirtualTimeLoop,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, nargs="+", default=[2_000, 10_000])
    for tracks in parser.parse_args().tracks:
        for name, part in (("empty", empty), ("simulated", simulated)):
            loop = LOOPS[name]
            with (
                tempfile.TemporaryDirectory() as folder,
                rare_collections(),
                asyncio.Runner(loop_factory=loop) as runner,
            ):
                began = time.process_time()
                summary = runner.run(part(tracks, Path(folder) / "run"))
                spent = time.process_time() - began
            operations = sum(phase.requests for phase in summary.phases.values())
            found = {"engines": name, "tracks": tracks, "operations": operations, "a_second": round(operations / spent)}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
