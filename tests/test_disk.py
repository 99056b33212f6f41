"""Disks that are full, that cannot be written, that fail, and folders that go away, at every call that reaches them."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import shutil
import sys
from contextlib import redirect_stdout, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli_runner
import pytest
import structlog
import typer
from again import decisions
from disk import Disk, Ended, speclrm_here

from speclrm.app import runs
from speclrm.benchmarks.report import read as read_report
from speclrm.benchmarks.report import report
from speclrm.commands import logs
from speclrm.commands.bench import bench
from speclrm.commands.screen import providing
from speclrm.runtime.engines.simulated.presets import PRESETS, EngineFit, Preset, write_preset
from speclrm.runtime.events import RunResumed
from speclrm.runtime.files import is_part
from speclrm.runtime.trace import journal, trace_file
from speclrm.runtime.trace.journal import TRACE_FILE, TraceOptions
from speclrm.runtime.trace.reader import read_trace
from speclrm.runtime.trace.segments import segments

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

RUN = (
    *("run", "baseline", "--target", "sim/qwq-32b", "--dataset", "sim:a70?size=1", "--token-budget", "200"),
    *("--display", "none"),
)
CALLS_MAX = 200
FAULTS = {
    "a full disk": (errno.ENOSPC, False),
    "a disk that became read-only": (errno.EROFS, False),
    "a disk that fails once": (errno.EIO, True),
}


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Traces of a few segments, so that their closing is tried too; few tries in the ten minutes that a run waits for room;
    and a cache that nobody else has.
    """
    monkeypatch.setattr(journal, "RETRY_S", 100.0)
    monkeypatch.setattr(runs, "TraceOptions", functools.partial(TraceOptions, 4_000))
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    return Disk(monkeypatch, tmp_path / "disk")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The run that nothing happened to."""
    assert speclrm_here(*RUN, "--output-dir", tmp_path / "whole").code == 0
    return tmp_path / "whole"


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """A run that was killed half-way, within a line."""
    folder = tmp_path / "half"
    shutil.copytree(whole, folder)
    for name in ("results.jsonl", "summary.json", TRACE_FILE):
        (folder / name).unlink()
    last = segments(folder / TRACE_FILE)[-1].path
    (folder / TRACE_FILE).write_bytes(last.read_bytes()[:-20])
    last.unlink()
    return folder


@pytest.fixture
def one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "TraceOptions", TraceOptions)


@pytest.fixture
def plain(tmp_path: Path, one_segment: None) -> Path:
    """The same in one segment."""
    assert speclrm_here(*RUN, "--output-dir", tmp_path / "plain").code == 0
    return tmp_path / "plain"


def results(folder: Path) -> object:
    return decisions((folder / "results.jsonl").read_text().splitlines())


def content(folder: Path) -> dict[str, bytes]:
    """All that somebody could miss."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.lock"}


def one_paragraph(ended: Ended) -> str:
    """What a command that was stopped by the disk has said: one paragraph, and no traceback."""
    assert ended.error is None, ended.error
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.err
    (said,) = ended.paragraphs
    return said


def nothing_half_made(folder: Path, error: int = 0) -> None:
    for path in folder.rglob("*"):
        assert not is_part(path.name) or error == errno.EROFS, path  # where nothing can be removed
        if path.name in ("run.json", "summary.json"):
            json.loads(path.read_text())


def gone_on(folder: Path, whole: Path) -> None:
    """What is left is gone on with, or begun anew where nothing was recorded, and comes to the same."""
    again = speclrm_here("resume", folder, "--display", "none")
    if again.code:
        assert "There is no" in again.err or "holds no run" in again.err or "takes this folder again" in again.err
        again = speclrm_here(*RUN, "--output-dir", folder)
    assert again.code == 0, again
    assert results(folder) == results(whole)
    nothing_half_made(folder)
    assert speclrm_here("trace", "check", folder).code == 0


def each_call(disk: Disk, number: int, ended: Ended, least: int = 3) -> bool:
    """Whether the fault came before the command's end, so that a later call is still to be tried."""
    if disk.calls >= number:
        return True
    assert ended.code == 0, ended
    assert number > least
    return False


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("error", "once"), FAULTS.values(), ids=FAULTS)
def test_a_run_survives_a_fault_at_any_call_that_reaches_the_disk(
    tmp_path: Path, disk: Disk, whole: Path, error: int, once: bool
) -> None:
    told: set[str] = set()
    for number in range(1, CALLS_MAX):
        folder = tmp_path / "disk" / str(number)
        with disk.failing(number, error, once=once):
            ended = speclrm_here(*RUN, "--output-dir", folder)
        if not each_call(disk, number, ended):
            break
        if ended.code == 0:
            assert once  # the trace waits, and is written when the disk takes it again
            assert results(folder) == results(whole)
        else:
            told.add(one_paragraph(ended).replace(f"/{number}", ""))
        if folder.exists():
            nothing_half_made(folder, error)
        gone_on(folder, whole)
    else:
        raise AssertionError("the run reaches the disk without end")
    assert all(os.strerror(error) in text for text in told)
    assert any("cannot be used" in text for text in told)
    assert any("results.jsonl cannot be written" in text for text in told)
    assert once or any("trace.jsonl cannot be written" in text for text in told)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("error", "once"), FAULTS.values(), ids=FAULTS)
def test_a_resume_survives_a_fault_at_any_call_that_reaches_the_disk(
    tmp_path: Path, disk: Disk, whole: Path, half: Path, error: int, once: bool
) -> None:
    for number in range(1, CALLS_MAX):
        folder = tmp_path / "disk" / str(number)
        shutil.copytree(half, folder)
        before = content(folder)
        with disk.failing(number, error, once=once):
            ended = speclrm_here("resume", folder, "--display", "none")
        if not each_call(disk, number, ended):
            break
        if ended.code:
            said = one_paragraph(ended)
            assert "resume" in said or "run the command again" in said
        for name, data in before.items():
            if name != "run.json":  # that an attempt began is noted there
                kept = (folder / name).read_bytes() if (folder / name).exists() else b""
                assert name == TRACE_FILE or kept == data
        nothing_half_made(folder, error)
        gone_on(folder, whole)
    else:
        raise AssertionError("the resume reaches the disk without end")


def test_a_resume_that_cannot_begin_leaves_every_file_as_it_was(
    tmp_path: Path, disk: Disk, whole: Path, half: Path
) -> None:
    data = (half / TRACE_FILE).read_bytes()
    (half / TRACE_FILE).write_bytes(data[: data.rindex(b"\n") + 1])  # without a torn line, which is cut off first
    before = content(half)
    disk.folder = str(half)
    number = 0
    for number in range(1, CALLS_MAX):
        with disk.failing(number, errno.ENOSPC):
            ended = speclrm_here("resume", half, "--display", "none")
        if content(half) != before:
            break
        assert ended.code == 2
        assert "No space left on device" in one_paragraph(ended)
    assert number > 5
    assert b"run_resumed" in (half / TRACE_FILE).read_bytes() or json.loads((half / "run.json").read_text())["resumed"]
    gone_on(half, whole)


def test_a_resume_whose_trace_cannot_be_opened_notes_no_attempt(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(half)

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as now:
        now.setattr(trace_file, "open_raw", refuse)
        ended = speclrm_here("resume", half, "--display", "none")
    assert ended.code == 2
    assert "trace.jsonl cannot be written: Permission denied" in one_paragraph(ended)
    assert content(half) == before


def test_a_run_whose_trace_took_nothing_has_no_reports_either_and_is_begun_anew(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(FileIO):
        def write(self, data: Any) -> int:  # type: ignore[override]
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as now:
        now.setattr(trace_file, "open_raw", Refusing)
        ended = speclrm_here(*RUN, "--output-dir", tmp_path / "run")
    assert ended.code == 1
    assert one_paragraph(ended).endswith("Free some space there, then run the command again.")
    assert set(content(tmp_path / "run")) == {"run.json", TRACE_FILE}
    assert speclrm_here(*RUN, "--output-dir", tmp_path / "run").code == 0
    assert results(tmp_path / "run") == results(whole)


def test_reports_are_whole_or_as_they_were_whatever_call_fails(tmp_path: Path, disk: Disk, whole: Path) -> None:
    right = content(whole)
    for number in range(1, CALLS_MAX):
        folder = tmp_path / "disk" / str(number)
        shutil.copytree(whole, folder)
        stale = dict.fromkeys(("results.jsonl", "summary.json"), b"stale\n")
        for name, data in stale.items():
            (folder / name).write_bytes(data)
        with disk.failing(number, errno.ENOSPC):
            ended = speclrm_here("eval", "--rebuild", folder)
        assert ended.code == 0, ended  # the runs can be evaluated all the same
        assert all(content(folder)[name] in (right[name], old) for name, old in stale.items())
        assert not any(is_part(path.name) for path in folder.iterdir())
        if disk.calls < number:
            break
        assert "cannot be written: No space left on device" in ended.err
        assert speclrm_here("resume", folder, "--display", "none").code == 0  # it has ended, and lacks its reports
        assert content(folder) == right
    else:
        raise AssertionError("the reports reach the disk without end")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["run", "resume"])
def test_a_folder_that_is_removed_at_any_call_ends_the_command_with_one_paragraph(
    tmp_path: Path, disk: Disk, half: Path, what: str
) -> None:
    commands: dict[str, Callable[[Path], Ended]] = {
        "run": lambda folder: speclrm_here(*RUN, "--output-dir", folder),
        "resume": lambda folder: speclrm_here("resume", folder, "--display", "none"),
    }
    last = 0
    for number in range(1, CALLS_MAX):
        folder = tmp_path / "disk" / str(number)
        if what == "resume":
            shutil.copytree(half, folder)
        with disk.losing(number, folder):
            ended = commands[what](folder)
        if disk.calls < number:
            break
        if ended.code:
            assert "run.lock" not in one_paragraph(ended)  # that it cannot be given back is no news
            assert not segments(folder / TRACE_FILE)  # nobody makes half a folder anew
            assert speclrm_here(*RUN, "--output-dir", folder).code == 0
        elif folder.exists():
            assert speclrm_here("trace", "check", folder).code == 0  # it was there before it was first written to
        else:
            last = number  # all was done
    else:
        raise AssertionError("the command reaches the disk without end")
    assert last in (0, number - 1)


# ------------------------------------------------------------------------------------------------------- what is found


def spoiled(folder: Path, files: dict[str, str]) -> dict[str, bytes]:
    """Puts the files, made from those of a whole run, into the folder; returns all that is in it then.

    A value: ``whole``, ``torn``, ``empty``, ``zeros``, ``gone``, or the content itself.
    """
    for name, what in files.items():
        path = folder / name
        before = path.read_bytes() if path.exists() else b""
        after = {"whole": before, "torn": before[: len(before) // 2], "empty": b"", "zeros": bytes(len(before))}
        path.write_bytes(after.get(what, what.encode()))
        if what == "gone":
            path.unlink()
    return content(folder)


NOTHING = {"results.jsonl": "gone", "summary.json": "gone"}


@pytest.mark.parametrize(
    "files",
    [
        {"run.json": "empty", TRACE_FILE: "gone"},
        {"run.json": "torn", TRACE_FILE: "gone"},
        {"run.json": "zeros", TRACE_FILE: "gone"},
        {"run.json": "whole", TRACE_FILE: "gone"},
        {"run.json": "whole", TRACE_FILE: "empty"},
        {"run.json": "whole", TRACE_FILE: '{"seq":0,"t":0.0,"kind":"run_sta'},
        {"run.json": "gone", TRACE_FILE: "gone", ".run.json.12345.part": "{"},
        {"run.json": "empty", TRACE_FILE: "gone", ".run.json.12345.part": "{"},
    ],
    ids=str,
)
def test_what_a_start_left_that_died_is_told_by_resume_and_begun_anew_by_run(
    plain: Path, files: dict[str, str]
) -> None:
    before = spoiled(plain, {**NOTHING, **files})
    for command in (("resume", plain), (*RUN, "--output-dir", plain, "--resume"), ("replay", plain)):
        refused = speclrm_here(*command)
        assert refused.code == 2
        assert "takes this folder again" in one_paragraph(refused) or "holds no run" in one_paragraph(refused)
        assert content(plain) == before
    assert speclrm_here(*RUN, "--output-dir", plain).code == 0
    assert sorted(path.name for path in plain.iterdir()) == sorted(
        ["results.jsonl", "run.json", "run.lock", "summary.json", TRACE_FILE]
    )


@pytest.mark.parametrize(
    "files",
    [
        {"run.json": "{}", TRACE_FILE: "gone"},
        {"run.json": "a note of somebody's", TRACE_FILE: "gone"},
        {"run.json": "gone", TRACE_FILE: "a line without an end"},
        {"run.json": "empty", TRACE_FILE: "gone", "notes.txt": "precious"},
        {"run.json": "empty", TRACE_FILE: "whole"},
        {"run.json": "gone", TRACE_FILE: "whole"},
    ],
    ids=str,
)
def test_a_folder_that_holds_anything_else_is_not_taken(plain: Path, files: dict[str, str]) -> None:
    before = spoiled(plain, {**NOTHING, **files})
    refused = speclrm_here(*RUN, "--output-dir", plain)
    assert refused.code == 2
    assert "never written over" in one_paragraph(refused)
    assert content(plain) == before


@pytest.mark.parametrize("what", ["gone", "empty", "torn", "zeros", "{}", "null"])
def test_a_lost_or_spoiled_record_beside_a_trace_is_told_with_what_can_be_done(plain: Path, what: str) -> None:
    before = spoiled(plain, {"run.json": what})
    for command in (("resume", plain), (*RUN, "--output-dir", plain, "--resume"), ("replay", plain)):
        refused = speclrm_here(*command)
        assert refused.code == 2
        said = one_paragraph(refused)
        assert "run.json is " in said
        assert f"`speclrm eval {plain}` and `speclrm trace check {plain}` read it as it is" in said
        assert content(plain) == before
    assert speclrm_here("eval", plain).code == 0
    assert speclrm_here("trace", "check", plain).code == 0


@pytest.mark.parametrize("name", ["v1-simulated.jsonl", "v1-scripted.jsonl"])
def test_a_trace_of_a_form_that_says_too_little_is_told_and_left_as_it_is(plain: Path, name: str) -> None:
    shutil.copy(Path(__file__).parent / "traces" / name, plain / TRACE_FILE)
    before = content(plain)
    for command in ("resume", "replay"):
        refused = speclrm_here(command, plain)
        assert refused.code == 2
        assert "written by an older SpecLRM" in one_paragraph(refused)
        assert content(plain) == before


# ---------------------------------------------------------------------------------------------- what was changed since


def refused_for(folder: Path, what: str, *command: object) -> str:
    """A resume is refused for this and changes nothing."""
    before = content(folder)
    refused = speclrm_here(*(command or ("resume", folder, "--display", "none")))
    assert refused.error is None
    assert refused.code == 2, refused
    assert what in refused.err
    assert len(refused.paragraphs) == 1
    assert content(folder) == before
    return refused.err


@pytest.mark.usefixtures("one_segment")
def test_a_run_does_not_go_on_with_other_rows_or_another_seed(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"id": f"r{number}", "problem": f"{number} + 1?", "answer": str(number + 1)} for number in range(3)]

    def put(text: str) -> None:
        data.write_text("".join(json.dumps({**row, "problem": row["problem"] + text}) + "\n" for row in rows))

    put("")
    command = ("run", "baseline", "--target", "sim/qwq-32b", "--dataset", data, "--token-budget", "200")
    command = (*command, "--display", "none", "--output-dir", tmp_path / "run")
    assert speclrm_here(*command).code == 0
    cut(tmp_path / "run")
    assert "seed" in refused_for(tmp_path / "run", "started otherwise", *command, "--resume", "--seed", "5")
    put(" Think.")
    assert "Put back what was there then" in refused_for(tmp_path / "run", "problems")
    put("")
    assert speclrm_here("resume", tmp_path / "run", "--display", "none").code == 0


def cut(folder: Path) -> None:
    """The run was killed somewhere in its second half."""
    trace = folder / TRACE_FILE
    trace.write_bytes(trace.read_bytes()[:-1000])
    for name in ("results.jsonl", "summary.json"):
        (folder / name).unlink()


def make_model(folder: Path, weights: bytes) -> None:
    """A folder that looks like a model: a tensor of bytes."""
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)


@pytest.fixture
def scripted() -> Generator[None]:
    """Scripted engines under whatever name."""
    with providing(cli_runner.scripted(token_s=0.0001)):
        yield


@pytest.mark.usefixtures("scripted", "one_segment")
def test_a_run_does_not_go_on_with_other_weights_of_the_same_name(tmp_path: Path) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    make_model(model, bytes(20_000))
    (tmp_path / "data.jsonl").write_text('{"id": "one", "problem": "1 + 1?", "answer": "2"}\n')
    command = ("run", "baseline", "--target", model, "--dataset", tmp_path / "data.jsonl", "--display", "none")
    command = (*command, "--output-dir", run)
    assert speclrm_here(*command).code == 0
    cut(run)
    make_model(model, bytes(10_000) + b"\1" + bytes(9_999))  # trained on: the same names, shapes and sizes
    refused_for(run, "target's weights")
    refused_for(run, "target's weights", *command, "--resume")
    make_model(model, bytes(20_000))
    shutil.copytree(run, tmp_path / "same")
    assert speclrm_here("resume", tmp_path / "same", "--display", "none").code == 0
    make_model(model, bytes(10_000) + b"\1" + bytes(9_999))
    assert speclrm_here(*command, "--resume", "--override").code == 0
    resumed = next(event for event in read_trace(run) if isinstance(event, RunResumed))
    assert list(resumed.overrides) == ["target's weights"]


@pytest.mark.usefixtures("scripted", "one_segment")
def test_a_run_that_recorded_no_weights_goes_on_with_those_that_are_there(tmp_path: Path) -> None:
    make_model(tmp_path / "model", b"some")
    (tmp_path / "data.jsonl").write_text('{"id": "one", "problem": "1 + 1?", "answer": "2"}\n')
    command = ("run", "baseline", "--target", tmp_path / "model", "--dataset", tmp_path / "data.jsonl")
    assert speclrm_here(*command, "--display", "none", "--output-dir", tmp_path / "run").code == 0
    cut(tmp_path / "run")
    first = tmp_path / "run" / TRACE_FILE
    text = first.read_text()
    recorded = json.loads(text.splitlines()[0])["config"]["weights"]
    assert recorded["target"] in text
    first.write_text(text.replace(f',"weights":{json.dumps(recorded, separators=(",", ":"))}', "", 1))
    assert '"weights"' not in first.read_text()
    assert speclrm_here("resume", tmp_path / "run", "--display", "none").code == 0


@pytest.mark.usefixtures("one_segment")
def test_a_run_does_not_go_on_with_another_preset_of_the_same_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    cost = PRESETS["qwq-32b"]
    write_preset(Preset(engines={"target": EngineFit(cost=cost)}), file)
    command = ("run", "baseline", "--target", f"sim/{file}", "--dataset", "sim:a70?size=1", "--token-budget", "200")
    assert speclrm_here(*command, "--display", "none", "--output-dir", tmp_path / "run").code == 0
    cut(tmp_path / "run")
    write_preset(Preset(engines={"target": EngineFit(cost=cost, share=0.5)}), file)
    refused_for(tmp_path / "run", "target's weights")


# ----------------------------------------------------------------------------------------------------- other commands


def test_what_other_commands_keep_is_kept_whole_or_told_in_one_paragraph(
    tmp_path: Path, disk: Disk, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "disk"
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(place / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": "one", "problem": "1 + 1?", "answer": "2"}\n')
    simulated = ("sim/qwq-32b", "--draft", "sim/r1-1.5b", "--dataset", data, "--quick", "--display", "none")
    commands = {
        "trace export": lambda: speclrm_here("trace", "export", plain, place / "steps.csv"),
        "calibrate": lambda: speclrm_here("calibrate", *simulated, "--preset-file", place / "mine.json"),
    }
    for name, command in commands.items():
        for number in range(1, CALLS_MAX):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            with disk.failing(number, errno.ENOSPC):
                ended = command()
            if not each_call(disk, number, ended, 1):
                break
            assert ended.code == 2, (name, ended)
            assert "No space left on device" in one_paragraph(ended)
            assert [path for path in place.rglob("*") if path.is_file() and not path.stat().st_size] == []
            nothing_half_made(place)


class Full:
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_its_disk_does_not_take_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    logs.configure("warning")
    try:
        structlog.get_logger("test").warning("trace_paused", error="No space left on device")
    finally:
        structlog.reset_defaults()


def test_a_log_that_cannot_be_opened_is_told_in_one_paragraph(tmp_path: Path) -> None:
    ended = speclrm_here(*RUN, "--output-dir", tmp_path / "run", "--log-file", tmp_path / "none" / "log")
    assert ended.code == 2
    assert f"{tmp_path / 'none' / 'log'} cannot be read or written: No such file or directory" in one_paragraph(ended)
    assert not (tmp_path / "run").exists()


def test_a_benchmark_shows_what_it_found_before_a_disk_can_refuse_it(tmp_path: Path, disk: Disk) -> None:
    found = report(
        *("speed", "How fast"),
        rows=[{"n": 1, "s": 2.0}],
        figures=[],
        models={},
        seeds=[0],
        runs=1,
        quick=True,
        simulated=True,
    )
    for number in range(1, CALLS_MAX):
        folder = tmp_path / "disk" / str(number)
        out = io.StringIO()
        with disk.failing(number, errno.ENOSPC), redirect_stdout(out), suppress(typer.Exit):
            bench("speed", lambda: found, json=False, output_dir=folder)
        assert "How fast" in out.getvalue()
        if disk.calls < number:
            break
        nothing_half_made(tmp_path / "disk")
        assert not (folder / "report.json").exists() or read_report(folder / "report.json")
    else:
        raise AssertionError("the report reaches the disk without end")
