"""Segments, resuming behind a crash, and disks that fill up or fail."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING, Any

import pytest

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.errors import RunDirectoryError, SettingsError, TraceError, TraceReadError
from speclrm.runtime.events import EngineFailed, RunStarted, SampleFinished
from speclrm.runtime.trace import journal as journal_module
from speclrm.runtime.trace import trace_file
from speclrm.runtime.trace.journal import Journal, TraceOptions
from speclrm.runtime.trace.reader import read_run, read_trace
from speclrm.runtime.trace.segments import SegmentHeader, compress, segments

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.events import Event

SMALL = TraceOptions(segment_bytes=2_000)


def started() -> RunStarted:
    return RunStarted(seq=0, run="r", started="now", config={}, versions={}, machine={})


def event(number: int) -> EngineFailed:
    return EngineFailed(seq=number, engine="e", error="x" * 50)


async def write(path: Path, numbers: range, *, resume: bool = False, options: TraceOptions | None = None) -> int:
    """Some batches of events; returns the number that the journal would go on with when it was opened."""
    async with Journal(path, resume=resume, options=options) as journal:
        first = journal.next_seq
        for number in numbers:
            journal.emit(started() if number == 0 else event(number))
            if number % 10 == 9:
                await asyncio.sleep(0.1)
        return first


def numbers(path: Path) -> list[int]:
    return [event.seq for event in read_trace(path)]


# ---------------------------------------------------------------------------------------------------------- segments


def test_a_large_trace_is_cut_into_segments_that_read_as_one(tmp_path: Path) -> None:
    run_virtual(write(tmp_path / "trace.jsonl", range(200), options=SMALL))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:2] == ["trace.0001.jsonl", "trace.0002.jsonl"]
    assert names[-1] == "trace.jsonl"
    assert len(names) > 5
    assert numbers(tmp_path / "trace.jsonl") == list(range(200))
    assert [event.seq for event in read_run(tmp_path)] == list(range(200))


def test_each_further_segment_begins_with_run_number_and_place(tmp_path: Path) -> None:
    run_virtual(write(tmp_path / "trace.jsonl", range(65), options=SMALL))
    for path, number, _ in segments(tmp_path / "trace.jsonl")[1:]:
        head, first = path.read_text().splitlines()[:2]
        header = SegmentHeader.model_validate_json(head)
        assert (header.run, header.segment, header.seq) == ("r", number, json.loads(first)["seq"])


def test_a_closed_segment_can_be_read_by_itself(tmp_path: Path) -> None:
    run_virtual(write(tmp_path / "trace.jsonl", range(60), options=SMALL))
    assert numbers(tmp_path / "trace.0002.jsonl")[0] == numbers(tmp_path / "trace.0001.jsonl")[-1] + 1


def test_closed_segments_can_be_compressed_and_read_alike(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run_virtual(write(tmp_path / "trace.jsonl", range(100), options=TraceOptions(2_000, compress=True)))
    closed = [segment.path for segment in segments(tmp_path / "trace.jsonl") if not segment.live]
    assert closed
    assert all(path.name.endswith(".jsonl.zst") for path in closed)
    assert not list(tmp_path.glob(".*"))
    assert numbers(tmp_path / "trace.jsonl") == list(range(100))


def test_a_segment_beside_its_compressed_form_is_read_once(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run_virtual(write(tmp_path / "trace.jsonl", range(60), options=SMALL))
    whole = (tmp_path / "trace.0001.jsonl").read_bytes()
    compress(tmp_path / "trace.0001.jsonl")
    (tmp_path / "trace.0001.jsonl").write_bytes(whole)  # as a crash between the two leaves it
    assert numbers(tmp_path / "trace.jsonl") == list(range(60))


def test_compression_without_its_package_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingsError, match=r"speclrm\[parquet\]"):
        run_virtual(write(tmp_path / "trace.jsonl", range(3), options=TraceOptions(compress=True)))
    assert not list(tmp_path.iterdir())


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    run_virtual(write(tmp_path / "trace.jsonl", range(100), options=SMALL))
    (tmp_path / "trace.0002.jsonl").unlink()
    with pytest.raises(TraceReadError, match="segment 2 is missing"):
        numbers(tmp_path / "trace.jsonl")


def test_a_closed_segment_that_was_cut_is_an_error_and_no_torn_line(tmp_path: Path) -> None:
    run_virtual(write(tmp_path / "trace.jsonl", range(100), options=SMALL))
    closed = tmp_path / "trace.0001.jsonl"
    closed.write_bytes(closed.read_bytes()[:-5])
    with pytest.raises(TraceReadError, match=r"trace\.0001\.jsonl line \d+: torn"):
        numbers(tmp_path / "trace.jsonl")


# ---------------------------------------------------------------------------------------------------------- resuming


def test_a_trace_cut_at_any_byte_of_its_last_line_goes_on_behind_the_line_before(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run_virtual(write(path, range(5)))
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(start, len(whole) + 1):
        path.write_bytes(whole[:cut])
        notices: list[str] = []
        kept = [event.seq for event in read_trace(path, notices.append)]
        lines = 5 if cut == len(whole) else 4
        assert kept == list(range(lines))
        assert len(notices) == (start < cut < len(whole))
        assert run_virtual(write(path, range(lines, 8), resume=True)) == lines
        assert numbers(path) == list(range(8))


def test_a_resumed_trace_goes_on_in_the_segment_that_was_open(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run_virtual(write(path, range(60), options=SMALL))
    assert run_virtual(write(path, range(60, 120), resume=True, options=SMALL)) == 60
    assert numbers(path) == list(range(120))


def test_a_crash_between_two_segments_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run_virtual(write(path, range(60), options=SMALL))
    path.unlink()
    left = numbers(path)
    assert run_virtual(write(path, range(len(left), 90), resume=True, options=SMALL)) == len(left)
    assert numbers(path) == list(range(90))


def test_a_crash_within_the_head_of_a_segment_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run_virtual(write(path, range(60), options=SMALL))
    path.write_bytes(path.read_bytes()[:20])
    left = numbers(path)
    assert run_virtual(write(path, range(len(left), 90), resume=True, options=SMALL)) == len(left)
    assert numbers(path) == list(range(90))


def test_resuming_behind_a_compressed_segment_finds_its_last_number(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "trace.jsonl"
    run_virtual(write(path, range(60), options=TraceOptions(2_000, compress=True)))
    path.unlink()
    left = numbers(path)
    assert run_virtual(write(path, range(len(left), 90), resume=True)) == len(left)
    assert numbers(path) == list(range(90))


def test_a_trace_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no trace to go on with"):
        run_virtual(write(tmp_path / "trace.jsonl", range(3), resume=True))


def test_a_number_of_the_trace_cannot_be_given_again(tmp_path: Path) -> None:
    run_virtual(write(tmp_path / "trace.jsonl", range(5)))
    with pytest.raises(AssertionError, match="repeats a number"):
        run_virtual(write(tmp_path / "trace.jsonl", range(3, 6), resume=True))


# ------------------------------------------------------------------------------------------------------------ faults


class Disk:
    """A disk that takes what it is told to. ``room``: bytes that it still takes; ``broken``: every write fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, room: int = 1 << 40, most: int = 1 << 40) -> None:
        self.room, self.most, self.broken, self.sync_errors = room, most, False, 0
        self.writes = 0
        disk = self

        class File(FileIO):
            def write(self, data: Any) -> int:  # type: ignore[override]
                disk.writes += 1
                if disk.broken:
                    raise OSError(errno.EIO, "Input/output error")
                if not disk.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                count = super().write(bytes(data)[: min(disk.room, disk.most)])
                disk.room -= count
                return count

        real = trace_file.os.fsync

        def fsync(handle: int) -> None:
            if disk.sync_errors:
                disk.sync_errors -= 1
                raise OSError(errno.EIO, "Input/output error")
            real(handle)

        def open_raw(path: Path, mode: str) -> File:
            return File(path, mode)

        monkeypatch.setattr(trace_file, "open_raw", open_raw)
        monkeypatch.setattr(trace_file.os, "fsync", fsync)


@pytest.mark.parametrize("most", [1, 7, 64, 1000])
def test_short_writes_leave_no_hole_and_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    Disk(monkeypatch, most=most)
    run_virtual(write(tmp_path / "trace.jsonl", range(30)))
    assert numbers(tmp_path / "trace.jsonl") == list(range(30))


@pytest.mark.parametrize("room", [0, 1, 100, 1234])
def test_a_full_disk_pauses_the_run_and_room_lets_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    disk = Disk(monkeypatch, room=room)

    async def main() -> tuple[bool, float]:
        async with Journal(path) as journal:
            for number in range(30):
                journal.emit(started() if number == 0 else event(number))
            await asyncio.sleep(1)
            waits = False
            begun = now_s()
            try:
                async with asyncio.timeout(100):
                    await journal.room()
            except TimeoutError:
                waits = True
            disk.room = 1 << 40
            await journal.room()
            journal.emit(event(30))
            return waits, now_s() - begun - 100

    waits, late_s = run_virtual(main())
    assert waits
    assert late_s <= 2 * journal_module.RETRY_S
    assert numbers(path) == list(range(31))
    told = capsys.readouterr().out
    assert told.count("trace_paused") == told.count("trace_continues") == 1
    assert "No space left on device" in told


def test_a_disk_that_fails_for_ever_stops_the_run_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.jsonl"
    disk = Disk(monkeypatch)

    async def main() -> float:
        async with Journal(path) as journal:
            for number in range(10):
                journal.emit(started() if number == 0 else event(number))
            await asyncio.sleep(1)
            disk.broken = True
            journal.emit(event(10))
            await asyncio.sleep(0.1)
            begun = now_s()
            with pytest.raises(TraceError, match="Input/output error"):
                await journal.room()
            stopped = now_s() - begun
            journal.emit(event(11))
            return stopped

    with pytest.raises(TraceError, match="2 events wait in memory"):
        run_virtual(main())
    assert numbers(path) == list(range(10))
    assert disk.writes < 50


def test_a_disk_that_recovers_by_the_runs_end_still_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.jsonl"
    disk = Disk(monkeypatch)
    disk.broken = True

    async def main() -> None:
        async with Journal(path) as journal:
            for number in range(10):
                journal.emit(started() if number == 0 else event(number))
            await asyncio.sleep(1)
            with pytest.raises(TraceError):
                await journal.room()
            disk.broken = False

    run_virtual(main())
    assert numbers(path) == list(range(10))


def test_closing_on_a_full_disk_does_not_wait_as_long_as_a_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, room=100)

    async def main() -> float:
        async with Journal(tmp_path / "trace.jsonl") as journal:
            journal.emit(started())
            await asyncio.sleep(1)
            begun = now_s()
            with pytest.raises(TraceError, match="No space left"):
                await journal.aclose()
            return now_s() - begun

    assert run_virtual(main()) <= journal_module.CLOSE_LIMIT_S + 2 * journal_module.RETRY_S


def test_what_a_failed_sync_may_have_lost_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.jsonl"
    disk = Disk(monkeypatch)

    async def main() -> None:
        async with Journal(path) as journal:
            journal.emit(started())
            await asyncio.sleep(3)
            disk.sync_errors = 2
            journal.emit(event(1))
            await asyncio.sleep(0.04)
            assert len(path.read_bytes().splitlines()) == 2
            with path.open("r+b") as file:  # the kernel drops the page that it could not bring to the disk
                file.truncate(len(path.read_bytes()) - 20)
            await asyncio.sleep(10)
            assert not disk.sync_errors
            assert numbers(path) == [0, 1]

    run_virtual(main())


def test_an_error_while_a_segment_is_closed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trace_file.aiofiles.os.rename
    fails = iter([True, True, False, True])

    async def rename(*paths: Any) -> None:
        if next(fails, False):
            raise OSError(errno.EIO, "Input/output error")
        await real(*paths)

    monkeypatch.setattr(trace_file.aiofiles.os, "rename", rename)

    async def main() -> None:
        async with Journal(tmp_path / "trace.jsonl", options=SMALL) as journal:
            for number in range(100):
                journal.emit(started() if number == 0 else event(number))
                if number % 10 == 9:
                    await asyncio.sleep(0.1)
                    await journal.room()

    run_virtual(main())
    assert numbers(tmp_path / "trace.jsonl") == list(range(100))


def test_a_second_cancellation_costs_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.jsonl"
    disk = Disk(monkeypatch, room=10)

    async def work() -> None:
        async with Journal(path) as journal:
            for number in range(10):
                journal.emit(started() if number == 0 else event(number))
            await asyncio.sleep(1000)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(2)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.5)
        disk.room = 1 << 40
        await asyncio.wait([task])
        assert task.cancelled()

    run_virtual(main())
    assert numbers(path) == list(range(10))


REAL_LIMIT = """
import asyncio, resource, sys
from pathlib import Path
from speclrm.runtime.events import EngineFailed, RunStarted
from speclrm.runtime.trace.journal import Journal

async def main():
    async with Journal(Path(sys.argv[1])) as journal:
        journal.emit(RunStarted(seq=0, run="r", started="", config={}, versions={}, machine={}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (3001, resource.RLIM_INFINITY))
        for number in range(1, 100):
            journal.emit(EngineFailed(seq=number, engine="e", error="x" * 50))
        await asyncio.sleep(0.3)
        print(Path(sys.argv[1]).stat().st_size, journal._gate.is_set())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        async with asyncio.timeout(20):
            await journal.room()

asyncio.run(main())
"""


def test_a_limit_of_the_kernel_itself_cuts_a_write_short_and_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    done = subprocess.run([sys.executable, "-c", REAL_LIMIT, str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "3001 False" in done.stdout  # the file was cut in the middle of a line, and the run waited
    assert numbers(path) == list(range(100))


def test_syncing_does_not_hold_up_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.jsonl"
    written: list[int] = []

    async def slow_sync(*_: Any) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr(trace_file.asyncio, "to_thread", slow_sync)

    async def main() -> None:
        async with Journal(path) as journal:
            journal.emit(started())
            await asyncio.sleep(2)  # a sync is out, and takes long
            for number in range(1, 5):
                journal.emit(event(number))
                await asyncio.sleep(journal_module.WRITE_DELAY_S)
                written.append(len(path.read_bytes().splitlines()))

    run_virtual(main())
    assert written == [2, 3, 4, 5]


def test_a_samples_end_is_on_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[float] = []
    monkeypatch.setattr(trace_file.os, "fsync", lambda _: synced.append(now_at[0]))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    now_at = [0.0]

    def sample(number: int) -> Event:
        return SampleFinished(seq=number, problem="p", repeat=0, answer=None, winner=None, outcome="wrong", seconds=1)

    async def main() -> int:
        async with Journal(tmp_path / "trace.jsonl") as journal:
            journal.emit(started())
            await asyncio.sleep(1.5)
            before = len(synced)
            for number in range(1, 4):
                journal.emit(sample(number))
                await asyncio.sleep(0.1)
            return len(synced) - before

    assert run_virtual(main()) == 3


@pytest.mark.parametrize("what", ["the file removed", "the folder removed", "the folder moved", "another in its place"])
def test_a_trace_that_is_gone_stops_the_run_at_the_next_sync(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    async def main() -> float:
        async with Journal(folder / "trace.jsonl") as journal:
            journal.emit(started())
            await asyncio.sleep(2)
            await journal.room()
            if what == "the file removed":
                (folder / "trace.jsonl").unlink()
            elif what == "the folder moved":
                folder.rename(tmp_path / "elsewhere")
            else:
                shutil.rmtree(folder)
            if what == "another in its place":
                folder.mkdir()
                (folder / "trace.jsonl").write_text("")
            begun = now_s()
            for number in range(1, 1000):
                journal.emit(event(number))
                await asyncio.sleep(0.1)
                try:
                    await journal.room()
                except TraceError:
                    break
            return now_s() - begun

    with pytest.raises(TraceError, match="events were not written") as told:
        run_virtual(main())
    assert "speclrm resume" in str(told.value)
    assert not (folder / "trace.jsonl").exists() or not (folder / "trace.jsonl").read_text()


def test_a_removed_trace_is_not_waited_for(tmp_path: Path) -> None:
    waited: list[float] = []

    async def main() -> None:
        async with Journal(tmp_path / "trace.jsonl") as journal:
            journal.emit(started())
            await asyncio.sleep(2)
            (tmp_path / "trace.jsonl").unlink()
            begun = now_s()
            journal.emit(event(1))
            await asyncio.sleep(journal_module.SYNC_INTERVAL_S + 0.1)
            with pytest.raises(TraceError):
                await journal.room()
            waited.append(now_s() - begun)

    with pytest.raises(TraceError):
        run_virtual(main())
    assert waited[0] < 2 * journal_module.SYNC_INTERVAL_S


def test_closing_a_segments_file_may_fail_without_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trace_file.AsyncFileIO.close

    async def close(self: Any) -> None:
        await real(self)
        raise OSError(errno.EIO, "Input/output error")  # as a server's disk may answer

    monkeypatch.setattr(trace_file.AsyncFileIO, "close", close)

    async def main() -> None:
        async with Journal(tmp_path / "trace.jsonl", options=SMALL) as journal:
            for number in range(100):
                journal.emit(started() if number == 0 else event(number))
                if number % 10 == 9:
                    await asyncio.sleep(0.1)
                    await journal.room()

    with suppress(OSError):  # that of the last file
        run_virtual(main())
    assert numbers(tmp_path / "trace.jsonl") == list(range(100))
