"""Forks engines from a process that has loaded vLLM once.

Loading vLLM takes 8 to 15 s of a core, and each spawned engine does it anew. The nursery does it once, while this program loads
vLLM for itself. An engine is then a copy of it, there in milliseconds, also one that is started in place of one that failed; what
all have loaded is in memory once. The nursery has one thread and computes nothing, so that a copy is whole.

OpenMP reads its variables when it is loaded, so only engines with the nursery's own are forked. All others are spawned, as vLLM
does it: those of GPUs too, which load for much longer than that.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging.config
import multiprocessing.process
import os
import signal
from multiprocessing import forkserver, popen_forkserver, reduction, spawn, util
from multiprocessing.context import set_spawning_popen
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from speclrm.runtime.engines import reaper
from speclrm.runtime.engines.vllm_processes import GONE_LIMIT_S, environment

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

_StandardPopen: Any = popen_forkserver.Popen  # of these the types say little
_util: Any = util
PRELOAD = "speclrm.runtime.engines.vllm_preload"
SIGNAL_AT_PARENTS_DEATH = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class Nursery:
    """The process that engines are forked from. It ends with ``end``, and with this program; its engines end with it."""

    def __init__(self) -> None:
        self._server: Any = None  # the standard library's class, of which much is private
        self._openmp: Mapping[str, str | None] = {}

    @property
    def process(self) -> psutil.Process | None:
        """The process, if it was begun and has not ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._server is not None and self._server._forkserver_pid is not None:
                return psutil.Process(self._server._forkserver_pid)
        return None

    def begin(self, openmp: Mapping[str, str | None]) -> bool:
        """Starts the process with the present environment and these variables of OpenMP, unless it runs. Returns whether it did.

        It loads by itself; who forks from it before that waits.
        """
        if self._server is None:
            self._openmp = dict(openmp)
            self._server = _Server()
            self._server.set_forkserver_preload([PRELOAD])
        before = self._server._forkserver_pid
        with environment(self._openmp):
            self._server.begin()
        if before == self._server._forkserver_pid:
            return False
        if before is not None:  # it was killed
            reaper.sweep({before})
        return True

    def end(self) -> None:
        """Ends the process and all its engines. If it has any, this blocks until they are gone, ``GONE_LIMIT_S`` at most."""
        server, self._server = self._server, None
        if server is None or (pid := server._forkserver_pid) is None:
            return
        engines: list[psutil.Process] = []
        with contextlib.suppress(ChildProcessError, psutil.NoSuchProcess):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):  # else it has ended, and its number may be another's
                engines = psutil.Process(pid).children()
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            server._stop()
        for engine in engines:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.kill()
        psutil.wait_procs(engines, timeout=GONE_LIMIT_S)
        reaper.sweep({pid, *(engine.pid for engine in engines)})

    @contextlib.contextmanager
    def forks(self, log_path: Path) -> Generator[None, None, None]:
        """Lets vLLM fork the engines that it starts in this block, if the variables of OpenMP are the nursery's."""
        if self._server is None or any(os.environ.get(name) != value for name, value in self._openmp.items()):
            yield
            return
        from vllm.v1.engine import utils

        module: Any = utils
        spawns, context = module.get_mp_context, _Context(self._server, log_path)
        module.get_mp_context = lambda: context
        try:
            yield
        finally:
            module.get_mp_context = spawns


class _Server(forkserver.ForkServer):
    """As the standard library's, but not started anew by a thread that still wants an engine when the start was given up."""

    def begin(self) -> None:
        super().ensure_running()

    def ensure_running(self) -> None:
        pass


class _Context:
    """What vLLM uses in place of a context of ``multiprocessing``."""

    def __init__(self, server: Any, log_path: Path) -> None:
        self._server = server
        self._log_path = log_path

    def Process(self, *arguments: Any, **named: Any) -> EngineProcess:  # noqa: N802  # the name that all contexts have
        return EngineProcess(self._server, self._log_path, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing.get_context("spawn"), name)


class EngineProcess(multiprocessing.process.BaseProcess):
    """A copy of the nursery, with the environment that this program has when it starts, and the log of its engine."""

    _start_method = "forkserver"

    def __init__(self, server: Any, log_path: Path, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.server = server
        self._log_path = log_path
        self._nursery = 0
        self._environment: dict[str, str] = {}

    def start(self) -> None:
        self._nursery = self.server._forkserver_pid
        self._environment = dict(os.environ)
        super().start()

    @staticmethod
    def _Popen(process: EngineProcess) -> _Popen:  # noqa: N802  # the standard library's name
        return _Popen(process)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"server": None}

    def run(self) -> None:
        # How a copy ends is known by the nursery alone, so none outlives it.
        ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
        if os.getppid() != self._nursery:  # it was gone before we could ask
            os._exit(1)
        os.environ.clear()
        os.environ.update(self._environment)
        log = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        logging.config.dictConfig(json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text()))
        super().run()


class _Popen(_StandardPopen):
    """As the standard library's, with a server of our own, since the program may use the library's one for itself."""

    def __init__(self, process: EngineProcess) -> None:
        self._server = process.server
        _StandardPopen.__init__(self, process)

    def _launch(self, process: EngineProcess) -> None:
        data = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process.name), data)
            reduction.dump(process, data)
        finally:
            set_spawning_popen(None)
        self.sentinel, writer = self._server.connect_to_new_process(self._fds)
        held = os.dup(writer)  # by its end the engine knows of ours
        self.finalizer = _util.Finalize(self, _util.close_fds, (held, self.sentinel))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(data.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)
