"""Lets engines that share a GPU work side by side instead of by time slices: NVIDIA's Multi-Process Service (MPS).

A daemon of our own, with folders of its own for its pipes and logs, is started before the engines. Programs reach a daemon by
the folder of its pipes, so nobody else's work is touched, and no setting of the card is changed. The engines' processes find
it by their environment (docs.nvidia.com/deploy/mps, "Appendix: Tools and Interface Reference"). Without it they would work all
the same, by slices, and nothing would say so: so the daemon is asked which processes it serves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speclrm.runtime.engines import reaper
from speclrm.runtime.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Any

    from speclrm.runtime.settings import Sharing

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
DEFAULT_PIPES = Path("/tmp/nvidia-mps")  # noqa: S108  # where every daemon and program looks that is told nothing else
START_LIMIT_S = 10.0
ASK_LIMIT_S = 5.0
END_LIMIT_S = 3.0
POLL_S = 0.05


def obstacle(gpus: Sequence[str]) -> str | None:
    """Returns why MPS cannot be had here, in one clause; None if nothing stands in the way.

    ``gpus``: those that are shared, as CUDA_VISIBLE_DEVICES names them.
    """
    if shutil.which(CONTROL) is None:
        return f"its control program, {CONTROL}, is not installed"
    if any(one.startswith("MIG-") for one in gpus) or _parted():
        return "the GPU is divided into parts (MIG), and a part is not shared by MPS"
    if (pipes := os.environ.get(PIPES)) and answers(Path(pipes)):
        return f"another daemon serves this program already ({PIPES}={pipes})"
    if _stranger(DEFAULT_PIPES):
        return f"another daemon runs here ({DEFAULT_PIPES}), and a GPU has one"
    return None


def _parted() -> bool:
    """Whether some GPU is in MIG mode."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    query = [command, "--query-gpu=mig.mode.current", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return "Enabled" in said


def _stranger(pipes: Path) -> bool:
    """Whether a daemon uses that folder: of this user, or of one whose folder we may not even read."""
    try:
        pid = int((pipes / f"{CONTROL}.pid").read_text().split("\0")[0])
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return Path(f"/proc/{pid}").exists()


def ask(pipes: Path, command: str) -> list[str]:
    """Sends one command to the daemon behind these pipes and returns the words of its answer. Raises EngineError."""
    program = shutil.which(CONTROL)
    try:
        done = subprocess.run(  # noqa: S603
            [program or CONTROL],
            input=command + "\n",
            env={**os.environ, PIPES: str(pipes)},
            capture_output=True,
            text=True,
            timeout=ASK_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"The MPS daemon does not answer to {command.split()[0]!r}: {error}") from error
    return done.stdout.split()


def answers(pipes: Path) -> bool:
    try:
        ask(pipes, "get_server_list")
    except EngineError:
        return False
    return True


def _numbers(words: Sequence[str]) -> set[int]:
    return {int(word) for word in words if word.isdigit()}


@dataclass(slots=True)
class Daemon:
    """A daemon of our own. ``folder``: holds its pipes and logs, and goes with it. ``control``: its process.

    ``watcher``: the reaper that ends it and removes its folder if this program cannot.
    """

    folder: Path
    control: subprocess.Popen[bytes]
    watcher: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.control.pid

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the processes that it is to serve."""
        return _folders(self.folder)

    @property
    def clients(self) -> set[int]:
        """The processes that it serves. Raises EngineError if it does not answer."""
        servers = _numbers(ask(self.folder / "pipe", "get_server_list"))
        return {
            client for server in servers for client in _numbers(ask(self.folder / "pipe", f"get_client_list {server}"))
        }

    def check(self, processes: Collection[int]) -> None:
        """Checks that every one of these is a client, or has one below it. Raises EngineError."""
        clients = self.clients
        lacking = [pid for pid in processes if not _family(pid) & clients]
        if lacking:
            raise EngineError(
                f"MPS runs, but {len(lacking)} of {len(processes)} engines work without it (clients: "
                f"{', '.join(map(str, sorted(clients))) or 'none'}). Use --share-gpu slices; its log is in {self.folder}."
            )

    @property
    def processes(self) -> set[int]:
        """The control process and the servers that it has started."""
        return _family(self.pid)

    def end(self) -> None:
        """Ends the daemon with its servers, and removes its folder. May be called again."""
        family = self.processes
        with contextlib.suppress(EngineError):
            ask(self.folder / "pipe", "quit -t 1")
        deadline = time.monotonic() + END_LIMIT_S
        while any(map(_alive, family)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for pid in filter(_alive, family):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _end(self.control)
        _end(self.watcher)
        shutil.rmtree(self.folder, ignore_errors=True)


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def start() -> Daemon:
    """Starts a daemon that ends with this program, however that ends. Raises EngineError.

    It stays in the foreground (-f), in a session of its own, so that Ctrl-C does not reach it. It sees all GPUs, in the order
    in which ours are numbered, so that numbers mean the same to it and to the engines.
    """
    folder = Path(tempfile.mkdtemp(prefix=reaper.MPS_FOLDER))
    hidden = ("CUDA_VISIBLE_DEVICES", "LD_PRELOAD")
    values = {name: value for name, value in os.environ.items() if name not in hidden} | _folders(folder)
    values |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", reaper.MARK: reaper.mark(os.getpid())}
    watcher = reaper.start(os.getpid())  # before the daemon: there is no moment in which nobody would end it
    reaper.leave(watcher, str(folder))
    control: subprocess.Popen[bytes] | None = None
    try:
        for name in ("pipe", "log"):
            (folder / name).mkdir(mode=0o700)
        with (folder / "log" / "start.log").open("wb") as log:
            control = subprocess.Popen(  # noqa: S603
                [shutil.which(CONTROL) or CONTROL, "-f"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=values,
            )
        reaper.name(watcher, {control.pid})
        deadline = time.monotonic() + START_LIMIT_S
        while not answers(folder / "pipe"):
            if control.poll() is not None or time.monotonic() > deadline:
                said = (folder / "log" / "start.log").read_text(errors="replace").split("\n")[0].strip()
                raise EngineError(f"The MPS daemon did not start{': ' + said[:200] if said else ''}.")
            time.sleep(POLL_S)
    except BaseException as error:
        for process in (control, watcher):
            if process is not None:
                _end(process)
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise EngineError(f"The MPS daemon did not start: {error}") from error
        raise
    return Daemon(folder, control, watcher)


def _folders(folder: Path) -> dict[str, str]:
    return {PIPES: str(folder / "pipe"), LOGS: str(folder / "log")}


def choose(sharing: Sharing, shared: Sequence[str]) -> tuple[bool, str]:
    """Returns whether engines on ``shared`` GPUs (none: each has its own, or there are none) use MPS, and why not, in words.

    Raises:
        SettingsError: MPS was asked for and cannot be.
    """
    if sharing == "slices":
        return False, ""
    why = obstacle(shared) if shared else "no GPU is shared by two engines"
    if sharing == "mps" and why is not None:
        raise SettingsError(
            f"--share-gpu mps: {why}. Use --share-gpu slices, or auto, which takes MPS where it can be had."
        )
    return why is None, f"the engines share a GPU by time slices: no MPS, since {why}" if why and shared else ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _family(pid: int) -> set[int]:
    """A process and all below it."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found |= _family(int(child))
    return found
