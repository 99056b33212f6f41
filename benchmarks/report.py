"""Defines the form of all benchmark reports: circumstances, a table of rows, and figures with bounds that hold or do not.

A benchmark is a function that returns a ``BenchReport``; the command prints it, and ``write`` keeps it with its charts.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from speclrm.runtime.files import replaced, write_whole
from speclrm.runtime.trace import run_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

SCHEMA_VERSION = 1
REPORT_FILE = "report.json"
LEGEND_MAX = 10
"""Lines of a chart that have room for their labels among them; more labels stand beside it."""

Cell = str | int | float | bool | None
Row = dict[str, Cell]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Model):
    """A number that the benchmark is about.

    ``bound``: what it should be, such as ``<= 15``; None without a bound. ``holds``: whether it is so; None if there is
    no bound or no value.
    """

    name: str
    value: float | None
    unit: str = ""
    bound: str | None = None
    holds: bool | None = None


class Chart(_Model):
    """A chart with a line for each of ``lines`` (columns) and each value of the column ``by``, over the column ``x``."""

    name: str
    title: str
    x: str
    lines: tuple[str, ...]
    by: str | None = None
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False


class BenchReport(_Model):
    """The result of a benchmark.

    ``what``: one sentence on what was measured. ``runs``: repetitions behind each row. ``rows``: a table; every row has
    the same columns, whose names carry their units. ``simulated``: whether its seconds are those of a cost model.
    """

    schema_version: int = SCHEMA_VERSION
    benchmark: str
    what: str
    command: str = ""
    started: str
    quick: bool
    simulated: bool
    models: dict[str, str]
    hardware: dict[str, JsonValue]
    versions: dict[str, str]
    seeds: tuple[int, ...]
    runs: int
    settings: dict[str, JsonValue]
    rows: tuple[Row, ...]
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()


def figure(
    name: str, value: float | None, unit: str = "", *, at_most: float | None = None, at_least: float | None = None
) -> Figure:
    """Makes a figure with at most one bound. Without a value it neither holds nor fails."""
    if at_most is not None:
        return Figure(
            name=name,
            value=value,
            unit=unit,
            bound=f"<= {at_most:g}",
            holds=None if value is None else value <= at_most,
        )
    if at_least is not None:
        return Figure(
            name=name,
            value=value,
            unit=unit,
            bound=f">= {at_least:g}",
            holds=None if value is None else value >= at_least,
        )
    return Figure(name=name, value=value, unit=unit)


def report(
    benchmark: str,
    what: str,
    *,
    rows: Sequence[Row],
    figures: Sequence[Figure],
    models: dict[str, str],
    seeds: Sequence[int],
    runs: int,
    quick: bool,
    simulated: bool,
    settings: dict[str, JsonValue] | None = None,
    charts: Sequence[Chart] = (),
    notes: Sequence[str] = (),
    command: str = "",
) -> BenchReport:
    """Makes a report with this machine and these versions. Call it when the benchmark begins or ends."""
    record = run_directory.new_record({})
    return BenchReport(
        benchmark=benchmark,
        what=what,
        command=command,
        started=record.started,
        quick=quick,
        simulated=simulated,
        models=models,
        hardware=record.machine,
        versions=record.versions,
        seeds=tuple(seeds),
        runs=runs,
        settings=settings or {},
        rows=tuple(rows),
        figures=tuple(figures),
        charts=tuple(charts),
        notes=tuple(notes),
    )


class Spread(_Model):
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Returns median, least and greatest. Raises ValueError if there are no values."""
    found = sorted(values)
    if not found:
        raise ValueError("there is nothing to take a median of")
    return Spread(median=median(found), low=found[0], high=found[-1])


def percentile(values: Iterable[float], share: float) -> float:
    """Returns the value below which that share (0 to 1) of all lies, interpolated between neighbours (numpy's default
    method). Raises ValueError if there are no values.
    """
    found = sorted(values)
    if not found:
        raise ValueError("there is nothing to take a percentile of")
    place = share * (len(found) - 1)
    low = int(place)
    high = min(low + 1, len(found) - 1)
    return found[low] + (found[high] - found[low]) * (place - low)


# ------------------------------------------------------------------------------------------------------- for people


def print_report(console: Console, report: BenchReport) -> None:
    """Prints the table, then the figures with their bounds, then the circumstances."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(report.what, style="bold"), soft_wrap=True)
    if report.rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, value in report.rows[0].items():
            table.add_column(name, justify="left" if isinstance(value, str) else "right", overflow="fold")
        for row in report.rows:
            table.add_row(*(Text(shown(value)) for value in row.values()))
        console.print(table)
        console.print()
    if report.figures:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("figure", "value", "bound", ""):
            table.add_column(name, justify="right" if name in ("value", "bound") else "left", overflow="fold")
        verdicts = {True: Text("holds", "green"), False: Text("does not hold", "red"), None: Text("")}
        for one in report.figures:
            value = "-" if one.value is None else f"{shown(one.value)} {one.unit}".rstrip()
            table.add_row(Text(one.name), value, one.bound or "", verdicts[one.holds])
        console.print(table)
        console.print()
    for line in circumstances(report):
        console.print(Text(line), soft_wrap=True, highlight=False)


def circumstances(report: BenchReport) -> list[str]:
    """Returns the conditions of the measurement: numbers mean nothing without them."""
    models = ", ".join(f"{role} {name}" for role, name in report.models.items())
    seeds = ", ".join(map(str, report.seeds))
    lines = [
        f"models      {models or 'none'}",
        f"hardware    {'simulated: seconds are those of a cost model; ' if report.simulated else ''}"
        f"{report.hardware.get('processor')}, {report.hardware.get('cores')} cores",
        f"versions    {', '.join(f'{name} {version}' for name, version in report.versions.items())}",
        f"runs        {report.runs} of each row, seeds {seeds or 'none'}{'; --quick' if report.quick else ''}",
    ]
    return lines + [f"note        {note}" for note in report.notes]


def shown(value: Cell) -> str:
    """Returns a cell as it is printed: numbers to three or four digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


# --------------------------------------------------------------------------------------------------------- for files


def write(report: BenchReport, folder: Path, form: Literal["svg", "png"] = "svg") -> list[Path]:
    """Writes ``report.json`` and a file for each chart, into a folder that is new or empty. Returns the paths.

    Without matplotlib there are no charts.

    Raises:
        RunDirectoryError: the folder is not empty.
        OSError: it cannot be written.
    """
    run_directory.check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE
    write_whole(path, report.model_dump_json(indent=2) + "\n")
    return [path, *(chart for one in report.charts if (chart := _draw(report, one, folder, form)) is not None)]


def read(path: Path) -> BenchReport:
    """Reads a report from its file. Raises pydantic's ValidationError for another form."""
    return BenchReport.model_validate_json(path.read_bytes())


def _draw(report: BenchReport, chart: Chart, folder: Path, form: str) -> Path | None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return None
    # Not pyplot: it keeps every figure and looks for a screen.
    lines = curves(report.rows, chart)
    many = len(lines) > LEGEND_MAX
    canvas: Any = Canvas(figsize=(11, max(4.5, 0.22 * len(lines))) if many else (7, 4.5), layout="constrained")
    FigureCanvasAgg(canvas)
    axes: Any = canvas.add_subplot()
    for number, (label, points) in enumerate(lines.items()):
        style = ("-", "--", ":", "-.")[number // 10 % 4]  # matplotlib has ten colours
        axes.plot([x for x, _ in points], [y for _, y in points], style, marker="o", label=label)
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y_label or ", ".join(chart.lines))
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if many:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small")
    else:
        axes.legend()
    path = folder / f"{chart.name}.{form}"
    with replaced(path) as fresh:
        canvas.savefig(fresh, format=form)
    return path


def curves(rows: Sequence[Row], chart: Chart) -> dict[str, list[tuple[Any, Any]]]:
    """Returns the points of each line of a chart, by its label; rows without a value are left out."""
    found: dict[str, list[tuple[Any, Any]]] = {}
    for row in rows:
        group = "" if chart.by is None else str(row[chart.by])
        for line in chart.lines:
            label = " ".join(filter(None, [group, line if len(chart.lines) > 1 or not group else ""]))
            if row.get(chart.x) is not None and row.get(line) is not None:
                found.setdefault(label, []).append((row[chart.x], row[line]))
    return found
