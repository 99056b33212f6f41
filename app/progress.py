"""Defines the progress callback of long operations."""

from __future__ import annotations

from collections.abc import Callable

Notify = Callable[[str, float | None, float | None], None]
"""Progress callback: (stage, done, total); done and total may be unknown."""


NOTE = "note: "
"""Begins a stage that is none: what a user has to know, and what a display leaves standing."""


def note(notify: Notify, text: str) -> None:
    """Tells a fact that changes what the results are worth."""
    notify(f"{NOTE}{text}", None, None)


def quiet(stage: str, done: float | None, total: float | None) -> None:
    """Ignores all progress."""
