"""Starts vLLM's engines, draft and target together, or leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import multiprocessing.util
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from speclrm.runtime.cleanup import to_its_end
from speclrm.runtime.engines.vllm import VllmEngine
from speclrm.runtime.engines.vllm_arguments import arguments, check_arguments
from speclrm.runtime.engines.vllm_counters import VllmCounters, stat_logger
from speclrm.runtime.engines.vllm_nursery import Nursery
from speclrm.runtime.engines.vllm_plugin import open_pace
from speclrm.runtime.engines.vllm_processes import (
    CHILD_POLL_S,
    IN_CORE,
    Watchdog,
    common_values,
    computes_in_core,
    engine_cores,
    environment,
    executable,
    kill,
    openmp_values,
    own_values,
    see_off,
    shell_script,
    start_error,
    with_children,
)
from speclrm.runtime.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    import psutil

    from speclrm.runtime.engine import Request, Tokenizer
    from speclrm.runtime.settings import EngineSettings


GIVE_UP_LIMIT_S = 30.0
"""Seconds that an abandoned start may take to end: mostly the import of vLLM, which nothing can stop."""


K = TypeVar("K", bound=str)
"""What tells engines apart for the user: a role, or a role with a number. Roles are texts."""


async def start_engines(
    settings: Mapping[K, EngineSettings],
    tokenizers: Mapping[K, Tokenizer],
    *,
    log_path: Path,
    warm_up: Mapping[K, Sequence[Request]] | None = None,
    notify: Callable[[str], None] | None = None,
    variables: Mapping[str, str] | None = None,
    nursery: Nursery | None = None,
) -> dict[K, VllmEngine]:
    """Starts all these engines side by side, and warms them up. One call at a time: each tells its processes from those before.

    ``warm_up``: a request of each kind that will come. ``variables``: further ones of the processes' environment. ``log_path``:
    the file for the engines' own log. ``nursery``: forks engines on a CPU; by default one that these engines have for themselves.
    If one fails to start, or the caller is cancelled, no process of any is left.

    Raises:
        SettingsError: vLLM is not installed.
        EngineError: an engine did not start; the message quotes its log.
    """
    if find_spec("vllm") is None:
        raise SettingsError(
            "vLLM is not installed. On a machine without a GPU install the packages of locks/cpu.txt (see README); "
            "with a CUDA GPU: pip install 'speclrm[cuda]'."
        )
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log_path.touch()
    started: dict[K, VllmEngine] = {}
    # The processes read from this folder while they start.
    with tempfile.TemporaryDirectory(prefix="speclrm-engines-") as folder:
        ids = {role: tokenizer.vocabulary.size for role, tokenizer in tokenizers.items()}
        start = _Start(settings, ids, Path(folder), log_path, notify or (lambda _: None), variables or {}, nursery)
        try:
            for role, (engine, counters) in (await start.engines()).items():
                started[role] = VllmEngine(
                    settings[role], tokenizers[role], engine, counters, start.watchdog, log_path, start.paces[role]
                )
            for role, engine in started.items():
                engine.tell_memory(settings[role].estimate, start.log_offset)
                await engine.warm_up((warm_up or {}).get(role, ()))
        except BaseException as error:
            await to_its_end(start.give_up())
            for engine in started.values():
                await to_its_end(engine.aclose())
            if isinstance(error, Exception) and not isinstance(error, SettingsError):
                raise start_error(error, log_path, start.log_offset) from error
            raise
    return started


class _Start(Generic[K]):
    """Takes engines from settings to ready, or leaves nothing at all.

    vLLM is configured and constructed in threads, and a thread cannot be cancelled. So the spawning is a task of its
    own that nobody cancels: the environment stays until each engine's process is there, and one that is abandoned at
    that moment is found and ended.
    """

    def __init__(
        self,
        settings: Mapping[K, EngineSettings],
        ids: Mapping[K, int],
        folder: Path,
        log_path: Path,
        notify: Callable[[str], None],
        variables: Mapping[str, str],
        nursery: Nursery | None,
    ) -> None:
        self._variables = variables
        self.log_offset = log_path.stat().st_size
        self._nursery = nursery or Nursery()
        self._nursery_is_new = False
        self.watchdog = Watchdog(self._nursery.end if nursery is None else None)
        self._settings = settings
        self._ids = ids
        self._folder = folder
        self._log_path = log_path
        self._notify = notify
        self._known = engine_cores()
        self.paces = {role: open_pace(str(self._pace_file(role))) for role in settings}
        """What each engine's process is told of its pace. It stays in memory when the file is gone."""
        self._threads: dict[K, asyncio.Task[tuple[Any, VllmCounters]]] = {}
        self._given_up = False
        self._spawning = asyncio.ensure_future(self._spawn())

    def _pace_file(self, role: K) -> Path:
        return self._folder / f"pace-{role}".replace(" ", "-")

    async def engines(self) -> dict[K, tuple[Any, VllmCounters]]:
        await asyncio.shield(self._spawning)
        # Not ``gather``: it would cancel the threads' tasks with us, and lose the engines that come out of them.
        done, _ = await asyncio.wait(self._threads.values(), return_when=asyncio.FIRST_EXCEPTION)
        for thread in done:
            thread.result()
        # With their workers: a worker whose core has died is no descendant of ours.
        self.watchdog.name(with_children(engine_cores() - self._known))
        return {role: thread.result() for role, thread in self._threads.items()}

    async def _spawn(self) -> None:
        with (
            environment(common_values(self._folder, self._log_path) | dict(self._variables)),
            executable(shell_script(self._folder, self._log_path)),
        ):
            self._begin_nursery()
            for role, chosen in self._settings.items():
                if self._given_up:
                    return
                self._notify(f"loading {role} {chosen.name}")
                with environment(own_values(chosen, self._ids[role], self._pace_file(role))):
                    # vLLM keeps the configuration in the making in a module global (config/vllm.py): one at a time.
                    config = await asyncio.to_thread(_config, chosen)
                    if self._given_up:
                        return
                    before = engine_cores()
                    with contextlib.ExitStack() as stack:
                        if computes_in_core(chosen):
                            stack.enter_context(_openmp(config))
                            stack.enter_context(self._nursery.forks(self._log_path))
                        thread = asyncio.ensure_future(asyncio.to_thread(_construct, config))
                        self._threads[role] = thread
                        while not thread.done() and not engine_cores() - before:  # noqa: ASYNC110
                            await asyncio.sleep(CHILD_POLL_S)
                    self.watchdog.name(engine_cores() - self._known)

    def _begin_nursery(self) -> None:
        """Lets the nursery load vLLM while we do, if an engine will be its copy."""
        for role, chosen in self._settings.items():
            if computes_in_core(chosen):
                with environment(own_values(chosen, self._ids[role])):
                    self._nursery_is_new = self._nursery.begin(openmp_values(chosen))
                # Its title hides our mark, and its copies hold it: a copy that we have not seen yet would live on with it.
                if (process := self._nursery.process) is not None:
                    self.watchdog.name([process])
                self.watchdog.leave(multiprocessing.util.get_temp_dir())  # where the nursery listens
                return

    async def give_up(self) -> None:
        """Ends every process of this start, also one that is about to appear. Takes ``GIVE_UP_LIMIT_S`` at most."""
        self._given_up = True
        if self._nursery_is_new:
            await asyncio.to_thread(self._nursery.end)  # an engine that waits for it to have loaded is not waited for
        deadline = asyncio.get_running_loop().time() + GIVE_UP_LIMIT_S
        tasks: set[asyncio.Task[Any]] = set()
        killed: set[psutil.Process] = set()
        while asyncio.get_running_loop().time() < deadline:
            killed.update(kill(engine_cores() - self._known))
            # The threads notice their engines' death and return; until then they hold sockets.
            tasks = {self._spawning, *self._threads.values()}
            if all(task.done() for task in tasks):
                break
            await asyncio.wait({task for task in tasks if not task.done()}, timeout=CHILD_POLL_S)
        killed.update(kill(engine_cores() - self._known))
        await see_off(killed)
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is None and task is not self._spawning:
                await asyncio.to_thread(task.result()[0].shutdown, 0.0)
        self.watchdog.end()


def _config(settings: EngineSettings) -> Any:
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # silences its warning that a CPU has no Triton
    from vllm.engine.arg_utils import AsyncEngineArgs

    check_arguments(settings, {field.name for field in dataclasses.fields(AsyncEngineArgs)})
    told = arguments(settings) | (IN_CORE if computes_in_core(settings) else {})
    try:
        return AsyncEngineArgs(**cast("Any", told)).create_engine_config()
    except (TypeError, ValueError) as error:
        raise EngineError(f"vLLM refuses the settings of {settings.name}: {str(error).strip()}") from error


@contextlib.contextmanager
def _openmp(config: Any) -> Generator[None, None, None]:
    """Sets the variables of OpenMP, as vLLM sets them for a Worker, for an EngineCore that is started meanwhile."""
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        yield


def _construct(config: Any) -> tuple[Any, VllmCounters]:
    """Constructs an engine. Blocks until its process is ready, so it is called in a thread."""
    from vllm.v1.engine.async_llm import AsyncLLM

    counters = VllmCounters()
    return AsyncLLM.from_vllm_config(
        config, stat_loggers=[stat_logger(counters)], disable_log_stats=True, enable_log_requests=False
    ), counters
