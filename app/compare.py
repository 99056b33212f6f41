"""Compares runs pair by pair: the same problems and repeats in both, or in what both have of them."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from speclrm.app.comparable import (
    BUDGET,
    MACHINE,
    ON_COMMON,
    SIMULATED,
    Facts,
    differences,
    of_both,
    other_machine,
    remarks,
)
from speclrm.app.evaluation import find_runs, read_run
from speclrm.app.options import Options
from speclrm.app.settings_diff import recipe, table
from speclrm.evaluators.intervals import intervals
from speclrm.evaluators.paired import Paired, paired
from speclrm.evaluators.speedup import Split, split
from speclrm.evaluators.statistics import Intervals
from speclrm.runtime.errors import ResultsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speclrm.app.settings_diff import Changes
    from speclrm.evaluators.evaluation import RunResults

SCHEMA_VERSION = 1


class Side(Options):
    """One of the runs. ``samples``: that have ended, of ``problems``. ``intervals``: of its own figures over all of these."""

    directory: Path
    strategy: str
    dataset: str
    target: str
    draft: str | None
    token_budget: int | None
    status: str
    problems: int
    samples: int
    seconds: float
    intervals: Intervals


class Against(Options):
    """A run beside the base. ``notices``: what to know before believing it. ``virtual``: the times are of simulated engines.
    ``split``: of the speed-up, None with the reason in ``no_split``.
    """

    run: Side
    notices: tuple[str, ...]
    paired: Paired
    split: Split | None
    no_split: str | None
    virtual: bool


class Compared(Options):
    """The form of ``speclrm compare --json``: each of ``others`` compared with ``base``."""

    schema_version: int = SCHEMA_VERSION
    base: Side
    others: tuple[Against, ...]


class _Run:
    """A run that was read, and what it is to be compared by."""

    def __init__(self, directory: Path, notice: Callable[[str], None]) -> None:
        self.facts = Facts()
        self.directory = directory
        self.results: RunResults = read_run(directory, notice, reports=False, facts=self.facts)

    def side(self) -> Side:
        config, summary = self.facts.config, self.results.summary
        budget = recipe(config)[BUDGET]
        draft = config.get("draft")
        return Side(
            directory=self.directory,
            **{name: str(config.get(name) or "") for name in ("strategy", "dataset", "target")},
            draft=None if draft is None else str(draft),
            token_budget=budget if isinstance(budget, int) else None,
            status=summary.status,
            problems=len({row.problem for row in summary.samples}),
            samples=len(summary.samples),
            seconds=summary.seconds,
            intervals=summary.intervals or intervals(summary.samples),
        )


def compare(
    folders: Sequence[Path],
    *,
    common: bool = False,
    allow: Sequence[str] = (),
    notice: Callable[[str], None] = lambda _: None,
) -> Compared:
    """Compares each run with the first one.

    ``common``: compares what both have, if they have not the same. ``allow``: names of differences that are no reason to
    refuse, as a refusal names them.

    Raises:
        ResultsError: a folder is not that of one run, or two runs are not comparable; the message has the difference.
        TraceReadError: a trace is broken.
    """
    directories = [_one_run(folder) for folder in folders]
    if len(directories) < 2:
        raise ResultsError(
            "Two runs are needed for a comparison: give the folders of both, the one to compare with first."
        )
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise ResultsError("A run is named twice. Give the folders of different runs.")
    base, *others = [_read(directory, notice) for directory in directories]
    allowed = {name.strip().replace("_", "-") for names in allow for name in names.split(",")}
    return Compared(
        base=base.side(), others=tuple(_against(base, other, common=common, allowed=allowed) for other in others)
    )


def _one_run(folder: Path) -> Path:
    found = find_runs([folder])
    if len(found) > 1:
        names = ", ".join(map(str, found[:3])) + (", ..." if len(found) > 3 else "")
        raise ResultsError(
            f"{folder} holds {len(found)} runs ({names}). Name one of them: a comparison is of single runs."
        )
    return found[0]


def _read(directory: Path, notice: Callable[[str], None]) -> _Run:
    run = _Run(directory, notice)
    if not run.results.summary.samples:
        raise ResultsError(f"{directory}: no sample of this run has ended, so there is nothing to compare.")
    return run


def _against(base: _Run, other: _Run, *, common: bool, allowed: set[str]) -> Against:
    found = differences(base.facts, other.facts)
    refused = {name: values for name, values in found.items() if not _passes(name, common=common, allowed=allowed)}
    if refused:
        _refuse(base.directory, other.directory, refused)
    notices = remarks(base.facts, other.facts)
    rest = {name: values for name, values in found.items() if name not in ON_COMMON}
    notices += [f"compared all the same: {name} {one} beside {two}" for name, (one, two) in rest.items()]
    samples = of_both(base.facts, other.facts)
    if found.keys() & set(ON_COMMON):
        if not samples:
            raise ResultsError(
                f"{base.directory} and {other.directory} have no problem in common that is the same in both."
            )
        notices.append(
            f"only what both have is compared: {len(samples)} samples of {len({name for name, _ in samples})} problems, of "
            f"{len(base.facts.samples)} and {len(other.facts.samples)} samples"
        )
    machines = other_machine(base.facts, other.facts)
    times = machines is None or MACHINE in allowed
    if machines is not None:
        why = "compared all the same" if times else "left out (--allow machine shows them)"
        notices.append(f"times are of other machines and {why}: {machines[0]} beside {machines[1]}")
    no_split = _no_split(base, other, whole=not found.keys() & set(ON_COMMON), times=times)
    rows = [{(row.problem, row.repeat): row for row in run.results.summary.samples} for run in (base, other)]
    order = [sample for sample in rows[0] if sample in samples]
    divided = None if no_split else split(base.results.summary, other.results.summary)
    if divided is None and no_split is None:
        no_split = "a run has no token of the target's own to measure by"
    return Against(
        run=other.side(),
        notices=tuple(notices),
        paired=paired([(rows[0][sample], rows[1][sample]) for sample in order], times=times),
        split=divided,
        no_split=no_split,
        virtual=base.facts.config.get("reproducibility") == SIMULATED,
    )


def _no_split(base: _Run, other: _Run, *, whole: bool, times: bool) -> str | None:
    if not whole:
        return "the run times are of other samples"
    if not times:
        return "the run times are of other machines"
    if not (base.results.finished and other.results.finished):
        return "a run did not end by itself"
    return None


def _passes(name: str, *, common: bool, allowed: set[str]) -> bool:
    return common if name in ON_COMMON else _named(name) in allowed


def _named(name: str) -> str:
    """How a difference is named to allow it: all that differs in models under one name goes together."""
    return "models" if "'s " in name else name.replace("_", "-")


def _refuse(base: Path, other: Path, refused: Changes) -> None:
    """Raises ResultsError."""
    advice: list[str] = []
    if refused.keys() & set(ON_COMMON):
        advice.append("--common compares what both have")
    if allowing := sorted({_named(name) for name in refused if name not in ON_COMMON}):
        advice.append(f"--allow {','.join(allowing)} compares all the same, if that is what you want to compare")
    names = (base.name, other.name) if base.name != other.name else (str(base), str(other))
    raise ResultsError(
        f"{quote(str(base))} and {quote(str(other))} are not comparable.\n"
        f"{table(refused, ('', *names))}\n{'; '.join(advice)}."
    )
