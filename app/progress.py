"""Defines the progress callback of long operations."""

from __future__ import annotations

from collections.abc import Callable

Notify = Callable[[str, float | None, float | None], None]
"""Progress callback: (stage, done, total); done and total may be unknown."""


def quiet(stage: str, done: float | None, total: float | None) -> None:
    """Ignores all progress."""
