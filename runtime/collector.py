"""Python's garbage collector, while many tracks are at work."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

YOUNG_OBJECTS = 10_000
"""New objects after which the collector looks for cycles. Python's 700 are made in four steps of a track, nearly all of
which are gone a step later by themselves: looking that often took a tenth of the runtime's time (``speclrm bench overhead``)."""


@contextmanager
def rare_collections() -> Generator[None, None, None]:
    """The collector runs less often inside the block, in the whole process. For programs, not for libraries."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
