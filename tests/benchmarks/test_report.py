"""The form of benchmarks: bounds, files, what a person sees."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, cast

import pytest
from rich.console import Console

from speclrm.benchmarks.report import (
    BenchReport,
    Chart,
    Row,
    curves,
    figure,
    percentile,
    print_report,
    read,
    report,
    shown,
    spread,
    write,
)
from speclrm.runtime.errors import RunDirectoryError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def found() -> BenchReport:
    return report(
        "speed",
        "How fast",
        rows=[{"who": "a", "n": 1, "s": 2.0}, {"who": "a", "n": 2, "s": None}, {"who": "b", "n": 1, "s": 1234.5}],
        figures=[
            figure("fast", 2.0, "s", at_most=1.0),
            figure("big", 3.0, at_least=3.0),
            figure("odd", None, at_most=1),
        ],
        models={"target": "t"},
        seeds=[4],
        runs=2,
        quick=False,
        simulated=True,
        charts=[Chart(name="time", title="Time", x="n", lines=("s",), by="who")],
    )


def test_a_figure_says_whether_its_bound_holds(found: BenchReport) -> None:
    assert [(one.bound, one.holds) for one in found.figures] == [("<= 1", False), (">= 3", True), ("<= 1", None)]
    assert figure("free", 1.0).holds is None


def test_a_report_survives_writing_and_reading(found: BenchReport, tmp_path: Path) -> None:
    paths = write(found, tmp_path / "out")
    assert {path.name for path in paths} == {"report.json", "time.svg"}
    assert read(tmp_path / "out" / "report.json") == found
    assert json.loads((tmp_path / "out" / "report.json").read_text())["figures"][0]["holds"] is False


def test_a_folder_that_holds_something_is_not_written_over(found: BenchReport, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(RunDirectoryError):
        write(found, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_figures_rows_and_circumstances_are_printed(found: BenchReport) -> None:
    console = Console(width=120, file=io.StringIO())
    print_report(console, found)
    text = cast("io.StringIO", console.file).getvalue()
    for part in ("How fast", "does not hold", "holds", "<= 1", "1,234", "simulated", "target t", "seeds 4"):
        assert part in text


def test_rows_without_a_value_are_left_out_of_a_chart(found: BenchReport) -> None:
    assert curves(found.rows, found.charts[0]) == {"a": [(1, 2.0)], "b": [(1, 1234.5)]}


def test_labels_of_many_lines_stand_beside_the_chart_and_leave_it_its_room(found: BenchReport, tmp_path: Path) -> None:
    """matplotlib warns where labels leave no room for the axes, and a warning is an error here."""
    rows: list[Row] = [
        {"who": f"a70, shared, schedule number {n}", "n": x, "s": 1.0} for n in range(48) for x in (1, 5, 20)
    ]
    write(found.model_copy(update={"rows": tuple(rows)}), tmp_path / "out")
    assert (tmp_path / "out" / "time.svg").stat().st_size > 10_000


def test_percentiles_lie_between_neighbours_and_medians_have_their_spread() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([5], 0.99) == 5
    assert (spread([3, 1, 2]).median, spread([3, 1, 2]).low, spread([3, 1, 2]).high) == (2, 1, 3)
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (12345, "12,345"), (0.01234, "0.0123"), (123.45, "123.5"), ("a", "a")],
)
def test_cells_are_shown_to_three_or_four_digits(value: str | float | None, text: str) -> None:
    assert shown(value) == text
