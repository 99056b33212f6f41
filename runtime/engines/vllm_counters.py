"""Counts what vLLM's engines do, from the statistics that vLLM gives to loggers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class VllmCounters:
    """Keeps what the engine's own statistics say; counters run from its start."""

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    progress: int = 0
    iterations: int = 0
    batched: int = 0
    preemptions: int = 0


def stat_logger(counters: VllmCounters) -> Any:
    """Returns a class of loggers for vLLM that keep these counters."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class Logger(PrometheusStatLogger):
        """Reads vLLM's statistics. vLLM calls this interface unstable, so every field is looked up with care.

        A Prometheus logger by name only: if none is given vLLM adds its own, asked or not (StatLoggerManager in
        v1/metrics/loggers.py), and that one takes all metrics of other engines out of the program's registry.
        """

        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None: ...

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            counters.progress += 1
            if scheduler_stats is not None:
                counters.running = getattr(scheduler_stats, "num_running_reqs", 0)
                counters.waiting = getattr(scheduler_stats, "num_waiting_reqs", 0)
            if iteration_stats is not None:
                written = getattr(iteration_stats, "num_generation_tokens", 0)
                prompts = getattr(iteration_stats, "prompt_token_stats", None)
                counters.prompt_tokens += getattr(prompts, "computed", 0)
                counters.output_tokens += written
                counters.preemptions += getattr(iteration_stats, "num_preempted_reqs", 0)
                counters.iterations += 1
                counters.batched += written  # each request of an iteration brings one token

        def log_engine_initialized(self) -> None: ...

        def log(self) -> None: ...

        def record_sleep_state(self, *_: Any, **__: Any) -> None: ...

        def record_admission_rejection(self, reason: str) -> None: ...

    return Logger
