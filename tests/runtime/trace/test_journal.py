from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.errors import RunDirectoryError, TraceError
from speclrm.runtime.events import EVENT, EngineFailed, SampleFinished
from speclrm.runtime.trace import journal as journal_module
from speclrm.runtime.trace import trace_file
from speclrm.runtime.trace.journal import Journal

if TYPE_CHECKING:
    from io import FileIO

FULL = Path("/dev/full")


def event(number: int) -> EngineFailed:
    return EngineFailed(seq=number, engine="e", error="x" * 50)


def test_all_events_are_written_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / "trace.jsonl") as journal:
            for number in range(1000):
                journal.emit(event(number))
                if number % 100 == 0:
                    await asyncio.sleep(0.1)

    run_virtual(main())
    lines = (tmp_path / "trace.jsonl").read_text().splitlines()
    assert [EVENT.validate_json(line).seq for line in lines] == list(range(1000))


def test_an_event_is_in_the_file_within_the_promised_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"

    async def main() -> bool:
        async with Journal(path) as journal:
            await asyncio.sleep(1)
            journal.emit(event(1))
            await asyncio.sleep(journal_module.WRITE_DELAY_S)
            return bool(path.read_text())

    assert run_virtual(main())


def test_a_samples_end_is_synced_and_the_rest_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(trace_file.os, "fsync", synced.append)
    monkeypatch.setattr(trace_file, "sync_folder", Path.exists)  # no sync of the file

    async def main() -> tuple[int, int, int]:
        async with Journal(tmp_path / "trace.jsonl") as journal:
            await asyncio.sleep(5)
            journal.emit(SampleFinished(problem="p", repeat=0, answer=None, winner=None, outcome="wrong", seconds=1))
            await asyncio.sleep(0.1)
            after_sample = len(synced)
            journal.emit(event(2))
            await asyncio.sleep(0.1)
            soon = len(synced)
            await asyncio.sleep(1.1)
            return after_sample, soon, len(synced)

    assert run_virtual(main()) == (1, 1, 2)


def test_writers_wait_while_the_disk_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BUFFER_EVENTS_MAX", 10)

    async def main() -> int:
        async with Journal(tmp_path / "trace.jsonl") as journal:
            for number in range(10):
                journal.emit(event(number))
            await journal.room()
            return len((tmp_path / "trace.jsonl").read_text().splitlines())

    assert run_virtual(main()) == 10


def test_a_trace_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("precious")

    async def main() -> None:
        async with Journal(path) as journal:
            journal.emit(event(0))

    with pytest.raises(RunDirectoryError, match="cannot be written"):
        run_virtual(main())
    assert path.read_text() == "precious"


def test_a_full_disk_is_told_to_those_who_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not FULL.exists():
        pytest.skip("needs /dev/full")
    opened = trace_file.open_raw

    def open_full(path: Path, mode: str) -> FileIO:
        return opened(FULL, "wb")  # a disk with no room at all

    monkeypatch.setattr(trace_file, "open_raw", open_full)

    async def main() -> None:
        async with Journal(tmp_path / "trace.jsonl") as journal:
            journal.emit(event(0))
            await asyncio.sleep(journal_module.ROOM_LIMIT_S + 2)
            with pytest.raises(TraceError, match="No space left"):
                await journal.room()

    with pytest.raises(TraceError, match="No space left"):
        run_virtual(main())
