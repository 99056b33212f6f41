"""The options of the screen and of diagnostics, which several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

SCREEN = "Screen and logs"
DisplayKind = Literal["rich", "plain", "json", "none"]
LogLevel = Literal["debug", "info", "warning", "error"]

Display = Annotated[
    DisplayKind | None,
    typer.Option(
        help="Output: rich (live view), plain (lines), json (one object per sample on stdout), none (only the report).",
        show_default="rich on a terminal, plain elsewhere",
        rich_help_panel=SCREEN,
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(help="Write diagnostics to this file as JSON lines.", show_default="stderr", rich_help_panel=SCREEN),
]
LogLevelOption = Annotated[LogLevel, typer.Option(help="Minimum level of diagnostics.", rich_help_panel=SCREEN)]
