"""Measures a service under load: problems arrive at random, and each waits for its answer beside those already running."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from speclrm.app.resolve import resolve
from speclrm.app.summary_sink import SummarySink
from speclrm.benchmarks.report import BenchReport, Chart, Figure, Row, figure, percentile, report
from speclrm.runtime.clock import now_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speclrm.app.options import RunOptions
    from speclrm.benchmarks.modes import Mode
    from speclrm.runtime.protocols import Problem, Strategy
    from speclrm.runtime.runtime import Runtime
    from speclrm.runtime.state import SampleState

QUICK_PROBLEMS = 4


@dataclass(slots=True)
class Service:
    """The result of a stream of problems. ``waits_s``: from arrival to answer, in the order of arrivals. ``seconds``:
    from the start to the last answer. ``at_once_max``: most problems running at the same time.
    """

    waits_s: list[float] = field(default_factory=list[float])
    samples: list[SampleState] = field(default_factory=list["SampleState"])
    folds: list[SummarySink] = field(default_factory=list[SummarySink])
    seconds: float = 0.0
    at_once_max: int = 0


def arrivals(count: int, per_minute: float, seed: int) -> list[float]:
    """Returns when each of ``count`` problems comes, in seconds from the start: a Poisson process drawn from the seed.

    Other rates stretch or squeeze the same pattern, so that rates and modes are compared on the same arrivals.
    """
    generator = random.Random(f"{seed}/arrivals")
    times: list[float] = []
    at = 0.0
    for _ in range(count):
        at += generator.expovariate(1.0) * 60.0 / per_minute
        times.append(at)
    return times


async def serve(
    runtime: Runtime, strategy: Strategy, problems: Sequence[Problem], *, per_minute: float, seed: int = 0
) -> Service:
    """Solves each problem from the moment it comes, whatever is running then: concurrent calls of ``Runtime.solve``.

    Raises what ``Runtime.solve`` raises, in a group; the other calls are cancelled then.
    """
    service = Service()
    began = now_s()
    at_once = 0

    async def one(problem: Problem, at: float) -> tuple[float, SampleState, SummarySink]:
        nonlocal at_once
        await asyncio.sleep(max(0.0, began + at - now_s()))
        at_once += 1
        service.at_once_max = max(service.at_once_max, at_once)
        fold = SummarySink()
        state = await runtime.solve(problem, strategy, seed=seed, required=[fold])
        at_once -= 1
        return now_s() - began - at, state, fold

    async with asyncio.TaskGroup() as group:
        times = arrivals(len(problems), per_minute, seed)
        tasks = [group.create_task(one(problem, at)) for problem, at in zip(problems, times, strict=True)]
    for wait_s, state, fold in (task.result() for task in tasks):
        service.waits_s.append(wait_s)
        service.samples.append(state)
        service.folds.append(fold)
    service.seconds = now_s() - began
    return service


async def measure(
    options: RunOptions,
    *,
    modes: Sequence[Mode],
    rates: Sequence[float],
    problems: int,
    quick: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measures waits, throughput and queueing for each mode at each rate (problems a minute).

    ``options``: models, dataset, seed, and the options that all modes share. If there are fewer problems than asked
    for, they come again under other names. Runs on the loop that it is called on; simulated engines need one with
    virtual time.

    Raises:
        UsageError: something asked for cannot be done; nothing was loaded.
    """
    if quick:
        problems = min(problems, QUICK_PROBLEMS)
    seed = options.seed or 0
    resolved = resolve(options)
    found = resolved.problems
    stream = [
        replace(problem, id=problem.id if number < len(found) else f"{problem.id}~{number // len(found)}")
        for number in range(problems)
        for problem in (found[number % len(found)],)
    ]
    resolved = replace(resolved, options=resolved.options.model_copy(update={"concurrency": problems}), problems=stream)
    simulated = resolved.engines.simulated
    families = {mode.name: mode.family(**options.recipe) for mode in modes}
    rows: list[Row] = []

    async def at(mode: Mode, rate: float, runtime: Runtime) -> None:
        notify(f"{mode.name}, {rate:g} problems a minute")
        with mode.reproduced():
            service = await serve(runtime, families[mode.name], stream, per_minute=rate, seed=seed)
        rows.append(_row(mode, rate, service))

    if simulated:
        for mode in modes:
            for rate in rates:  # new engines each time: simulated ones start at once
                async with replace(resolved, strategy=families[mode.name]).runtime() as runtime:
                    await at(mode, rate, runtime)
    else:
        widest = max(families.values(), key=lambda family: (len(family.roles), family.recipe.tracks))
        async with replace(resolved, strategy=widest).runtime(lambda what, _done, _total: notify(what)) as runtime:
            for mode in modes:
                for rate in rates:
                    await at(mode, rate, runtime)
    return report(
        "load",
        "Time to an answer under load: problems arrive at random (Poisson), seconds from arrival to answer",
        rows=rows,
        figures=_figures(rows, modes, rates),
        models={role: name for role in ("target", "draft") if (name := getattr(options, role))},
        seeds=[seed],
        runs=1,
        quick=quick,
        simulated=simulated,
        settings={"dataset": options.dataset, "problems": problems, **options.recipe},
        charts=[
            Chart(
                name="waits",
                title="Seconds from arrival to answer",
                x="a minute",
                lines=("p50 s", "p99 s"),
                by="mode",
                y_label="seconds",
                log_x=True,
                log_y=True,
            )
        ],
        notes=[
            "queued s: mean over requests, before the engine took them; at once: the most problems at work together"
        ],
    )


def _row(mode: Mode, rate: float, service: Service) -> Row:
    summaries = [fold.summary() for fold in service.folds]
    phases = [phase for summary in summaries for phase in summary.phases.values()]
    requests = sum(phase.requests for phase in phases)
    graded = [state for state in service.samples if state.outcome != "ungraded"]
    kept = sum(counts.kept for summary in summaries for counts in summary.tokens.values())
    return {
        "mode": mode.name,
        "a minute": rate,
        "p50 s": percentile(service.waits_s, 0.50),
        "p90 s": percentile(service.waits_s, 0.90),
        "p99 s": percentile(service.waits_s, 0.99),
        "answered a minute": len(service.samples) / service.seconds * 60,
        "tokens/s": kept / service.seconds,
        "queued s": sum(phase.queue_s for phase in phases) / requests if requests else 0.0,
        "at once": service.at_once_max,
        "accuracy": sum(state.outcome == "correct" for state in graded) / len(graded) if graded else None,
    }


def _figures(rows: Sequence[Row], modes: Sequence[Mode], rates: Sequence[float]) -> list[Figure]:
    """Compares the first mode's waits with each other mode's, at each rate."""
    found: list[Figure] = []
    by_place = {(row["mode"], row["a minute"]): row for row in rows}
    for other in modes[1:]:
        for rate in rates:
            one, two = by_place[modes[0].name, rate]["p50 s"], by_place[other.name, rate]["p50 s"]
            assert isinstance(one, float)
            assert isinstance(two, float)
            name = f"median wait at {rate:g} a minute, {modes[0].name} / {other.name}"
            found.append(figure(name, one / two if two else None))
    return found
