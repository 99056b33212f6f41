"""Resumes a run in its folder: finished samples stay, tracks continue where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speclrm.app.engines import MakeEngines, make_engines
from speclrm.app.progress import Notify, note, quiet
from speclrm.app.resolve import recorded_strategy, resolved
from speclrm.app.runs import RunReport, run_in
from speclrm.app.settings_diff import changed_models, changes, recorded_options, refuse, table
from speclrm.app.sinks import named_sinks
from speclrm.app.summary_sink import SummarySink
from speclrm.app.weights import weights
from speclrm.evaluators import report
from speclrm.evaluators.intervals import with_intervals
from speclrm.runtime.errors import ResumeError
from speclrm.runtime.events import ProblemStarted
from speclrm.runtime.machine.hardware import read_devices
from speclrm.runtime.protocols import Role
from speclrm.runtime.replay.recorded_run import Past, read_past
from speclrm.runtime.run_parts import Resumption
from speclrm.runtime.trace import run_directory
from speclrm.runtime.trace.journal import TRACE_FILE
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.app.options import RunOptions
    from speclrm.runtime.protocols import Problem, Sink


async def resume(
    directory: Path,
    asked: RunOptions | None = None,
    *,
    harmless: Mapping[str, Any] | None = None,
    override: bool = False,
    sinks: Sequence[Sink] = (),
    notify: Notify = quiet,
    plan: Callable[[int], None] | None = None,
    engines: MakeEngines = make_engines,
) -> RunReport:
    """Goes on with the run in a folder.

    ``asked``: the options as they are wanted now; None for those it has. ``harmless``: options that may change freely, by
    name. ``override``: settings that make results incomparable may change, too; they hold for samples that had not begun.

    Raises:
        RunDirectoryError: there is no run, or another process writes it.
        ResumeError: something was changed that must not be, or the trace does not fit.
    """
    run_directory.read_record(directory)
    with run_directory.locked(directory, lambda text: note(notify, text)):
        past = read_past(directory, lambda text: note(notify, text))
        options = (asked or recorded_options(past.config)).model_copy(
            update={"output_dir": directory, **(harmless or {})}
        )
        with resolved(options, notify, engines) as found:
            differing = changes(past.config, found.config)
            differing |= changed_models(past.config, await weights(found.options))
            begun = changed_problem(past, found.problems)
            if differing and not override:
                refuse(directory, differing, asked=asked is not None, begun=begun)
            check_problems(past, found.problems)
            names = [(problem.id, repeat) for problem in found.problems for repeat in range(found.options.repeats)]
            done = [past.samples[name].state for name in names if name in past.samples]
            if past.finished and len(done) == len(names) and None not in done:
                sink = SummarySink()
                for event in read_trace(directory / TRACE_FILE):
                    sink.add(event)
                summary = with_intervals(sink.summary())
                if report.stale_reports(directory, summary):  # the disk may have been full at the run's end
                    report.write_reports(directory, summary)
                return RunReport(directory=directory, summary=summary, done_before=True)
            if differing:
                note(
                    notify,
                    f"{directory} goes on with other settings for samples that had not begun:\n{table(differing)}",
                )
            note_surroundings(past, notify)
            if Role.DRAFT in found.strategy.roles and found.strategy.limits.speculate == "auto":
                note(notify, "--speculate auto may decide otherwise than without the break: what engines cost changes")
            if plan is not None:
                plan(len(names))
            resumption = Resumption(
                past,
                lambda attempt: recorded_strategy(past.attempts[attempt].config),
                lambda: read_trace(directory / TRACE_FILE),
                differing,
            )
            sinks = [*sinks, *named_sinks(found.options.sinks)]
            async with found.runtime(notify) as runtime:
                return await run_in(runtime, found, directory, sinks, resumption=resumption)


def note_surroundings(past: Past, notify: Notify) -> None:
    """Tells what is not asked for, and decides what engines answer all the same: versions and the machine."""
    last = past.attempts[-1]
    now = {**run_directory.versions(), **_machine(run_directory.machine())}
    before = {**last.versions, **_machine(last.machine)}
    if "engines" in last.config:  # else they are simulated, or the caller's own
        before["devices"], now["devices"] = _devices(last.config), _devices(read_devices())
    names = (*run_directory.DECISIVE, *_MACHINE, "devices")
    differing = [
        f"{name} {before[name]} -> {now[name]}"
        for name in names
        if name in before and name in now and before[name] != now[name]
    ]
    if differing:
        note(notify, f"goes on with others than before: {'; '.join(differing)}")


def _devices(facts: Mapping[str, JsonValue]) -> str:
    devices, driver = facts.get("devices"), facts.get("driver")
    names = [str(one.get("name")) for one in devices if isinstance(one, dict)] if isinstance(devices, list) else []
    return f"{', '.join(names)} with driver {driver}" if names else "no GPU"


_MACHINE = ("system", "processor")


def _machine(machine: Mapping[str, JsonValue]) -> dict[str, str]:
    return {name: str(machine[name]) for name in _MACHINE if name in machine}


def check_problems(past: Past, problems: Sequence[Problem]) -> None:
    """Raises ResumeError if a problem of the trace has another text now, or another answer."""
    if (changed := changed_problem(past, problems)) is not None:
        raise ResumeError(f"{changed}. Put the dataset back as it was, or start a new run.")


def changed_problem(past: Past, problems: Sequence[Problem]) -> str | None:
    """Says which problem had begun and has another text or answer now; None if there is none."""
    named = {problem.id: problem for problem in problems}
    for sample in past.samples.values():
        first = sample.events[0] if sample.events else None
        problem = named.get(sample.problem)
        if not isinstance(first, ProblemStarted) or problem is None:
            continue
        if (first.text, first.gold) != (problem.text, problem.answer):
            return f"Problem {sample.problem} has another text or answer than when the run was started"
    return None
