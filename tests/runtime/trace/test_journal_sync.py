"""The writer of traces under a clock that jumps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.events import EngineFailed
from speclrm.runtime.trace.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path


def test_a_sync_comes_due_at_the_time_that_was_waited_for_however_sums_round(tmp_path: Path) -> None:
    """15.275 + 1 - 16.275 is 0, and 16.275 - 15.275 is less than 1: a writer that took both waited for ever, and time with it."""

    async def main() -> None:
        await asyncio.sleep(15.275)
        async with Journal(tmp_path / "trace.jsonl") as journal:
            await asyncio.sleep(0)  # the writer begins
            journal.emit(EngineFailed(seq=0, engine="e", error="x"))
            await asyncio.sleep(10)

    run_virtual(main())
    assert (tmp_path / "trace.jsonl").read_text().count("engine_failed") == 1
