"""Starts, finds, watches and ends the processes of vLLM engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.spawn
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import psutil

from speclrm.runtime.engines import reaper, vllm_plugin
from speclrm.runtime.engines.vllm_failure import says_out_of_memory
from speclrm.runtime.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Mapping

    from speclrm.runtime.settings import EngineSettings


GONE_LIMIT_S = 3.0
"""Seconds that the kernel may take to end a killed process: it has gigabytes to free."""


CHILD_POLL_S = 0.05


_ERROR_LINE = re.compile(r"(\w+\.)*\w*(Error|Exception): \S")
"""The last line of a traceback."""
_UNGUARDED = "before the current process has finished its bootstrapping phase"
"""What Python says in a process that imports a program, where that starts processes by itself."""


def engine_cores() -> set[psutil.Process]:
    """Returns the engine processes of this program. Other processes that were started meanwhile are none of ours."""
    found: set[psutil.Process] = set()
    for child in multiprocessing.active_children():
        if child.name.startswith("EngineCore") and child.pid is not None:
            with contextlib.suppress(psutil.Error):
                found.add(psutil.Process(child.pid))
    return found


def with_children(cores: set[psutil.Process]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for core in cores:
        with contextlib.suppress(psutil.Error):
            found += [core, *core.children(recursive=True)]
    return found


def kill(cores: set[psutil.Process]) -> list[psutil.Process]:
    """Kills engines with what they started; the workers of a killed core would go on loading otherwise."""
    for core in cores:
        with contextlib.suppress(psutil.Error):
            core.suspend()  # or it would start another worker before the kill
    processes = with_children(cores)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return processes


async def see_off(processes: Collection[psutil.Process]) -> set[int]:
    """Waits until killed processes are gone, for ``GONE_LIMIT_S`` at most, and removes what they leave. Returns those that are
    there all the same.
    """
    deadline = asyncio.get_running_loop().time() + GONE_LIMIT_S
    while any(map(_runs, processes)) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(CHILD_POLL_S)
    reaper.sweep({process.pid for process in processes})
    return {process.pid for process in processes if _runs(process)}


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def start_error(error: Exception, log_path: Path, offset: int) -> EngineError:
    """Returns one paragraph about what the engines logged since ``offset`` (bytes): a log may have earlier starts.

    The first error there says more than the last exception here.
    """
    lines = log_path.read_bytes()[offset:].decode(errors="replace").splitlines()
    if _UNGUARDED in " ".join(f"{error} {' '.join(lines)}".split()):
        return EngineError(
            "An engine did not start: its process imports the program that started it, which then starts engines again. Put what "
            'the program does under `if __name__ == "__main__":`.'
        )
    causes = [line.strip() for line in lines if _ERROR_LINE.match(line.strip())]
    cause = causes[0] if causes else f"{type(error).__name__}: {error}".splitlines()[0]
    found = EngineError(
        f"An engine did not start: {cause[:400]}. `speclrm doctor` says what this machine can run; the engines' own log "
        f"is {log_path}."
    )
    if says_out_of_memory("\n".join([*lines, str(error)])):
        found.reason = "out_of_memory"
    return found


class Watchdog:
    """The reaper process, shared by the engines of one start; it ends with the last of them. ``then``: is called at its end."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self._popen = reaper.start(os.getpid())
        self._users = 0
        self._then = then

    def name(self, processes: Iterable[psutil.Process]) -> None:
        reaper.name(self._popen, {process.pid for process in processes})

    def leave(self, folder: str) -> None:
        """Tells the reaper a folder to remove if this program is killed."""
        reaper.leave(self._popen, folder)

    def hold(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if self._users <= 0:
            self.end()

    def end(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        if self._then is not None:
            self._then()


def common_values(folder: Path, log_path: Path) -> dict[str, str | None]:
    """Returns environment variables for the processes of all engines; None removes one.

    vLLM spawns its processes (it does so on CPU anyway, and on CUDA a fork would inherit pipes and threads), so they
    see only the environment of that moment.
    """
    logging_config = folder / "logging.json"
    logging_config.write_text(
        json.dumps(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {"plain": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"}},
                "handlers": {"file": {"class": "logging.FileHandler", "filename": str(log_path), "formatter": "plain"}},
                "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
            }
        )
    )
    return {
        reaper.MARK: reaper.mark(os.getpid()),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_CONFIG_PATH": str(logging_config),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",  # the models are folders already
        "TOKENIZERS_PARALLELISM": "false",
        # It would be read at configuration time and override the bytes of both engines (platforms/cpu.py).
        "VLLM_CPU_KVCACHE_SPACE": None,
        "KMP_BLOCKTIME": None,  # 1 was measured to cost 40 % system time
    }


def own_values(settings: EngineSettings, ids: int, pace: Path | None = None) -> dict[str, str | None]:
    """Returns environment variables for the processes of this engine alone. vLLM reads the cores in the process that it
    spawns. ``ids``: how many its tokenizer has. ``pace``: the file with the seconds between its iterations.
    """
    values: dict[str, str | None] = {vllm_plugin.IDS: str(ids), vllm_plugin.PACE: None if pace is None else str(pace)}
    values[vllm_plugin.ASKED] = os.environ.get(vllm_plugin.ASKED, "1") if settings.device == "cpu" else None
    if settings.device == "cpu" and settings.cores:
        shares = (
            settings.cores[rank :: settings.tensor_parallel_size] for rank in range(settings.tensor_parallel_size)
        )
        values["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, cores)) for cores in shares)
    if settings.devices:
        values["CUDA_VISIBLE_DEVICES"] = ",".join(settings.devices)
        values["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # in which the devices were numbered
    if settings.preload:
        values["LD_PRELOAD"] = ":".join(settings.preload)
    return values


def computes_in_core(settings: EngineSettings) -> bool:
    """Whether the model runs in EngineCore itself, as it does on a GPU, and not in a Worker process of its own.

    On a CPU vLLM starts a Worker because EngineCore's OpenMP is set by the environment (platforms/cpu.py). We know the cores
    before EngineCore is there, so it is spared: a third of a start, 440 MiB, and a message there and back an iteration.
    """
    return (
        settings.device == "cpu"
        and bool(settings.cores)
        and settings.tensor_parallel_size == 1
        and os.environ.get(vllm_plugin.ASKED, "1") == "1"
        and "distributed_executor_backend" not in settings.extra
        and all(map(_vllm_has, ("utils/ompmultiprocessing.py", "v1/executor/uniproc_executor.py")))
    )


def _vllm_has(file: str) -> bool:
    """Returns whether vLLM has a file. To ask for a module below it would load it, which takes 10 s."""
    spec = find_spec("vllm")
    folders = spec.submodule_search_locations if spec is not None else None
    return any(Path(folder, file).is_file() for folder in folders or ())


def openmp_values(settings: EngineSettings) -> dict[str, str]:
    """Returns the variables of OpenMP that vLLM is going to set for such an engine (utils/ompmultiprocessing.py, 0.32)."""
    preloaded = " ".join([*settings.preload, os.environ.get("LD_PRELOAD", "")])
    cores = ",".join(map(str, settings.cores))
    values = {"OMP_NUM_THREADS": str(len(settings.cores))}
    if "libiomp" in preloaded or "libomp" in preloaded:
        affinity = f"granularity=fine,explicit,proclist=[{cores}]"
        return values | {"KMP_AFFINITY": affinity, "KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0"}
    if "libgomp" in preloaded:
        return values | {"GOMP_CPU_AFFINITY": cores.replace(",", " ")}
    return values | {"OMP_PLACES": f"{{{cores}}}", "OMP_PROC_BIND": "true"}


IN_CORE = {"distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor"}
"""What vLLM is told for it. By its short name (``uni``) a CPU engine gets a Worker all the same."""


@contextlib.contextmanager
def environment(values: Mapping[str, str | None]) -> Generator[None, None, None]:
    """Sets variables, None removes one; all of them are restored afterwards, vLLM's own changes too."""
    saved = dict(os.environ)
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    try:
        yield
    finally:
        for name in os.environ.keys() - saved.keys():
            del os.environ[name]
        os.environ.update(saved)


def shell_script(folder: Path, log_path: Path) -> Path:
    """Returns the script that the processes run under: it gives them a session of their own, so that Ctrl-C reaches
    only us and we end them, and sends what they print to the log.
    """
    shell = folder / "engine.sh"
    setsid = "setsid " if shutil.which("setsid") else ""
    shell.write_text(f'#!/bin/sh\nexec {setsid}{quote(sys.executable)} "$@" 2>>{quote(str(log_path))} >&2\n')
    shell.chmod(0o700)
    return shell


@contextlib.contextmanager
def executable(path: Path) -> Generator[None, None, None]:
    saved = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(str(path))
    try:
        yield
    finally:
        multiprocessing.set_executable(os.fsdecode(saved))
