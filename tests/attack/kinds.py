"""The kinds of attack, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attack.cuts import cuts, ends

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from attack.reports import Report

KINDS: dict[str, Callable[[int, Path], Report]] = {"cuts": cuts, "ends": ends}
