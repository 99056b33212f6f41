"""vLLM in this process: draft and target as two AsyncLLMEngines on the caller's loop.

The only module that imports vllm, and only when engines are started. Facts about vLLM 0.32 that the code rests on are
stated where they matter, with the file of vLLM that shows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import multiprocessing
import multiprocessing.spawn
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, cast

import psutil
import structlog

from speclrm.runtime.engines import reaper
from speclrm.runtime.errors import CapacityError, EngineDeadError, EngineError, RequestError, SettingsError
from speclrm.runtime.protocols import Delta, EngineStats, Finish, Request, Role

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping

    from speclrm.runtime.protocols import Tokenizer
    from speclrm.runtime.settings import EngineSettings

log = structlog.get_logger(__name__)

STREAM_INTERVAL = 8
"""Tokens between two deltas. vLLM sends every token to this process anyway (v1/engine/output_processor.py); handing
them on eight at a time costs the loop little and still tells, after an abort, what had been generated."""

ABORT_LIMIT_S = 5.0
SHUTDOWN_S = 1.0
CLOSE_LIMIT_S = 8.0
"""How long vLLM may wait for its processes to end, and how long we wait for vLLM."""

CHILD_POLL_S = 0.05

_ERROR_LINE = re.compile(r"(\w+\.)*\w*(Error|Exception): \S")
"""The last line of a traceback."""


async def start_engines(
    settings: Mapping[Role, EngineSettings],
    tokenizers: Mapping[Role, Tokenizer],
    *,
    log_path: Path,
    notify: Callable[[str], None] | None = None,
) -> dict[Role, VllmEngine]:
    """Starts an engine for each role, side by side, and warms them up.

    ``log_path``: where the engines write their own log. If one fails to start, or the caller is cancelled, no process
    of any is left.

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
    watchdog = _Watchdog()
    before = _children()
    started: dict[Role, VllmEngine] = {}
    threads: dict[Role, asyncio.Future[tuple[Any, _Counters]]] = {}
    with tempfile.TemporaryDirectory(prefix="speclrm-engines-") as name:
        try:
            with _environment(settings, Path(name), log_path):
                for role, chosen in settings.items():
                    if notify is not None:
                        notify(f"loading {role.value} {chosen.name}")
                    # vLLM keeps the configuration in the making in a module global (config/vllm.py): one at a time.
                    config = await asyncio.to_thread(_config, chosen)
                    known = len(_children() - before)
                    threads[role] = asyncio.ensure_future(asyncio.to_thread(_construct, config))
                    while not threads[role].done() and len(_children() - before) <= known:  # noqa: ASYNC110
                        await asyncio.sleep(CHILD_POLL_S)
                for role, thread in threads.items():
                    started[role] = VllmEngine(settings[role], tokenizers[role], *await thread, watchdog, log_path)
                for engine in started.values():
                    await engine.warm_up()
        except BaseException as error:
            for process in _children() - before:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            # The threads see their engines' death and come back; until then they hold sockets.
            settled = asyncio.gather(*threads.values(), return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(settled, CLOSE_LIMIT_S)
            for engine in started.values():
                await engine.aclose()
            watchdog.end()
            if isinstance(error, Exception) and not isinstance(error, SettingsError):
                raise _start_error(error, log_path) from error
            raise
    return started


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _start_error(error: Exception, log_path: Path) -> EngineError:
    """One paragraph from the engines' own log: the first error in it says more than the last exception here."""
    lines = log_path.read_text(errors="replace").splitlines()
    causes = [line.strip() for line in lines if _ERROR_LINE.match(line.strip())]
    cause = causes[0] if causes else f"{type(error).__name__}: {error}".splitlines()[0]
    return EngineError(
        f"An engine did not start: {cause[:400]}. `speclrm doctor` says what this machine can run; the engines' own log "
        f"is {log_path}."
    )


class _Watchdog:
    """The reaper process, shared by the engines of one start; it ends with the last of them."""

    def __init__(self) -> None:
        self._popen = reaper.start(os.getpid())
        self._users = 0

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


@contextlib.contextmanager
def _environment(settings: Mapping[Role, EngineSettings], folder: Path, log_path: Path) -> Generator[None, None, None]:
    """What the engines' processes find when they start; all of it is put back afterwards, vLLM's own changes too.

    vLLM spawns its processes (it does so on CPU anyway, and on CUDA a fork would inherit pipes and threads), so what
    stands here at that moment is all they see. They run under a small shell script, which gives them a session of
    their own, so that Ctrl-C reaches only us and we end them, and sends what they print to the log.
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
    shell = folder / "engine.sh"
    setsid = "setsid " if shutil.which("setsid") else ""
    shell.write_text(f'#!/bin/sh\nexec {setsid}{quote(sys.executable)} "$@" 2>>{quote(str(log_path))} >&2\n')
    shell.chmod(0o700)
    values: dict[str, str | None] = {
        reaper.MARK: reaper.mark(os.getpid()),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_CONFIG_PATH": str(logging_config),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",  # the models are folders by now
        "TOKENIZERS_PARALLELISM": "false",
        # It would be read at configuration time and override the bytes of both engines (platforms/cpu.py).
        "VLLM_CPU_KVCACHE_SPACE": None,
        "KMP_BLOCKTIME": None,  # 1 was measured to cost 40 % system time
    }
    for chosen in settings.values():
        if chosen.device == "cpu" and chosen.cores:
            values["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, chosen.cores))
        if chosen.preload:
            values["LD_PRELOAD"] = ":".join(chosen.preload)
    saved = dict(os.environ)
    saved_executable = multiprocessing.spawn.get_executable()
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    multiprocessing.set_executable(str(shell))
    try:
        yield
    finally:
        multiprocessing.set_executable(os.fsdecode(saved_executable))
        for name in os.environ.keys() - saved.keys():
            del os.environ[name]
        os.environ.update(saved)


def _config(settings: EngineSettings) -> Any:
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it warns that a CPU has no Triton
    from vllm.engine.arg_utils import AsyncEngineArgs

    options: dict[str, Any] = {
        "model": str(settings.path),
        "served_model_name": settings.name,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "enforce_eager": settings.enforce_eager,
        "enable_prefix_caching": True,
        # Without it priorities are silently ignored (config/scheduler.py).
        "scheduling_policy": "priority",
        "disable_log_stats": True,  # the default loggers of two engines collide in Prometheus; ours is passed apart
        "generation_config": "vllm",  # sampling is ours alone
        "seed": 0,
    }
    if settings.device == "cpu":
        # A seeded request whose prompt is computed in parts kills the CPU engine: the runner rewinds its generator,
        # which CPU generators cannot do (v1/worker/gpu_model_runner.py, _bookkeeping_sync).
        options["enable_chunked_prefill"] = False
    if settings.kv_cache_bytes is not None:
        options["kv_cache_memory_bytes"] = settings.kv_cache_bytes
    if settings.gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = settings.gpu_memory_utilization
    try:
        return AsyncEngineArgs(**cast("Any", {**options, **settings.extra})).create_engine_config()
    except (TypeError, ValueError) as error:
        raise EngineError(f"vLLM refuses the settings of {settings.name}: {str(error).strip()}") from error


@dataclass(slots=True)
class _Counters:
    """What the engine's own statistics say; counters from its start."""

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    progress: int = 0


def _construct(config: Any) -> tuple[Any, _Counters]:
    """Blocks until the engine's process is ready, so it is called in a thread."""
    from vllm.v1.engine.async_llm import AsyncLLM

    counters = _Counters()
    return AsyncLLM.from_vllm_config(
        config, stat_loggers=[_stat_logger(counters)], disable_log_stats=True, enable_log_requests=False
    ), counters


def _stat_logger(counters: _Counters) -> Any:
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Logger(StatLoggerBase):
        """vLLM calls this interface unstable, so every field is looked up with care."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            counters.progress += 1
            if scheduler_stats is not None:
                counters.running = getattr(scheduler_stats, "num_running_reqs", 0)
                counters.waiting = getattr(scheduler_stats, "num_waiting_reqs", 0)
            if iteration_stats is not None:
                counters.prompt_tokens += getattr(iteration_stats, "num_prompt_tokens", 0)
                counters.output_tokens += getattr(iteration_stats, "num_generation_tokens", 0)

        def log_engine_initialized(self) -> None: ...

    return Logger


class VllmEngine:
    """An AsyncLLMEngine behind the ``Engine`` protocol. Made by ``start_engines``.

    It belongs to the loop on which it was first used; a second loop would wait for ever on the first one's tasks.
    """

    def __init__(
        self,
        settings: EngineSettings,
        tokenizer: Tokenizer,
        engine: Any,
        counters: _Counters,
        watchdog: _Watchdog,
        log_path: Path,
    ) -> None:
        self.name = settings.name
        self.tokenizer = tokenizer
        self.max_model_len = settings.max_model_len
        self.max_num_seqs = settings.max_num_seqs
        self.engine = engine
        self._counters = counters
        self._watchdog = watchdog
        self._log_path = log_path
        self._numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        watchdog.hold()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDead

        self._check(request)
        # An operation that is queued again keeps its id; the engine needs another.
        name = f"{request.id}#{next(self._numbers)}"
        outputs = self.engine.generate(
            {"prompt_token_ids": list(request.prompt_ids)}, self._sampling(request), name, priority=request.priority
        )
        finished = False
        try:
            async for output in outputs:
                finished = output.finished
                yield self._delta(request, output)
        except VllmDead as error:
            raise self._dead() from error
        except (ValueError, TypeError) as error:
            raise RequestError(f"Engine {self.name} refused request {request.id}: {error}") from error
        finally:
            await outputs.aclose()
            if not finished and not self._closed:
                await self._abort(name)

    async def _abort(self, name: str) -> None:
        """Ends the request in the engine, whatever state it is in.

        ``generate`` aborts when it is closed, but a cancellation during its ``add_request`` leaves the request there.
        Shielded and bounded: a second cancellation must not leak it, a dead engine must not hold us.
        """
        task = asyncio.ensure_future(self.engine.abort(name))
        with contextlib.suppress(TimeoutError, Exception):
            await asyncio.wait_for(asyncio.shield(task), ABORT_LIMIT_S)

    def _check(self, request: Request) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise EngineError(f"Engine {self.name} was started on another event loop. Use one loop for its whole life.")
        if self._closed or self.engine.errored:
            raise self._dead()
        length = len(request.prompt_ids) + request.max_tokens
        if length > self.max_model_len:
            raise CapacityError(
                f"Request {request.id} needs {length} tokens and engine {self.name} takes {self.max_model_len}. Use a "
                "smaller --token-budget or a shorter problem."
            )

    def _dead(self) -> EngineDeadError:
        return EngineDeadError(
            f"Engine {self.name} is gone: its process ended. Its own log, {self._log_path}, may say why; `speclrm doctor` "
            "says what fits this machine. What was committed is in the trace."
        )

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        ends = self.tokenizer.vocabulary.end_ids
        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            # Checked inside the engine (v1/core/sched/utils.py); stop strings would be found here, too late.
            stop_token_ids=[*request.stop_ids, *ends],
            ignore_eos=True,  # the end ids stand among the stop ids
            allowed_token_ids=list(request.allowed_ids) or None,
            logprob_token_ids=list(request.logprob_ids) or None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            stream_interval=STREAM_INTERVAL,
        )

    def _delta(self, request: Request, output: Any) -> Delta:
        completion = output.outputs[0]
        ids = tuple(completion.token_ids)
        finish: Finish | None = None
        if output.finished:
            finish = "stop" if completion.finish_reason == "stop" else "length"
            if finish == "stop" and ids and ids[-1] in self.tokenizer.vocabulary.end_ids:
                ids, finish = ids[:-1], "end"
            elif completion.finish_reason not in ("stop", "length"):
                raise RequestError(f"Engine {self.name} ended request {request.id}: {completion.finish_reason}.")
        logprobs = None
        if request.logprob_ids and completion.logprobs:
            first = completion.logprobs[0]
            logprobs = {token: first[token].logprob for token in request.logprob_ids}
        return Delta(ids, finish, logprobs, output.num_cached_tokens)

    async def warm_up(self) -> None:
        """The first request for digits compiles what it needs, which takes seconds: not on the first step's time."""
        digits = tuple(range(10))
        request = Request("warm-up", [1] * 8, 1, allowed_ids=digits, logprob_ids=digits)
        async for _ in self.stream(request):
            pass

    def stats(self) -> EngineStats:
        counters = self._counters
        return EngineStats(
            name=self.name,
            running=counters.running,
            waiting=counters.waiting,
            prompt_tokens=counters.prompt_tokens,
            output_tokens=counters.output_tokens,
            progress=counters.progress,
            alive=not self._closed and not self.engine.errored,
        )

    async def aclose(self) -> None:
        """Ends the engine's processes. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        processes = self._processes()
        try:
            # Its own way first: it closes sockets and shared memory. What is left after that is killed.
            shutdown = asyncio.ensure_future(asyncio.to_thread(self.engine.shutdown, SHUTDOWN_S))
            await asyncio.wait_for(asyncio.shield(shutdown), CLOSE_LIMIT_S)
        except TimeoutError:
            log.warning("engine_killed", engine=self.name, reason="it did not end when asked")
        finally:
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._watchdog.release()

    def _processes(self) -> list[psutil.Process]:
        """The engine's processes."""
        found: list[psutil.Process] = []
        manager = getattr(getattr(self.engine.engine_core, "resources", None), "engine_manager", None)
        for process in getattr(manager, "processes", []):
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                found += [parent, *parent.children(recursive=True)]
        return found
