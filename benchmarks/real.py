"""Compares strategies on real engines that are loaded once, and the target with bare vLLM.

Everything compared takes turns in ABBA rounds, so that a machine which becomes slower spoils no comparison. Each turn
begins with empty prefix caches.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import psutil

from speclrm.app.resolve import resolve
from speclrm.app.summary_sink import SummarySink
from speclrm.benchmarks.report import BenchReport, Figure, Row, figure, report, spread
from speclrm.runtime.engines.restarting import inner
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.prompts import open_prompt
from speclrm.strategies.family import Family

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from speclrm.app.options import RunOptions
    from speclrm.benchmarks.modes import Mode
    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.protocols import Problem, Track
    from speclrm.runtime.runtime import Runtime

CPU_SHARE_MAX = 0.05
"""Share of a run's CPU time that our own process may take."""
BARE, UNENDING = "bare vLLM", "baseline to the budget"
"""The same prompts and numbers of tokens, by plain calls of the engine and by the runtime."""
WARM_UP_TOKENS = 16


class BareEngine(Protocol):
    """The protocol of an engine that is used without a runtime, such as the vLLM engine."""

    async def generate_bare(self, ids: Sequence[int], max_tokens: int, seed: int) -> int: ...

    async def forget_prefixes(self) -> None: ...


class Unending(Family):
    """The target alone, to the budget: no answer stops a track early, and no end but one with nothing more behind it."""

    name = "baseline"
    roles = frozenset({Role.TARGET})

    async def run_track(self, track: Track) -> FinishReason:
        while track.state.tokens < self.recipe.token_budget:
            step = await track.write()
            await track.commit(step)
            if not step.ids:
                return "end_of_text"  # a model that insists on its end would be asked for ever
        return "budget"


@dataclass(slots=True)
class Turns:
    """The results of a mode's turns, one entry a turn. ``own_s``, ``engines_s``: CPU seconds of processes."""

    seconds: list[float] = field(default_factory=list[float])
    tokens: list[int] = field(default_factory=list[int])
    accuracy: list[float | None] = field(default_factory=list["float | None"])
    acceptance: list[float | None] = field(default_factory=list["float | None"])
    own_s: list[float] = field(default_factory=list[float])
    engines_s: list[float] = field(default_factory=list[float])

    @property
    def rates(self) -> list[float]:
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]


def orders(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Returns the modes' order in each round: every second round goes backwards (ABBA)."""
    return [list(names) if number % 2 == 0 else list(reversed(names)) for number in range(rounds)]


async def measure(
    options: RunOptions,
    *,
    modes: Sequence[Mode],
    rounds: int = 2,
    bare: bool = True,
    quick: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measures seconds, tokens, accuracy and the runtime's own share of CPU time for each mode, medians over rounds.

    ``options``: models, problems, seed, and the options that all modes share. ``bare``: also measure the target alone
    against bare calls of its engine.

    Raises:
        UsageError: something asked for cannot be done; nothing was loaded.
    """
    if quick:
        rounds = 1
    resolved = resolve(options)
    problems = resolved.problems
    if resolved.engines.simulated:
        raise SettingsError("bench real is for real models. Simulated ones: bench load, bench schedule.")
    shared = options.recipe
    families = {mode.name: mode.family(**shared) for mode in modes}
    widest = max([resolved.strategy, *families.values()], key=lambda family: (len(family.roles), family.recipe.tracks))
    asked = options.model_copy(update={"concurrency": max(options.concurrency, len(problems))})
    widened = replace(resolved, options=asked, strategy=widest)
    async with widened.runtime(lambda what, _done, _total: notify(what)) as runtime:
        turns = await take_turns(runtime, modes, families, problems, rounds, bare, options.seed, notify)
    return report(
        "real",
        "Real models: strategies on the same engines, and the target alone beside bare vLLM",
        rows=[_row(name, one) for name, one in turns.items()],
        figures=figures(turns, [mode.name for mode in modes]),
        models={role: name for role in ("target", "draft") if (name := getattr(options, role))},
        seeds=[] if options.seed is None else [options.seed + number for number in range(rounds)],
        runs=rounds,
        quick=quick,
        simulated=False,
        settings={"dataset": options.dataset, "problems": len(problems), **shared},
        notes=[
            "own CPU: of this process, in which vLLM's front end runs too, among this and the engines' processes",
            f"turns in ABBA order, prefix caches emptied before each; {UNENDING} and {BARE} write equal numbers of tokens",
        ],
    )


async def take_turns(
    runtime: Runtime,
    modes: Sequence[Mode],
    families: Mapping[str, Family],
    problems: Sequence[Problem],
    rounds: int,
    bare: bool,
    seed: int | None,
    notify: Callable[[str], None],
) -> dict[str, Turns]:
    """Runs all modes, round after round, on one open runtime; before the first, a short one of each to warm up."""
    engine = inner(runtime.scheduler.lanes[Role.TARGET].engine)
    first = next(iter(families.values())).recipe
    unending = Unending(first.model_copy(update={"tracks": 1, "plan": "plain", "methods": ()}), lambda _: None)
    prompts = [open_prompt(engine.tokenizer, unending.plan(problem, 0, 0).tracks[0]) for problem in problems]
    by_name = {mode.name: mode for mode in modes}
    lengths = [first.token_budget] * len(problems)  # of the target's own texts; as many are asked for without a runtime

    async def turn(name: str, number: int) -> Turns:
        async def ours(family: Family) -> tuple[int, SummarySink]:
            fold = SummarySink()
            result = await runtime.run(
                problems,
                family,
                seed=None if seed is None else seed + number,
                concurrency=len(problems),
                required=[fold],
            )
            if family is unending:
                written = [sum(track.tokens for track in sample.tracks.values()) for sample in result.samples]
                lengths[:] = [max(1, length) for length in written]
            return sum(counts.kept for counts in fold.summary().tokens.values()), fold

        async def raw() -> tuple[int, SummarySink | None]:
            asked = cast("BareEngine", engine)
            each = enumerate(zip(prompts, lengths, strict=True))
            written = await asyncio.gather(*(asked.generate_bare(ids, length, n) for n, (ids, length) in each))
            return sum(written), None

        if name == BARE:
            return await timed(raw)
        if name == UNENDING:
            return await timed(lambda: ours(unending))
        with by_name[name].reproduced():
            return await timed(lambda: ours(families[name]))

    names = [*([UNENDING, BARE] if bare else []), *by_name]
    found = {name: Turns() for name in names}
    notify("warm-up")
    await runtime.run(problems[:1], next(iter(families.values())), seed=-1)
    for number, order in enumerate(orders(names, rounds)):
        for name in order:
            await forget_prefixes(runtime)
            one = await turn(name, number)
            notify(f"round {number}, {name}: {one.seconds[0]:.1f} s, {one.rates[0]:.1f} tokens/s")
            for column in ("seconds", "tokens", "accuracy", "acceptance", "own_s", "engines_s"):
                getattr(found[name], column).extend(getattr(one, column))
    return found


async def timed(work: Callable[[], Awaitable[tuple[int, SummarySink | None]]]) -> Turns:
    """Measures one turn: clock, CPU time of processes, tokens, and the run's summary if it was one."""
    own, engines = own_cpu_s(), engines_cpu_s()
    started = time.perf_counter()
    tokens, fold = await work()
    summary = None if fold is None else fold.summary()
    return Turns(
        [time.perf_counter() - started],
        [tokens],
        [None if summary is None else summary.accuracy],
        [None if summary is None else summary.acceptance],
        [own_cpu_s() - own],
        [engines_cpu_s() - engines],
    )


async def forget_prefixes(runtime: Runtime) -> None:
    """Empties the prefix caches of engines that have one."""
    for lane in runtime.scheduler.lanes.values():
        forget: Any = getattr(inner(lane.engine), "forget_prefixes", None)
        if forget is not None:
            await forget()


def own_cpu_s() -> float:
    """Returns the CPU seconds of this process."""
    return time.process_time()


def engines_cpu_s() -> float:
    """Returns the CPU seconds of the engines' processes: those below this one whose name says vLLM."""
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "vllm" in process.name().lower():
                times = process.cpu_times()
                seconds += times.user + times.system
        except psutil.Error:
            continue  # it ended meanwhile
    return seconds


def _row(name: str, turns: Turns) -> Row:
    seconds, rates = spread(turns.seconds), spread(turns.rates)
    return {
        "mode": name,
        "turns": len(turns.seconds),
        "seconds": seconds.median,
        "least": seconds.low,
        "most": seconds.high,
        "tokens": round(spread(map(float, turns.tokens)).median),
        "tokens/s": rates.median,
        "accuracy": _mean(turns.accuracy),
        "accepted": _mean(turns.acceptance),
        "own CPU": _share(turns),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _share(turns: Turns) -> float | None:
    own, engines = sum(turns.own_s), sum(turns.engines_s)
    return own / (own + engines) if engines else None


def figures(turns: Mapping[str, Turns], modes: Sequence[str]) -> list[Figure]:
    """Computes ratios of turns of the same round, medians of them, and the runtime's share of CPU time."""
    found: list[Figure] = []
    if BARE in turns:
        found.append(figure(f"tokens/s, {UNENDING} / {BARE}", _ratio(turns[UNENDING].rates, turns[BARE].rates)))
    for other in modes[1:]:
        one, two = turns[modes[0]], turns[other]
        found.append(figure(f"seconds, {modes[0]} / {other}", _ratio(one.seconds, two.seconds)))
        found.append(figure(f"tokens/s, {modes[0]} / {other}", _ratio(one.rates, two.rates)))
    for name in (*([UNENDING] if BARE in turns else []), *modes):
        found.append(figure(f"own share of CPU time, {name}", _share(turns[name]), at_most=CPU_SHARE_MAX))
    return found


def _ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    return spread(one / other for one, other in zip(ones, others, strict=True)).median
