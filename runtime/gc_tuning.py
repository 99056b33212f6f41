"""Makes Python's garbage collector run less often while many tracks are at work."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

YOUNG_OBJECTS = 10_000
"""New objects after which the collector looks for cycles. Four steps of a track make Python's default of 700, and
nearly all of them are freed a step later without it: looking that often took a tenth of the runtime's time (``speclrm
bench overhead``)."""

YOUNG_ROUNDS = 2
"""Rounds of the first generation before the second one is collected. Python's default of 10 would collect up to 100,000
objects at once, which stops the loop for a tenth of a second while thousands of tracks start."""
MIDDLE_ROUNDS = 1_000
"""Rounds of the second generation before all objects are collected, which takes as long as there are objects.
Long-lived objects of a run are in no cycle, so this finds next to nothing; it serves what others leave behind in a long
run."""


@contextmanager
def rare_collections() -> Generator[None, None, None]:
    """Makes the collector run less often and with short pauses inside the block, in the whole process. Not for libraries."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, MIDDLE_ROUNDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
