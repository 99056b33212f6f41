"""Replays a recorded run without engines, compares, and continues from there in a new folder."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from speclrm.app.engines import MakeEngines, make_engines
from speclrm.app.options import Options, RunOptions
from speclrm.app.progress import Notify, note, quiet
from speclrm.app.resolve import Resolved, recorded_strategy, resolved
from speclrm.app.resume import check_problems, note_surroundings
from speclrm.app.runs import RunReport, run_in
from speclrm.app.settings_diff import changed_models, recorded_options, refuse_models, table
from speclrm.app.sinks import named_sinks
from speclrm.app.summary_sink import SummarySink
from speclrm.app.weights import weights
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.evaluators.thread_grader import GraderOfAThread
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.events import RunStarted
from speclrm.runtime.replay.recorded_engine import RecordedEngine
from speclrm.runtime.replay.recorded_run import Past, read_past
from speclrm.runtime.run_parts import Components, Resumption
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace import run_directory
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace
from speclrm.strategies.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.evaluators.metrics import SampleRow
    from speclrm.runtime.engine import Engine
    from speclrm.runtime.protocols import Role, Sink
    from speclrm.runtime.replay.playback import Playback


class Replayed(NamedTuple):
    """The result of a replay. ``past``: the events that came again as they were; ``options``: those of the run."""

    report: ReplayReport
    past: Past
    options: RunOptions


class Changed(Options):
    """One difference. ``track``, ``step``: None if it belongs to none."""

    problem: str
    repeat: int
    track: str | None
    step: int | None
    recorded: str
    now: str


class Ended(Options):
    """A track whose next request the record does not have. ``steps``: how many it had committed by then."""

    problem: str
    repeat: int
    track: str
    step: int
    operation: str
    why: str
    steps: int


class ReplayReport(Options):
    """The report of a replay.

    ``events``: of samples, in the record; ``repeated``: how many of them came again. ``results``: rows of finished
    samples; ``same``: how many are equal to the recorded ones byte for byte. ``votes``: for samples that did not
    finish, the answers so far with the tracks that gave them.
    """

    run: str
    status: str
    changed: dict[str, Any]
    events: int
    repeated: int
    recorded_results: int
    results: int
    same: int
    differences: tuple[Changed, ...]
    stops: tuple[Ended, ...]
    votes: dict[str, tuple[tuple[str, tuple[str, ...]], ...]]

    @property
    def equal(self) -> bool:
        """Whether the replay equals the run. If the record itself ends early, its tracks may end early, too."""
        return not self.differences and self.same == self.recorded_results == self.results


async def replay(
    directory: Path, settings: Mapping[str, Any], notify: Notify = quiet, engines: MakeEngines = make_engines
) -> Replayed:
    """Replays the run in a folder, under virtual time and without an engine; nothing in the folder is changed.

    ``settings``: options of the recipe with other values (what-if). ``engines``: provide the tokenizers.
    """
    run_directory.read_record(directory)
    past = read_past(directory, lambda text: note(notify, text), whole=True)
    with resolved(recorded_options(past.config), notify, engines) as found:
        check_problems(past, found.problems)
        if differing := changed_models(past.config, await weights(found.options)):
            note(notify, f"the models that are here are others than those of the record:\n{table(differing)}")
        before, now = SummarySink(), SummarySink()
        for event in read_trace(directory / TRACE_FILE):
            before.add(event)
        async with await _recorded_runtime(past, found) as runtime:
            playback = await runtime.replay(
                past,
                found.problems,
                lambda attempt: recorded_strategy(past.attempts[attempt].config, settings),
                [now],
            )
    return Replayed(report(playback, past, before.summary().samples, now, settings), playback.kept(), found.options)


async def _recorded_runtime(past: Past, found: Resolved) -> Runtime:
    """Returns a runtime whose engines answer from the record."""
    first = past.attempts[0]
    assert isinstance(first, RunStarted)
    tokenizers = await found.engines.tokenizers()
    engines: dict[Role, Engine] = {
        role: RecordedEngine(getattr(found.options, role.value) or role.value, tokenizer, first.context_max[role.value])
        for role, tokenizer in tokenizers.items()
        if role.value in first.context_max
    }

    async def parts(stack: AsyncExitStack) -> Components:
        exact = found.engines.simulated
        return Components(engines, ExactEquivalence() if exact else await stack.enter_async_context(GraderOfAThread()))

    return Runtime(parts)


async def go_on(
    replayed: Replayed,
    settings: Mapping[str, Any],
    directory: Path,
    *,
    override: bool = False,
    sinks: Sequence[Sink] = (),
    notify: Notify = quiet,
    plan: Callable[[int], None] | None = None,
    engines: MakeEngines = make_engines,
) -> RunReport:
    """Starts a new run in a folder of its own, which begins with what a replay under other settings could tell.

    ``override``: it may go on with other models than those that the record is of.

    Raises:
        ResumeError: the models are others now, by their weights, tokenizers or chat templates.
    """
    past = replayed.past
    recipe = {**replayed.options.recipe, **settings}
    options = replayed.options.model_copy(update={"output_dir": directory, "recipe": recipe})
    run_directory.check_free(directory)
    with resolved(options, notify, engines) as found:
        differing = changed_models(past.config, await weights(found.options))
        if differing and not override:
            refuse_models(directory, differing)
        if differing:
            note(notify, f"goes on with other models than those that the record is of:\n{table(differing)}")
        note_surroundings(past, notify)
        if plan is not None:
            plan(found.samples)
        resumption = Resumption(past, lambda _: (found.strategy, found.seed), anew=True)
        sinks = [*sinks, *named_sinks(found.options.sinks)]
        async with found.runtime(notify) as runtime:
            extra: dict[str, JsonValue] = {"continued_from": past.run}
            if differing:
                extra["continued_otherwise"] = {name: list(values) for name, values in differing.items()}
            return await run_in(runtime, found, directory, sinks, resumption=resumption, extra=extra)


def read_settings(items: Iterable[str]) -> dict[str, Any]:
    """Reads ``key=value`` pairs of a recipe; a value is JSON if it can be read so, else text. Raises SettingsError."""
    found: dict[str, Any] = {}
    for item in items:
        name, given, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not given or name not in Recipe.model_fields:
            close = difflib.get_close_matches(name, Recipe.model_fields, n=1)
            meant = f" Did you mean {close[0]}?" if close else f" There are: {', '.join(sorted(Recipe.model_fields))}."
            raise SettingsError(f"--set {item!r}: write KEY=VALUE with a key of the recipe.{meant}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def report(
    playback: Playback, past: Past, before: Sequence[SampleRow], now: Any, changed: Mapping[str, Any]
) -> ReplayReport:
    """Makes the report. ``before``: the recorded rows; ``now``: the fold of the events that came this time."""
    rows = {(row.problem, row.repeat): row.decided() for row in before}
    again = now.summary().samples
    unfinished = {
        f"{problem}/{repeat}": tuple((state.tracks[names[0]].answer or "", names) for names in state.classes)
        for (problem, repeat), state in now.states.items()
        if state.outcome is None and state.classes
    }
    return ReplayReport(
        run=past.run,
        status=past.status,
        changed=dict(changed),
        events=sum(len(sample.events) for sample in past.samples.values()),
        repeated=sum(len(sample.repeated) for sample in playback.samples.values()),
        recorded_results=len(before),
        results=len(again),
        same=sum(rows.get((row.problem, row.repeat)) == row.decided() for row in again),
        differences=tuple(
            Changed(
                problem=one.problem,
                repeat=one.repeat,
                track=one.track,
                step=one.step,
                recorded=one.recorded,
                now=one.now,
            )
            for one in playback.differences
        ),
        stops=tuple(
            Ended(
                problem=stop.problem,
                repeat=stop.repeat,
                track=stop.track,
                step=stop.step,
                operation=stop.operation,
                why=stop.why,
                steps=_steps(now, stop.problem, stop.repeat, stop.track),
            )
            for stop in playback.stops.values()
        ),
        votes=unfinished,
    )


def _steps(now: Any, problem: str, repeat: int, track: str) -> int:
    state = now.states.get((problem, repeat))
    return len(state.tracks[track].steps) if state is not None and track in state.tracks else 0
