"""``runs``: what runs there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speclrm.commands.errors import guard
from speclrm.commands.screen import stdout

if TYPE_CHECKING:
    from speclrm.app.run_list import ListedRun


REASON_WIDTH = 48


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder to search for runs, at any depth.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List runs: strategy, models, data, status, accuracy with its 95 % interval, generated tokens, time.

    A run whose folder is damaged is a line of the list, too. `speclrm eval` sets runs side by side.
    """

    def start() -> None:
        from speclrm.app.run_list import list_runs

        found = list_runs(folder)
        if json:
            from speclrm.commands.display import print_json

            print_json({"runs": [one.model_dump(mode="json") for one in found]})
        else:
            _print(found, folder)

    guard(start)


def _print(found: list[ListedRun], folder: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from speclrm.commands.display import harmless
    from speclrm.runtime.engines.simulated.presets import is_simulated

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "strategy", "models", "data", "status", "accuracy", "tokens", "time"):
        right = name in ("tokens", "time")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for one in found:
        name = one.directory.relative_to(folder).as_posix()
        cells = [
            str(one.directory) if name == "." else name,
            one.strategy,
            " + ".join(_last_part(name) for name in (one.target, one.draft) if name),
            _last_part(one.dataset),
            _status(one),
            _accuracy(one),
            f"{sum(one.tokens.values()):,}" if one.tokens else "-",
            f"{one.seconds:,.0f} {'virtual s' if is_simulated(one.target or '') else 's'}" if one.seconds else "-",
        ]
        table.add_row(*(Text(harmless(cell, 160)) for cell in cells))
    stdout().print(table)


def _last_part(name: str) -> str:
    """Returns the name of a file or folder without its path; any other name as it is."""
    return Path(name).name if name.startswith(("/", ".", "~")) else name


def _status(one: ListedRun) -> str:
    from speclrm.commands.display import harmless

    if one.status == "broken":
        # The first words say what it is; --json has the rest.
        said = (one.error or "").removeprefix(f"{one.directory}").lstrip("/: ")
        return f"broken: {harmless(re.split(r' [(]|[.;,] |[.]$', said)[0], REASON_WIDTH)}"
    wanted = "?" if one.wanted is None else one.wanted
    return one.status if one.samples == one.wanted else f"{one.status}, {one.samples} of {wanted} samples"


def _accuracy(one: ListedRun) -> str:
    if one.accuracy is None or one.interval is None:
        return "-"
    low, high = one.interval
    return f"{one.accuracy:.1%} ({low:.0%} to {high:.0%})"
