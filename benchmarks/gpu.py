"""``bench gpu``: what drafting brings on the engines of this machine, at chosen acceptance, and what the simulator says of it.

Model folders of stated shapes without weights (``shapes``), a seeded coin instead of the judge's verdict (``coin``): speed is
real, acceptance is chosen. Each cell compares the target alone, every step drafted, ``auto`` and lock-step. A *closed* set of
tracks is timed to its end, its slowest track; the *steady* rate is that while all places are taken, with four times as many
problems. Cells are taken in the order of their worth, each only if its time is left, and each row is written as it comes.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from speclrm.app.options import RunOptions
from speclrm.app.presets import measure_engines
from speclrm.app.resolve import make_strategy, resolve
from speclrm.app.summary_sink import SummarySink
from speclrm.benchmarks.coin import Coin
from speclrm.benchmarks.modes import read_modes
from speclrm.benchmarks.real import Unending, engines_cpu_s, forget_prefixes, own_cpu_s
from speclrm.benchmarks.report import BenchReport, Row, figure, report
from speclrm.benchmarks.shapes import make_folder
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engine import EngineCosts
from speclrm.runtime.engines.restarting import inner
from speclrm.runtime.engines.simulated.presets import Preset, simulated_engines, slices, write_preset
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import ModelError
from speclrm.runtime.events import ProblemStarted, StepCommitted
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.models import store
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.tokens.prompts import judge_of, open_prompt
from speclrm.runtime.tokens.tokenizer import load_tokenizer
from speclrm.strategies.prompts import step_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AsyncExitStack

    from speclrm.benchmarks.real import BareEngine
    from speclrm.runtime.engines.simulated.presets import EngineFit
    from speclrm.runtime.events import Event, RoleName
    from speclrm.strategies.family import Family

TRACKS_A_PROBLEM = 5
STEADY = 4
"""Problems for each place, where the steady rate is measured."""
MODES = {
    "alone": "parallel",
    "always": "speculative:speculate=always",
    "auto": "speculative:speculate=auto",
    "lock-step": "lock-step",
}
WARM_UP = 0.1
"""Share of the time before the last problem begins that does not count for the steady rate: places fill and contexts grow."""
TIMES_ALONE = 2.0
"""Times what the target alone takes that another mode may take at most, for planning."""
CLOSE_S = 20.0
"""Seconds that are kept for the end: processes end, and the simulator takes its turn."""
TEXT = (
    "Let a, b and c be positive whole numbers with a + b + c = {number}. Each of them leaves another remainder when divided by "
    "seven, and their product is as large as it can be. Find the sum of their squares."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one turn measures. ``tracks``: at once, five to a problem if there are that many. ``acceptance``: None for the target
    alone. ``times``: problems for each place, 1 for a closed set.
    """

    tracks: int
    mode: str
    acceptance: float | None
    times: int = 1

    @property
    def each(self) -> int:
        return min(TRACKS_A_PROBLEM, self.tracks)

    @property
    def places(self) -> int:
        return max(1, self.tracks // self.each)

    @property
    def alone(self) -> Cell:
        return replace(self, mode="alone", acceptance=None)


@dataclass(frozen=True, slots=True)
class Plan:
    """``budget``: tokens a track; ``step``: tokens a step at most. ``judge``: where its question stands."""

    tracks: tuple[int, ...] = (5, 20, 1, 110)
    acceptance: tuple[float, ...] = (0.85, 0.7, 0.46)
    budget: int = 768
    step: int = 32
    seed: int = 0
    judge: str = "inline"

    def cells(self) -> Iterator[Cell]:
        """Yields all cells, those first that tell most: closed sets, then the steady rate, lock-step last."""
        for times, modes in ((1, ("always", "auto")), (STEADY, ("always", "auto")), (1, ("lock-step",))):
            for tracks in self.tracks:
                if times == 1 or tracks >= TRACKS_A_PROBLEM:
                    if "always" in modes:
                        yield Cell(tracks, "alone", None, times)
                    for acceptance in self.acceptance:
                        for mode in modes:
                            yield Cell(tracks, mode, acceptance, times)

    def family(self, cell: Cell) -> Family:
        """The cell's strategy."""
        common: dict[str, Any] = {
            "tracks": cell.each,
            "plan": "plain",
            "token_budget": self.budget,
            "max_step_tokens": self.step,
            "closing": False,
            "temperature": 1.0,
            "top_p": 1.0,
        }
        (mode,) = read_modes(MODES[cell.mode])
        if cell.acceptance is None:
            return mode.family(**common)
        recipe = mode.family(**common, judge=self.judge).recipe
        coin = Coin(recipe, lambda _: None)
        coin.chance, coin.seed = cell.acceptance, self.seed
        return coin

    def problems(self, count: int) -> list[Problem]:
        return [Problem(f"p{number}", TEXT.format(number=100 + 13 * number), "0") for number in range(count)]

    @property
    def most(self) -> int:
        """Samples at work at once, at most."""
        return max(Cell(tracks, "alone", None).places for tracks in self.tracks)


class Steady(SummarySink):
    """The summary of a run, and its rate while all places were taken."""

    def __init__(self) -> None:
        super().__init__()
        self._commits: list[tuple[float, int]] = []
        self._last_s = 0.0

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, StepCommitted):
            self._commits.append((event.t, event.tokens))
        elif isinstance(event, ProblemStarted):
            self._last_s = event.t

    def steady_rate(self) -> float | None:
        """Committed tokens a second from when the places are warm until the last problem begins; None for a closed set."""
        first_s = WARM_UP * self._last_s
        if self._last_s - first_s < 1e-3:
            return None
        tokens = sum(tokens for at, tokens in self._commits if first_s < at <= self._last_s)
        return tokens / (self._last_s - first_s)


async def turn(runtime: Runtime, plan: Plan, cell: Cell) -> Row:
    """Runs one cell on an open runtime, on the loop's own clock. Only the engines' costs are known before."""
    runtime.scheduler.forget()  # what other acceptance taught is not for this cell
    fold = Steady()
    (mode,) = read_modes(MODES[cell.mode])
    with mode.reproduced():
        await runtime.run(
            plan.problems(cell.places * cell.times),
            plan.family(cell),
            seed=plan.seed,
            concurrency=cell.places,
            required=[fold],
        )
    summary = fold.summary()
    kept = sum(counts.kept for counts in summary.tokens.values())
    return {
        "tracks": cell.tracks,
        "mode": cell.mode,
        "drafts that pass": cell.acceptance,
        "set": "steady" if cell.times > 1 else "closed",
        "seconds": summary.seconds,
        "kept": kept,
        "tokens/s": kept / summary.seconds,
        "steady": fold.steady_rate() if cell.times > 1 else None,
        "accepted": summary.acceptance,
        "mode changes": summary.modes.changes,
    }


def rate(row: Row) -> float:
    """The rate that the cell is about."""
    return float(row["steady"] or row["tokens/s"] or 0.0)


def simulated(preset: Path, plan: Plan, cell: Cell, *, by_slices: bool) -> Row:
    """The same cell by the simulator, on measured costs. Takes some real seconds; not to be called on a running loop."""
    length = float(plan.step)
    lengths = (length, length, length)
    settings = WorldSettings((1.0,), steps=2000, judge_error=0.0, draft_lengths=lengths, target_lengths=lengths)
    world = SimulatedWorld(settings, plan.seed)
    family = plan.family(cell)

    async def main() -> Row:
        engines = simulated_engines(dict.fromkeys(family.roles, f"sim/{preset}"), world, shared_device=by_slices)

        async def parts(_: AsyncExitStack) -> Components:
            return Components(dict(engines), ExactEquivalence(), slices=by_slices and slices(engines))

        async with Runtime(parts) as runtime:
            row = await turn(runtime, plan, cell)
        await asyncio.gather(*(engine.aclose() for engine in engines.values()))
        return row

    return run_virtual(main())


async def measure(
    pair: tuple[str, str],
    options: Mapping[str, Any],
    plan: Plan,
    *,
    tokenizer: str,
    folder: Path,
    minutes: float,
    say: Callable[[Mapping[str, Any]], None],
    notify: Callable[[str], None],
) -> BenchReport:
    """Measures the cells of the plan as far as the time goes. ``options``: of the engines. ``folder``: for model folders.

    ``say`` gets each row as it comes.

    Raises:
        UsageError: something asked for cannot be done; nothing was loaded.
    """
    began = time.monotonic()

    def left() -> float:
        return minutes * 60 - (time.monotonic() - began)

    source = Path(tokenizer).expanduser()  # a tokenizer alone will do
    if not source.is_dir():
        source = await store.pull(tokenizer, lambda what, _done, _total: notify(what), weights=False)
    target, draft = (make_folder(name, source, folder / f"{name}-shape") for name in pair)
    plan = replace(plan, judge=await asyncio.to_thread(fitting_judge, source))
    resolved = resolve(_run_options(target, draft, options, plan, folder))
    rows: list[tuple[Cell, Row]] = []
    async with resolved.runtime(lambda what, _done, _total: notify(what)) as runtime:
        say({"what": "loaded", "seconds": round(time.monotonic() - began, 1)})
        facts: dict[str, Any] = {"slices": runtime.slices, "share": options.get("share_gpu", "auto")}
        await runtime.run(plan.problems(2)[:1], plan.family(Cell(1, "always", 1.0)), seed=-1)
        engines = {role: inner(lane.engine) for role, lane in runtime.scheduler.lanes.items()}
        fits = await measure_engines(
            engines, resolved.engines.settings, read_machine(), quick=True, notify=lambda what, _d, _t: notify(what)
        )
        for role, engine in engines.items():
            cast("Any", engine).known_costs = _costs(fits[role.value])
        say({"what": "fit", **{role: fit.model_dump(mode="json") for role, fit in fits.items()}, **facts})
        await take_turns(runtime, plan, rows, left, say, notify)
        bare = await _bare(runtime, plan, left, say)
    preset = folder / "fit.json"
    write_preset(Preset(engines=fits, one_device=True, measured={"date": time.strftime("%Y-%m-%d")}), preset)
    notify("the simulator's turn")
    table = [
        compared(
            cell, row, rows, await asyncio.to_thread(simulated, preset, plan, cell, by_slices=facts["slices"]), found
        )
        for found in [dict[Cell, Row]()]
        for cell, row in rows
    ]
    return closing_report(pair, plan, table, fits, bare, facts)


def fitting_judge(tokenizer: Path) -> str:
    """The inline judge, unless the tokenizer needs too many tokens for it."""
    try:
        judge_of(load_tokenizer(tokenizer), step_prompts("inline", raw=False))
    except ModelError:
        return "turn"
    return "inline"


def _costs(fit: EngineFit) -> EngineCosts:
    return EngineCosts(fit.cost.w, fit.cost.p + fit.cost.s, fit.cost.k, 1 / fit.share - 1, fit.cost.request_s)


def _run_options(target: Path, draft: Path, options: Mapping[str, Any], plan: Plan, folder: Path) -> RunOptions:
    problems = plan.problems(plan.most)
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps({"id": one.id, "problem": one.text, "answer": "0"}) + "\n" for one in problems))
    given = dict(options)
    for role in Role:
        given[f"{role.value}_args"] = {"load_format": "dummy", **given.get(f"{role.value}_args", {})}
    recipe = plan.family(Cell(max(plan.tracks), "always", 0.5)).recipe
    return RunOptions(
        strategy="speculative",
        dataset=str(data),
        target=str(target),
        draft=str(draft),
        concurrency=plan.most,
        seed=plan.seed,
        recipe=recipe.model_dump(exclude_unset=True),
        **given,
    )


async def take_turns(
    runtime: Runtime,
    plan: Plan,
    rows: list[tuple[Cell, Row]],
    left: Callable[[], float],
    say: Callable[[Mapping[str, Any]], None],
    notify: Callable[[str], None],
) -> None:
    """Gives each cell its turn as far as the time goes. ``rows``: gets what was measured; ``left``: seconds that are left."""
    alone: dict[Cell, float] = {}
    for cell in plan.cells():
        # A steady run takes as many closed ones as there are problems for a place.
        known = alone.get(cell.alone) or alone.get(replace(cell.alone, times=1), 0.0) * cell.times
        need = known * (1.0 if cell.mode == "alone" else TIMES_ALONE)
        what = f"{cell.tracks} tracks, {cell.mode}, {cell.acceptance}, {'steady' if cell.times > 1 else 'closed'}"
        if left() < need + CLOSE_S:
            say({"what": "skipped", "cell": what, "needs_s": round(need, 1), "left_s": round(left(), 1)})
            continue
        notify(what)
        await forget_prefixes(runtime)
        own, others = own_cpu_s(), engines_cpu_s()
        try:
            row = await asyncio.wait_for(turn(runtime, plan, cell), max(1.0, left() - CLOSE_S / 2))
        except TimeoutError:
            say({"what": "cut short", "cell": what})
            continue
        if cell.mode == "alone":
            alone[cell] = float(row["seconds"] or 0.0)
        rows.append((cell, row))
        say({"what": "turn", **row, "own_cpu_s": own_cpu_s() - own, "engines_cpu_s": engines_cpu_s() - others})


async def _bare(
    runtime: Runtime, plan: Plan, left: Callable[[], float], say: Callable[[Mapping[str, Any]], None]
) -> float | None:
    """Tokens a second of the target alone by the runtime, over plain calls of the same engine side by side; there and back."""
    engine = inner(runtime.scheduler.lanes[Role.TARGET].engine)
    if not hasattr(engine, "generate_bare"):
        return None
    recipe = make_strategy(
        "baseline", token_budget=plan.budget // 3, closing=False, temperature=0.6, top_p=0.95
    ).recipe  # as the plain calls have it
    unending = Unending(recipe, lambda _: None)
    problems = plan.problems(plan.most)
    prompts = [open_prompt(engine.tokenizer, unending.plan(one, 0, 0).tracks[0]) for one in problems]
    lengths = [recipe.token_budget] * len(problems)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for name in ("ours", "bare", "bare", "ours"):
        if left() < CLOSE_S + (sum(lengths) / min(map(min, filter(None, rates.values()))) if rates["ours"] else 0.0):
            break
        await forget_prefixes(runtime)
        started = time.perf_counter()
        if name == "ours":
            result = await runtime.run(problems, unending, seed=plan.seed, concurrency=len(problems))
            written = [sum(track.tokens for track in sample.tracks.values()) for sample in result.samples]
            lengths = [max(1, length) for length in written]
        else:
            asked = cast("BareEngine", engine)
            each = enumerate(zip(prompts, lengths, strict=True))
            written = await asyncio.gather(*(asked.generate_bare(ids, length, n) for n, (ids, length) in each))
        rates[name].append(sum(written) / (time.perf_counter() - started))
    if not all(rates.values()):
        return None
    ours, bare = (sum(values) / len(values) for values in rates.values())
    say({"what": "bare", "requests": len(problems), "ours": ours, "bare": bare})
    return ours / bare


def compared(cell: Cell, row: Row, rows: Sequence[tuple[Cell, Row]], twin: Row, twins: dict[Cell, Row]) -> Row:
    """The row beside the target alone, and the simulator's. ``twins``: the simulator's rows so far."""
    twins[cell] = twin
    base = next((other for one, other in rows if one == cell.alone), None)
    ours = rate(row) / rate(base) if base else None
    theirs = rate(twin) / rate(twins[cell.alone]) if cell.alone in twins else None
    return {
        **row,
        "x alone": ours,
        "simulated x alone": theirs,
        "simulated tokens/s": rate(twin),
        "simulated / measured": rate(twin) / rate(row) if rate(row) else None,
    }


def closing_report(
    pair: tuple[str, str],
    plan: Plan,
    table: Sequence[Row],
    fits: Mapping[RoleName, EngineFit],
    bare: float | None,
    facts: Mapping[str, Any],
) -> BenchReport:
    """The table with its figures. ``bare``: the runtime over bare calls. ``facts``: how the engines shared the device."""
    figures = [figure("tokens/s, the runtime / bare calls at equal limits", bare, "x", at_least=0.98)]
    for row in table:
        if row["mode"] == "auto" and row["x alone"] is not None:
            same = ("tracks", "drafts that pass", "set")
            always = next(
                (one for one in table if one["mode"] == "always" and all(one[key] == row[key] for key in same)), None
            )
            where = f"{row['tracks']} tracks, {row['drafts that pass']}, {row['set']}"
            figures.append(figure(f"auto / alone, {where}", float(row["x alone"]), "x", at_least=0.98))
            if always is not None and always["x alone"] is not None:
                better = max(1.0, float(always["x alone"]))
                figures.append(
                    figure(f"auto / the better, {where}", float(row["x alone"]) / better, "x", at_least=0.95)
                )
    return report(
        "gpu",
        "Models of these shapes with random weights: kept tokens a second, and the same by the simulator on the costs measured",
        rows=table,
        figures=figures,
        models={"target": f"shape {pair[0]}", "draft": f"shape {pair[1]}"},
        seeds=[plan.seed],
        runs=1,
        quick=False,
        simulated=False,
        settings={
            "token_budget": plan.budget,
            "max_step_tokens": plan.step,
            "judge": plan.judge,
            "costs": {role: fit.model_dump(mode="json") for role, fit in fits.items()},
            **facts,
        },
        notes=(
            "a rule for tests alone decides: a seeded coin keeps a draft, whatever its score; acceptance is chosen, not measured",
            "closed: to the end of the slowest track; steady: while all places are taken, with four times as many problems",
            "one turn a cell: read differences under 5 % as noise",
        ),
    )
