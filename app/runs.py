"""Solves the problems of a dataset into a folder, grades and reports."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from speclrm.app.engines import MakeEngines, make_engines
from speclrm.app.options import Options, RunOptions
from speclrm.app.progress import Notify, quiet
from speclrm.app.provenance import provenance
from speclrm.app.resolve import Resolved, resolved
from speclrm.app.sinks import named_sinks
from speclrm.evaluators import report
from speclrm.evaluators.intervals import with_intervals
from speclrm.evaluators.metrics import RunSummary, Summary
from speclrm.runtime.errors import SpecLRMError
from speclrm.runtime.trace import run_directory
from speclrm.runtime.trace.journal import TraceOptions
from speclrm.runtime.trace.reader import read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue

    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Sink
    from speclrm.runtime.run_parts import Resumption
    from speclrm.runtime.runtime import Runtime

RUNS_FOLDER = Path("runs")
READ_AT_ONCE = 5_000
"""Events of a trace that one call in another thread reads."""


class RunReport(Options):
    """The result of a run. ``done_before``: the run had ended already, and nothing was done."""

    directory: Path
    summary: RunSummary
    done_before: bool = False


async def run(
    options: RunOptions,
    *,
    sinks: Sequence[Sink] = (),
    notify: Notify = quiet,
    plan: Callable[[int], None] | None = None,
    engines: MakeEngines = make_engines,
) -> RunReport:
    """Does a whole run: checks everything that can be checked, loads, solves, grades, reports.

    ``plan`` is told the number of samples once it is known. ``engines``: makes the engines for the options.

    Raises:
        UsageError: something asked for cannot be done; nothing was loaded.
        SpecLRMError: the run was stopped; what was committed is in the trace.
    """
    with resolved(options, notify, engines) as found:
        directory = found.options.output_dir or new_folder(found.options.strategy)
        run_directory.check_free(directory)
        if plan is not None:
            plan(found.samples)
        sinks = [*sinks, *named_sinks(found.options.sinks)]
        async with found.runtime(notify) as runtime:
            return await run_in(runtime, found, directory, sinks)


async def run_in(
    runtime: Runtime,
    found: Resolved,
    directory: Path,
    sinks: Sequence[Sink] = (),
    *,
    resumption: Resumption | None = None,
    extra: Mapping[str, JsonValue] | None = None,
) -> RunReport:
    """Does a run on a runtime that is open already. Its reports are written also if it is broken off.

    ``extra``: what stands in its configuration beside the options.
    """
    options = found.options
    began = _Began(0 if resumption is None or resumption.anew else len(resumption.past.attempts))
    try:
        await runtime.run(
            found.problems,
            found.strategy,
            repeats=options.repeats,
            seed=found.seed,
            concurrency=options.concurrency,
            directory=directory,
            config=found.config | await provenance(found) | dict(extra or {}),
            sinks=[*sinks, began],
            resumption=resumption,
            trace=TraceOptions(compress=options.compress_trace),
            max_errors=options.max_errors,
        )
    except BaseException:
        if began.yes:  # the directory is this run's
            with suppress(OSError, SpecLRMError):  # what stopped the run is what is to be told
                await report_run(directory)
        raise
    return RunReport(directory=directory, summary=await report_run(directory))


async def report_run(directory: Path) -> RunSummary:
    """Writes the reports from the trace and not from what a listener saw: listeners may miss events, the trace has all."""
    fold, events = Summary(), iter(read_run(directory))

    def read_on() -> bool:
        part = list(islice(events, READ_AT_ONCE))
        for event in part:
            fold.add(event)
        return bool(part)

    def write() -> RunSummary:
        summary = with_intervals(fold.summary())
        if summary.run:  # else not one event came to the disk, and there is nothing to derive anything from
            report.write_reports(directory, summary)
        return summary

    while await asyncio.to_thread(read_on):
        pass  # in parts: virtual time waits for a call in another thread, but not for ever
    return await asyncio.to_thread(write)


def new_folder(name: str) -> Path:
    """Returns a folder named after the time, where none is given; a number tells those of one second apart."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{plain}"
    return next(
        folder
        for number in count(1)
        if not (folder := RUNS_FOLDER / (stem if number == 1 else f"{stem}-{number}")).exists()
    )


class _Began:
    """A sink that says whether an attempt of a run did: a resumed run shows those before it first."""

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt
        self.yes = False

    def emit(self, event: Event) -> None:
        self.yes = self.yes or event.attempt == self._attempt

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
