"""Drives one of vLLM's AsyncLLMEngines on the caller's loop.

Imports vllm only when an engine is there. Facts about vLLM 0.32 that the code relies on are stated where they matter,
with the file of vLLM that shows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from speclrm.runtime.engine import Delta, EngineCosts, EngineStats, Finish, Request
from speclrm.runtime.engines import vllm_memory
from speclrm.runtime.engines.confidence import ENTROPY_TOP, entropy_of
from speclrm.runtime.engines.vllm_failure import memory_kills, reason_of_death
from speclrm.runtime.engines.vllm_plugin import SECONDS
from speclrm.runtime.engines.vllm_processes import (
    Watchdog,
    see_off,
    with_children,
)
from speclrm.runtime.errors import CapacityError, EngineDeadError, EngineError, RequestError
from speclrm.runtime.settings import UNREAD_MAX

if TYPE_CHECKING:
    import mmap
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

    from speclrm.runtime.engine import Tokenizer
    from speclrm.runtime.engines.vllm_counters import VllmCounters
    from speclrm.runtime.errors import FailureReason
    from speclrm.runtime.settings import EngineSettings

log = structlog.get_logger(__name__)

STREAM_INTERVAL = 8
"""Tokens between two deltas. vLLM sends every token to this process anyway (v1/engine/output_processor.py); passing
them on eight at a time costs the loop little and still tells, after an abort, what had been generated."""


ABORT_LIMIT_S = 5.0
SHUTDOWN_S = 1.0
CLOSE_LIMIT_S = 8.0
"""Seconds that vLLM may wait for its processes to end, and seconds that we wait for vLLM."""


def read_prompt(output: Any, start: int, end: int, values: dict[int, float]) -> int:
    """Writes what can be trusted of the places from ``start`` to ``end`` into ``values``; returns how many ids were
    cached, ``end`` if that is unknown.
    """
    cached = output.num_cached_tokens
    if cached is None or cached < 0:
        return end
    first = max(start, cached + 1)
    if first < end:
        # One entry a place, the prompt's own id, but none for the first place. What was cached is filled with anything, or
        # (vLLM's V2 model runner, its default on CUDA: v1/worker/gpu/sample/prompt_logprob.py) left out.
        left_out = len(output.prompt_token_ids) - len(output.prompt_logprobs)
        found = output.prompt_logprobs[first - left_out : end - left_out].logprobs
        values.update(zip(range(first, end), found, strict=True))
    return cached


class VllmEngine:
    """An AsyncLLMEngine behind the ``Engine`` protocol. Made by ``start_engines``.

    It belongs to the loop on which it was first used; a second loop would wait for ever on the first one's tasks.
    """

    def __init__(
        self,
        settings: EngineSettings,
        tokenizer: Tokenizer,
        engine: Any,
        counters: VllmCounters,
        watchdog: Watchdog,
        log_path: Path,
        pace: mmap.mmap,
    ) -> None:
        self._pace = pace
        self.name = settings.name
        self.tokenizer = tokenizer
        self.max_model_len = settings.max_model_len
        self.max_num_seqs = settings.max_num_seqs
        self.engine = engine
        self.known_costs: EngineCosts | None = None
        """What its iterations cost, where that was measured before."""
        self._counters = counters
        blocks = getattr(engine.vllm_config.cache_config, "num_gpu_blocks", None)
        self._kv_tokens = blocks * settings.block_size if blocks else None
        self._parameters = settings.parameters
        self._watchdog = watchdog
        self._log_path = log_path
        self._log_offset = log_path.stat().st_size if log_path.exists() else 0
        self._kills_before = memory_kills()
        self._why: FailureReason | None = None
        # Once a process is dead, nothing leads from it to those that it had started.
        self._started = set(with_children(self._cores()))
        self._numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.remains: set[int] = set()
        """Processes that were there in spite of ``aclose`` when it returned."""
        self._closing: asyncio.Task[None] | None = None
        self._aborts: set[asyncio.Task[None]] = set()
        watchdog.hold()

    def pace(self, interval_s: float) -> None:
        SECONDS.pack_into(self._pace, 0, interval_s)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        first = True
        start = request.likelihood_from
        before = None if start is None or start <= UNREAD_MAX else await self._read(request, start)
        async with aclosing(self._outputs(request, request.prompt_ids)) as outputs:
            async for output in outputs:
                delta = self._delta(request, output, first=first)
                if first and start is not None:
                    delta = await self._with_likelihood(request, start, output, delta)
                    if before is not None and delta.cached_tokens is not None:
                        delta = dataclasses.replace(delta, cached_tokens=min(before, delta.cached_tokens))
                first = False
                yield delta

    async def _outputs(self, request: Request, prompt_ids: Sequence[int], **changes: Any) -> AsyncGenerator[Any, None]:
        """Yields vLLM's outputs for a prompt; ``changes`` are to the request's own sampling parameters."""
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDead

        self._check(request)
        try:
            sampling = self._sampling(request, **changes)
        except (VLLMError, ValueError, TypeError) as error:
            raise self._refused(request, error) from error
        # A request that is sent again keeps its id; the engine needs another.
        name = f"{request.id}#{next(self._numbers)}"
        outputs = self.engine.generate(
            {"prompt_token_ids": list(prompt_ids)}, sampling, name, priority=request.priority
        )
        finished = False
        try:
            async for output in outputs:
                finished = output.finished
                yield output
        except VllmDead as error:
            raise self._dead() from error
        # vLLM's own errors are no ValueErrors; an unexpected one is the cause of an empty error.
        except (VLLMError, ValueError, TypeError) as error:
            if self.engine.errored:
                raise self._dead() from error
            raise self._refused(request, error.__cause__ or error) from error
        finally:
            # The abort begins before anything is awaited, so a second cancellation cannot skip it.
            abort = None if finished or self._closed else self._abort(name)
            await outputs.aclose()
            if abort is not None:
                with contextlib.suppress(TimeoutError, Exception):
                    await asyncio.wait_for(asyncio.shield(abort), ABORT_LIMIT_S)

    async def _read(self, request: Request, length: int) -> int | None:
        """Computes the first ids of the prompt, so that the cache has them; returns how many it had before."""
        cached: int | None = None
        plain = dataclasses.replace(request, likelihood_from=None, logprob_ids=(), allowed_ids=(), max_tokens=1)
        async with aclosing(self._outputs(plain, request.prompt_ids[:length])) as outputs:
            async for output in outputs:
                cached = output.num_cached_tokens
        return cached

    async def _with_likelihood(self, request: Request, start: int, output: Any, delta: Delta) -> Delta:
        """Returns the delta with the log-probabilities of the prompt's ids from ``start`` on.

        vLLM computes no logits for what it takes from its prefix cache and leaves those places uninitialised
        (v1/worker/gpu_model_runner.py, _get_prompt_logprobs_dict) or out: with n cached tokens the first id with a value
        is n + 1. The block before the step is cached if a block ends at its border, and the step itself if another track had
        the same one scored. What is missing is requested from the back, with the prompt cut off before it: such a
        prompt is never found whole, since vLLM always computes a prompt's last token. That costs a block each time.
        """
        ids = request.prompt_ids
        values: dict[int, float] = {}
        end = len(ids)
        cached = read_prompt(output, start, end, values)
        while cached >= start:
            if cached >= end:
                raise EngineError(f"Engine {self.name} does not say which part of request {request.id} it had cached.")
            end = cached
            async with aclosing(self._outputs(request, ids[:end], max_tokens=1, logprob_token_ids=[ids[end]])) as more:
                async for part in more:
                    cached = read_prompt(part, start, end, values)
                    values[end] = part.outputs[0].logprobs[0][ids[end]].logprob
        return dataclasses.replace(
            delta, prompt_logprobs=tuple(values[place] for place in range(start, len(ids))), cached_tokens=cached
        )

    def _abort(self, name: str) -> asyncio.Task[None]:
        """Begins to end the request in the engine, whatever state it is in.

        ``generate`` aborts when it is closed, but a cancellation during its ``add_request`` leaves the request there. A
        task of its own: a second cancellation must not leak the request.
        """
        task = asyncio.ensure_future(self.engine.abort(name))
        self._aborts.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._aborted)
        return task

    def _aborted(self, task: asyncio.Task[None]) -> None:
        self._aborts.discard(task)
        if not task.cancelled():
            task.exception()  # the engine is dead: there is nothing left to abort

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

    def _refused(self, request: Request, error: BaseException) -> RequestError:
        return RequestError(f"Engine {self.name} refused request {request.id}: {error or type(error).__name__}")

    def _dead(self) -> EngineDeadError:
        if self._why is None:
            pids = {process.pid for process in self._started}
            self._why = reason_of_death(self._log_path, self._log_offset, pids, self._kills_before)
        what = "its memory ran out" if self._why == "out_of_memory" else "its process ended"
        error = EngineDeadError(
            f"Engine {self.name} is gone: {what}. Its own log, {self._log_path}, may say why; `speclrm doctor` "
            "says what fits this machine. What was committed is in the trace."
        )
        error.reason = self._why
        return error

    def _sampling(self, request: Request, **changes: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        ends = self.tokenizer.vocabulary.end_ids
        likelihood = request.likelihood_from is not None
        if request.likelihood_from is not None and not 0 < request.likelihood_from < len(request.prompt_ids):
            raise ValueError(
                f"there is no likelihood from token {request.likelihood_from} of {len(request.prompt_ids)}"
            )
        options: dict[str, Any] = {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            # Checked inside the engine (v1/core/sched/utils.py); stop strings would be found here, too late.
            "stop_token_ids": [*request.stop_ids, *ends],
            "ignore_eos": True,  # the end ids are among the stop ids
            "allowed_token_ids": list(request.allowed_ids) or None,
            "logprob_token_ids": list(request.logprob_ids) or None,
            # 0: of the sampled token alone. More would be sorted at every token, though only one position is asked.
            "logprobs": ENTROPY_TOP if request.first_entropy else 0 if request.sampled_logprobs else None,
            "prompt_logprobs": 0 if likelihood else None,
            # By default such a request would compute its whole prompt again.
            "skip_reading_prefix_cache": False,
            "flat_logprobs": likelihood or request.sampled_logprobs or request.first_entropy,
            # With it, the uninitialised ids of cached places kill vLLM's output handler, and with that the engine.
            "detokenize": False,
            "output_kind": RequestOutputKind.DELTA,
            "stream_interval": STREAM_INTERVAL,
        }
        return SamplingParams(**{**options, **changes})

    def _delta(self, request: Request, output: Any, *, first: bool) -> Delta:
        completion = output.outputs[0]
        ids = tuple(completion.token_ids)
        finish: Finish | None = None
        if output.finished:
            finish = "stop" if completion.finish_reason == "stop" else "length"
            if finish == "stop" and ids and ids[-1] in self.tokenizer.vocabulary.end_ids:
                ids, finish = ids[:-1], "end"
            elif completion.finish_reason not in ("stop", "length"):
                raise RequestError(f"Engine {self.name} ended request {request.id}: {completion.finish_reason}.")
        logprobs: dict[int, float] | None = None
        entropy: float | None = None
        sampled: tuple[float, ...] = ()
        found = completion.logprobs
        if first and request.logprob_ids and found:
            position = found[0]
            logprobs = {token: position[token].logprob for token in request.logprob_ids}
        if found and (request.sampled_logprobs or request.first_entropy):
            # At each position the sampled token comes first (v1/engine/logprobs.py), then the most probable ones.
            starts = found.start_indices
            sampled = tuple(found.logprobs[start] for start in starts[: len(ids)]) if request.sampled_logprobs else ()
            if first and request.first_entropy:
                entropy = entropy_of(found.logprobs[starts[0] + 1 : found.end_indices[0]])
        return Delta(ids, finish, logprobs, output.num_cached_tokens, sampled, entropy)

    async def generate_bare(self, ids: Sequence[int], max_tokens: int, seed: int) -> int:
        """Generates as plainly as vLLM can be asked, past any end, for comparison with the runtime. Returns the number
        of tokens.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.6,
            top_p=0.95,
            seed=seed,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"bare#{next(self._numbers)}"
        count = 0
        async for output in self.engine.generate({"prompt_token_ids": list(ids)}, sampling, name):
            count = len(output.outputs[0].token_ids)
        return count

    async def forget_prefixes(self) -> None:
        """Empties the prefix cache, so that the next measurement does not profit from earlier ones."""
        await self.engine.reset_prefix_cache()

    def tell_memory(self, estimate: Mapping[str, int], log_offset: int) -> None:
        """Writes to the engines' log the memory that was expected, beside what its processes logged of it."""
        processes = {process.pid for process in with_children(self._cores())}
        vllm_memory.tell(self.name, estimate, self._log_path, log_offset, processes)

    async def warm_up(self, requests: Sequence[Request]) -> None:
        """Sends these, one after the other: the first of each kind compiles for seconds, before the first step needs it."""
        for request in requests:
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
            kv_tokens=self._kv_tokens,
            iterations=counters.iterations,
            batched=counters.batched,
            preemptions=counters.preemptions,
            parameters=self._parameters,
        )

    async def aclose(self) -> None:
        """Ends the engine's processes. Safe to call again; every caller returns when they are gone."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        processes = self._started | set(with_children(self._cores()))
        # vLLM first closes sockets and shared memory itself. Whatever is left is killed.
        shutdown = asyncio.ensure_future(asyncio.to_thread(self.engine.shutdown, SHUTDOWN_S))
        try:
            await asyncio.wait_for(asyncio.shield(shutdown), CLOSE_LIMIT_S)
        except TimeoutError:
            log.warning("engine_killed", engine=self.name, reason="it did not end when asked")
        finally:
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.remains = await see_off(processes)
            self._watchdog.release()

    @property
    def processes(self) -> set[int]:
        """Its processes that serve requests, without those that they have started."""
        return {process.pid for process in self._cores()}

    def _cores(self) -> set[psutil.Process]:
        found: set[psutil.Process] = set()
        manager = getattr(getattr(self.engine.engine_core, "resources", None), "engine_manager", None)
        for process in getattr(manager, "processes", []):
            with contextlib.suppress(psutil.Error):
                found.add(psutil.Process(process.pid))
        return found
