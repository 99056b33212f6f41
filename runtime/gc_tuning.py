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

YOUNG_ROUNDS = 2
"""After so many of these the objects that outlived one are looked at again, together. Python's 10 make that a pause of up to
100,000 objects, a tenth of a second while thousands of tracks start, in which the loop stands still."""
MIDDLE_ROUNDS = 1_000
"""After so many of those all objects are looked at, which takes as long as there are objects. Nothing of a run that lives
long is in a ring, so this finds next to nothing; it is there for what others leave behind in a long run."""


@contextmanager
def rare_collections() -> Generator[None, None, None]:
    """The collector runs less often inside the block, and with short pauses, in the whole process. Not for libraries."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, MIDDLE_ROUNDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
