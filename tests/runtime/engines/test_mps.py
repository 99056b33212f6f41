"""MPS with a program that answers as NVIDIA's control program is documented to: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from speclrm.api import EngineOptions
from speclrm.app.engines import RealEngines
from speclrm.app.provenance import engine_facts
from speclrm.runtime.engines import mps, vllm_start
from speclrm.runtime.engines.scripted import ByteTokenizer
from speclrm.runtime.errors import EngineError, SettingsError
from speclrm.runtime.machine.placement import by_slices
from speclrm.runtime.protocols import Role
from speclrm.runtime.settings import EngineSettings

CONTROL = f"""#!{sys.executable}
import os, signal, socket, subprocess, sys
from pathlib import Path
pipes = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
address = str(pipes / "control")
if "-f" not in sys.argv:  # the control program, which sends what it reads to the daemon
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(address)
        except OSError:
            sys.exit("Cannot find MPS control daemon process")
        line.sendall(sys.stdin.readline().encode())
        while piece := line.recv(4096):
            sys.stdout.write(piece.decode())
    sys.exit()
if os.environ.get("FAKE_MPS") == "broken":
    print("Failed to initialize CUDA context", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(pipes / "nvidia-cuda-mps-control.pid").write_text(str(os.getpid()))
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
server = subprocess.Popen([sys.executable, "-c", stubborn])
with socket.socket(socket.AF_UNIX) as door:
    door.bind(address)
    door.listen()
    while True:
        line, _ = door.accept()
        with line:
            words = line.recv(4096).decode().split()
            if words == ["get_server_list"]:
                line.sendall(f"{{server.pid}}\\n".encode())
            elif words == ["get_client_list", str(server.pid)]:
                clients = pipes / "clients"
                line.sendall(clients.read_bytes() if clients.exists() else b"")
            elif words[:1] == ["quit"]:
                break
server.kill()
server.wait()
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the control program; another daemon is nowhere."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, mps.CONTROL, CONTROL)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr(mps, "DEFAULT_PIPES", tmp_path / "nobody")
    monkeypatch.setattr(mps.tempfile, "tempdir", str(tmp_path))
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def gone(pids: set[int], limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.1)
    return False


def left(folder: Path) -> list[Path]:
    return list(folder.glob("speclrm-mps-*"))


def test_a_daemon_of_our_own_has_folders_of_its_own_and_leaves_nothing(control: Path, tmp_path: Path) -> None:
    daemon = mps.start()
    family = daemon.processes
    assert len(family) == 2
    assert daemon.environment == {mps.PIPES: str(daemon.folder / "pipe"), mps.LOGS: str(daemon.folder / "log")}
    assert left(tmp_path) == [daemon.folder]
    assert daemon.folder.stat().st_mode & 0o077 == 0
    assert mps.PIPES not in os.environ  # nobody else is sent to it
    daemon.end()
    daemon.end()
    assert gone(family | {daemon.watcher.pid})
    assert not left(tmp_path)


def test_engines_are_asked_for_by_their_processes_and_those_below_them(control: Path) -> None:
    daemon = mps.start()
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"],
        stdin=subprocess.PIPE,
    )
    try:
        while not (children := psutil.Process(parent.pid).children()):
            time.sleep(0.05)
        with pytest.raises(EngineError, match=r"1 of 1 engines work without it \(clients: none\)"):
            daemon.check({parent.pid})
        (daemon.folder / "pipe" / "clients").write_text(f"{children[0].pid}\n{os.getpid()}\n")
        assert daemon.clients == {children[0].pid, os.getpid()}
        daemon.check({parent.pid, os.getpid()})
        with pytest.raises(EngineError, match="1 of 2 engines work without it"):
            daemon.check({parent.pid, daemon.pid})
    finally:
        parent.communicate(b"\n")
        daemon.end()
    with pytest.raises(EngineError, match="does not answer"):
        daemon.check({os.getpid()})


OWNER = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from speclrm.runtime.engines import mps
daemon = mps.start()
print(*daemon.processes, flush=True)
time.sleep(100)
"""


def test_it_is_gone_with_a_program_that_is_killed_and_so_is_its_folder(control: Path, tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    family = {int(word) for word in owner.stdout.readline().split()}
    assert len(family) == 2
    assert len(left(tmp_path)) == 1
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert gone(family)
    deadline = time.monotonic() + 5
    while left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left(tmp_path)


def test_a_daemon_that_does_not_start_says_why_and_leaves_nothing(
    control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MPS", "broken")
    with pytest.raises(EngineError, match="did not start: Failed to initialize CUDA context"):
        mps.start()
    assert not left(tmp_path)


@pytest.mark.parametrize("case", ["program", "part", "mode", "ours", "theirs"])
def test_what_stands_in_the_way_is_refused_if_asked_for_and_told_in_one_line_otherwise(
    case: str, control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus, daemon = ["0"], None
    assert mps.choose("auto", gpus) == (True, "")
    match case:
        case "program":
            (control / mps.CONTROL).unlink()
            why = "its control program, nvidia-cuda-mps-control, is not installed"
        case "part":
            gpus, why = ["MIG-1234"], "divided into parts"
        case "mode":
            program(control, "nvidia-smi", "#!/bin/sh\necho Enabled\n")
            why = "divided into parts"
        case "ours":
            daemon = mps.start()
            monkeypatch.setenv(mps.PIPES, daemon.environment[mps.PIPES])
            why = "another daemon serves this program already"
        case _:
            (tmp_path / "nobody").mkdir()
            (tmp_path / "nobody" / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
            why = "another daemon runs here"
    try:
        chosen, told = mps.choose("auto", gpus)
        assert not chosen
        assert told.startswith("the engines share a GPU by time slices: no MPS, since ")
        assert why in told
        with pytest.raises(SettingsError, match=f"--share-gpu mps: .*{why}.*Use --share-gpu slices"):
            mps.choose("mps", gpus)
        assert mps.choose("slices", gpus) == (False, "")
    finally:
        if daemon is not None:
            daemon.end()


def test_a_daemon_that_died_and_engines_that_share_nothing(control: Path, tmp_path: Path) -> None:
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "nvidia-cuda-mps-control.pid").write_text("999999999")
    assert mps.choose("auto", ["0"]) == (True, "")
    assert mps.choose("auto", []) == (False, "")
    with pytest.raises(SettingsError, match="no GPU is shared by two engines"):
        mps.choose("mps", [])


def settings() -> dict[Role, EngineSettings]:
    one = EngineSettings(
        name="m", path=Path("/m"), device="cuda", dtype="bfloat16", max_model_len=512, max_num_seqs=4,
        max_num_batched_tokens=512, block_size=16,
    )  # fmt: skip
    return dict.fromkeys(Role, one)


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("sharing", ["auto", "mps"])
async def test_engines_are_loaded_under_mps_and_the_record_says_whether_it_served_them(
    sharing: Any, attached: bool, control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    seen: dict[str, str] = {}

    def tell(stage: str, done: float | None, total: float | None) -> None:
        told.append(stage)

    class Engine:
        processes = {os.getpid()}  # noqa: RUF012
        known_costs = None

        async def aclose(self) -> None:
            assert psutil.pid_exists(int(Path(seen[mps.PIPES], "nvidia-cuda-mps-control.pid").read_text()))

    async def start_engines(settings: Any, tokenizers: Any, **given: Any) -> dict[Role, Engine]:
        seen.update(given["variables"])
        if attached:
            Path(seen[mps.PIPES], "clients").write_text(f"{os.getpid()}\n")
        return {role: Engine() for role in settings}

    monkeypatch.setattr(vllm_start, "start_engines", start_engines)
    engines: Any = RealEngines(EngineOptions(target="t", draft="d", share_gpu=sharing, engine_log=tmp_path / "log"))
    engines._settings, engines._mps = settings(), True
    engines._tokenizers = dict.fromkeys(Role, ByteTokenizer())
    fails = sharing == "mps" and not attached
    async with AsyncExitStack() as stack:
        with pytest.raises(EngineError, match="work without it") if fails else nullcontext():
            parts = await engines.open(stack, tell)
            assert parts.slices is not attached
    assert not left(tmp_path)
    assert any("by time slices" in line for line in told) is (not attached and not fails)
    if not fails:
        facts: Any = engine_facts(engines, 0)
        assert json.loads(json.dumps(facts["engines"]["draft"]["mps"])) is attached


def test_engines_share_by_slices_unless_they_have_their_own_or_mps() -> None:
    one = settings()[Role.TARGET]

    def pair(**draft: Any) -> dict[Role, EngineSettings]:
        return {Role.TARGET: one, Role.DRAFT: one.model_copy(update=draft)}

    assert by_slices(pair())
    assert not by_slices({Role.TARGET: one})
    assert not by_slices(pair(devices=("1",)))
    assert by_slices(pair(devices=("0",)))
    served = SimpleNamespace(mps=True)
    assert not by_slices({role: one.model_copy(update={"mps": served.mps}) for role in Role})
    assert by_slices({role: one.model_copy(update={"device": "cpu", "cores": (0, 1)}) for role in Role})
    assert not by_slices(
        {role: one.model_copy(update={"device": "cpu", "cores": (number,)}) for number, role in enumerate(Role)}
    )
