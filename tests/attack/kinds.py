"""The kinds of attack, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attack.callers import cancels, readers
from attack.cuts import cuts, ends
from attack.disks import disks
from attack.kills import kills

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from attack.reports import Report

KINDS: dict[str, Callable[[int, Path], Report]] = {
    "cuts": cuts,
    "ends": ends,
    "cancels": cancels,
    "readers": readers,
    "disks": disks,
    "kills": kills,
}
