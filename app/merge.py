"""Merges the shards of a run into one run: one folder, one trace, one report."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from heapq import merge as merged_in_order
from typing import TYPE_CHECKING, cast

from speclrm.app.runs import report_run
from speclrm.app.settings_diff import MERGED, SELECTED, Changes, changed_models, changes, table
from speclrm.app.trace_check import check
from speclrm.runtime.errors import ResultsError, RunDirectoryError
from speclrm.runtime.events import (
    EngineFailed,
    EngineRecovered,
    EngineReport,
    OperationStuck,
    RunFinished,
    RunResumed,
    RunStarted,
    SampleEvent,
    stamp,
)
from speclrm.runtime.files import reason, remedy
from speclrm.runtime.trace import run_directory
from speclrm.runtime.trace.journal import Journal
from speclrm.runtime.trace.reader import read_trace
from speclrm.runtime.trace.segments import TRACE_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.evaluators.metrics import RunSummary
    from speclrm.runtime.events import EngineFacts, Event

READ_AT_ONCE = 1_000
"""Events after which a merge lets others run, and lets the disk catch up."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of a run that has ended. ``attempts``: its first start and each resumed one; ``number`` of ``parts``, from 1."""

    directory: Path
    attempts: Sequence[RunStarted | RunResumed]
    finished: RunFinished
    number: int
    parts: int

    @property
    def started(self) -> RunStarted:
        return cast("RunStarted", self.attempts[0])

    @property
    def config(self) -> Mapping[str, JsonValue]:
        """The configuration of the last attempt."""
        return self.attempts[-1].config


async def merge(output: Path, directories: Sequence[Path], *, override: bool = False) -> RunSummary:
    """Writes the run that the shards are together, checks its trace, and returns its summary. The shards are only read.

    Samples keep the times of their shard, as if all shards had started at once. ``override``: merges shards of other
    settings or models too, and records the differences.

    Raises:
        ResultsError: a shard is missing, has not ended, or is not comparable with the others.
        RunDirectoryError: the folder is not free, or cannot be written.
    """
    run_directory.check_free(output)
    shards = sorted((_read(directory) for directory in directories), key=lambda shard: shard.number)
    _check_complete(shards)
    differences = _differences(shards)
    if differences and not override:
        told = "\n".join(
            f"{directory}:\n{table(found, ('setting', 'first shard', 'here'))}"
            for directory, found in differences.items()
        )
        raise ResultsError(
            f"The shards were run otherwise than {shards[0].directory}, so they are no parts of one run.\n{told}\n"
            "Run them alike, or give --override, which merges them and records the differences."
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # A merge that is broken off leaves no folder that looks like a run.
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as beside:
            made = await _write(shards, differences, output.parent / beside / "run")
            if output.exists():
                output.rmdir()
            made.rename(output)
    except OSError as error:
        raise RunDirectoryError(
            f"{output} cannot be written: {reason(error)}. {remedy(error)}, or choose another --output-dir."
        ) from error
    return await report_run(output)


def _read(directory: Path) -> Shard:
    attempts: list[RunStarted | RunResumed] = []
    last: Event | None = None
    for last in read_trace(directory / TRACE_FILE):
        if isinstance(last, RunStarted | RunResumed):
            attempts.append(last)
    if not attempts or not isinstance(last, RunFinished) or last.status != "finished":
        raise ResultsError(f"{directory}: this shard has not ended. `speclrm resume {directory}` goes on with it.")
    shard = str(attempts[-1].config.get("shard") or "")
    number, _, parts = shard.partition("/")
    if not (number.isdigit() and parts.isdigit()):
        raise ResultsError(
            f"{directory} is no shard: it was not run with --shard. `speclrm eval` sets whole runs side by side."
        )
    return Shard(directory, attempts, last, int(number), int(parts))


def _check_complete(shards: Sequence[Shard]) -> None:
    """Raises ResultsError unless the shards are all parts of the same problems, each once."""
    parts = {shard.parts for shard in shards}
    if len(parts) != 1:
        told = ", ".join(f"{shard.directory} is {shard.number}/{shard.parts}" for shard in shards)
        raise ResultsError(f"The shards are not of one division: {told}.")
    (total,) = parts
    numbers = [shard.number for shard in shards]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ResultsError(f"Shard {twice[0]}/{total} is there twice. Give each shard once.")
    if missing := sorted(set(range(1, total + 1)) - set(numbers)):
        named = ", ".join(f"{number}/{total}" for number in missing)
        raise ResultsError(f"Missing shards: {named}. Run them with --shard, and give their folders too.")
    selected = {str(shard.config.get(SELECTED)) for shard in shards}
    if len(selected) != 1:
        raise ResultsError(
            "The shards are parts of different problems: their datasets, or the options that select problems, differ. "
            "`speclrm runs` shows the data of each."
        )


def _differences(shards: Sequence[Shard]) -> dict[Path, Changes]:
    """Returns, by folder, in what a shard differs from the first one."""
    first = shards[0]
    found: dict[Path, Changes] = {}
    for shard in shards[1:]:
        one = changes(first.config, shard.config) | changed_models(first.config, shard.config)
        one.pop("problems", None)  # each shard has its own
        limits: tuple[JsonValue, JsonValue] = (dict(first.started.context_max), dict(shard.started.context_max))
        if limits[0] != limits[1]:
            one["context lengths"] = limits
        if one:
            found[shard.directory] = one
    return found


async def _write(shards: Sequence[Shard], differences: Mapping[Path, Changes], directory: Path) -> Path:
    """Writes record and trace, and checks the trace."""
    first = shards[0].started
    config: dict[str, JsonValue] = {
        **{name: value for name, value in shards[0].config.items() if name not in ("shard", SELECTED)},
        "problems": shards[0].config.get(SELECTED),
        MERGED: [_facts(shard, differences.get(shard.directory, {})) for shard in shards],
    }
    record = run_directory.new_record(config).model_copy(
        update={
            "started": min(shard.started.started for shard in shards),
            "versions": first.versions,
            "machine": first.machine,
        }
    )
    with run_directory.create(directory, record):
        async with Journal(directory / TRACE_FILE) as journal:
            for seq, event in enumerate(_events(shards, record)):
                stamp(event, seq, 0, event.t)
                journal.emit(event)
                if seq % READ_AT_ONCE == 0:
                    await asyncio.sleep(0)
                    await journal.room()
    if violations := check(directory).violations:
        raise ResultsError(
            f"The merged trace is not sound: {violations[0]}. Check each shard with `speclrm trace check`."
        )
    return directory


def _facts(shard: Shard, differences: Changes) -> JsonValue:
    """Returns what is recorded of a shard beside what all have in common."""
    return {
        "run": shard.started.run,
        "shard": f"{shard.number}/{shard.parts}",
        "directory": str(shard.directory),
        "attempts": len(shard.attempts),
        "started": shard.started.started,
        "seconds": shard.finished.seconds,
        "versions": dict(shard.started.versions),
        "machine": dict(shard.started.machine),
        "differences": {name: list(values) for name, values in differences.items()},
    }


def _events(shards: Sequence[Shard], record: run_directory.RunRecord) -> Iterator[Event]:
    yield RunStarted(
        run=record.run,
        started=record.started,
        config=record.config,
        versions=record.versions,
        machine=record.machine,
        begun_in_form=min(shard.started.begun_in_form for shard in shards),
        context_max=shards[0].started.context_max,
        engines=_engine_facts(shards),
    )
    yield from merged_in_order(*map(_lasting, shards), key=lambda event: event.t)
    yield _finished(shards)


def _lasting(shard: Shard) -> Iterator[Event]:
    """Yields what belongs to the samples and engines of a shard, and not to its attempts."""
    for event in read_trace(shard.directory / TRACE_FILE):
        if isinstance(event, SampleEvent | EngineFailed | EngineRecovered | OperationStuck):
            yield event


def _engine_facts(shards: Sequence[Shard]) -> dict[str, EngineFacts]:
    found: dict[str, EngineFacts] = {}
    for shard in shards:
        for role, facts in shard.started.engines.items():
            before = found.get(role)
            more = facts.replicas + (before.replicas if before else 0)
            found[role] = (before or facts).model_copy(update={"replicas": more})
    return found


def _finished(shards: Sequence[Shard]) -> RunFinished:
    """Returns the end of the merged run: seconds of the longest shard, sums of counts, means over engines of their seconds."""
    roles = sorted({role for shard in shards for role in shard.finished.busy_s})
    return RunFinished(
        t=max(shard.finished.t for shard in shards),
        status="finished",
        seconds=max(shard.finished.seconds for shard in shards),
        busy_s={
            role: _mean(shards, role, {i: s.finished.busy_s.get(role, 0.0) for i, s in enumerate(shards)})
            for role in roles
        },
        engines={role: one for role in roles if (one := _engine_report(shards, role)) is not None},
        deferred=sum(shard.finished.deferred for shard in shards),
    )


def _engine_report(shards: Sequence[Shard], role: str) -> EngineReport | None:
    reports = {number: one for number, shard in enumerate(shards) if (one := shard.finished.engines.get(role))}
    if not reports:
        return None
    counts = ("iterations", "batched", "preemptions", "operations", "waited_s", "output_tokens")
    return EngineReport(
        idle_ready_s=_mean(shards, role, {number: one.idle_ready_s for number, one in reports.items()}),
        **{name: sum(getattr(one, name) for one in reports.values()) for name in counts},
    )


def _mean(shards: Sequence[Shard], role: str, seconds: Mapping[int, float]) -> float:
    """Returns the mean over the engines of a role in all shards; each shard's figure is the mean of its own."""
    engines = {
        number: facts.replicas if (facts := shards[number].started.engines.get(role)) else 1 for number in seconds
    }
    return sum(seconds[number] * engines[number] for number in seconds) / sum(engines.values())
