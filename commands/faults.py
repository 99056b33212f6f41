"""``faults``: lists the faults of the original code that can be turned on."""

from __future__ import annotations

from speclrm.commands.errors import guard
from speclrm.commands.screen import stdout


def faults() -> None:
    """List the faults of the original code that --reproduce-fault turns on."""

    def start() -> None:
        from rich.table import Table

        from speclrm.app.original_faults import FAULTS

        table = Table(box=None, pad_edge=False)
        table.add_column("name")
        table.add_column("what it does", overflow="fold")
        for name, fault in FAULTS.items():
            table.add_row(name, fault.what)
        stdout().print(table)

    guard(start)
