"""Changes vLLM's processes. vLLM loads it in each of them, by the entry point ``vllm.general_plugins``.

It changes only engines of SpecLRM, which name it in their environment, and only if vLLM is as expected: another version
runs unchanged. The engines' log says what was changed.

- Models often have more output rows than their tokenizer has ids (QwQ-32B: 152,064 rows). An id of such a row is no text, and
  another model's engine refuses it, so their logits become -inf. Once for all requests: a list of allowed ids costs each
  request a row of 150,000.

- The draft's iterations can be held apart while another engine shares the device (``scheduling/pacing.py``). The number of
  seconds stands in a file that both processes map into their memory, so that saying it costs nothing.

On a CPU, further:

- Readers of the shared-memory queue spin for a second after each message (vLLM 0.32,
  distributed/device_communicators/shm_broadcast.py, ``SpinCondition``). With two engines on few cores these loops take the
  time of the threads that compute, so they wait for the notice after ``SPIN_S``.
- vLLM finds a nucleus (top-p) by sorting the whole vocabulary (v1/sample/ops/topk_topp_sampler.py). It is nearly always among
  the few most probable tokens, which are selected; otherwise the rows concerned are sorted as before.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED = "SPECLRM_CPU_ENGINE"
"""The environment variable that is 1 in the processes that are to be changed. A user who sets it to 0 gets vLLM as it is."""
IDS = "SPECLRM_IDS"
"""In the environment: how many ids the tokenizer has, from 0 on."""
PACE = "SPECLRM_PACE"
"""In the environment: the file with the seconds from the beginning of one iteration to that of the next, one double."""
PACE_LOOK_S = 0.002
"""Seconds of a wait after which the file is read again."""
SPIN_S = 0.002
SECONDS = struct.Struct("d")
FEW = (256, 4096)
"""Numbers of most probable tokens that are searched, one after the other, before a row is sorted."""


def register() -> None:
    """Installs the changes; vLLM calls this in each of its processes."""
    changes = [_mask_padding] if IDS in os.environ else []
    if PACE in os.environ and "vllm.v1.engine.core" in sys.modules:  # a worker iterates when it is told
        changes.append(_keep_pace)
    if os.environ.get(ASKED) == "1":
        changes += [_spin_less, _select_the_nucleus]
    if not changes:
        return
    from vllm.logger import init_logger

    log = init_logger("vllm.speclrm")
    for change in changes:
        try:
            log.info("speclrm: %s", change())
        except Exception as error:  # noqa: BLE001  # an engine without it is slower and no worse
            log.warning("speclrm: %s left as it is: %r", change.__name__, error)


def open_pace(path: str) -> mmap.mmap:
    """Maps the file with the pace; makes it, with no pace, if it is not there."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(handle).st_size < SECONDS.size:
            os.write(handle, SECONDS.pack(0.0))
        return mmap.mmap(handle, SECONDS.size)
    finally:
        os.close(handle)


def _keep_pace() -> str:
    from vllm.v1.engine.core import EngineCoreProc

    core: Any = EngineCoreProc
    core._process_engine_step = paced(core._process_engine_step, open_pace(os.environ[PACE]))
    return "iterations keep the pace that they are told"


def paced(step: Callable[[Any], Any], told: mmap.mmap) -> Callable[[Any], Any]:
    """Returns ``step`` such that it begins at least the told seconds after it last began."""
    began = 0.0

    def later(core: Any) -> Any:
        nonlocal began
        while (rest := began + SECONDS.unpack_from(told)[0] - time.monotonic()) > 0:
            time.sleep(min(rest, PACE_LOOK_S))
        began = time.monotonic()
        return step(core)

    return later


def _mask_padding() -> str:
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    length = int(os.environ[IDS])
    wrapped: Any = LogitsProcessor.forward

    def forward(self: Any, *arguments: Any, skip_gather: bool = False, **named: Any) -> Any:
        logits = wrapped(self, *arguments, skip_gather=skip_gather, **named)
        # With skip_gather it is a part of the vocabulary, whose ids begin elsewhere.
        return logits if logits is None or skip_gather else mask(logits, length)

    LogitsProcessor.forward = forward
    return f"ids from {length} on are never sampled"


def mask(logits: Any, length: int) -> Any:
    """Puts the logits of ids from ``length`` on, which the tokenizer does not have, to -inf, in place."""
    if logits.shape[-1] > length:
        logits[..., length:] = -float("inf")
    return logits


def _spin_less() -> str:
    from vllm.distributed.device_communicators import shm_broadcast

    condition: Any = shm_broadcast.SpinCondition
    start = condition.__init__
    names = start.__code__.co_varnames[: start.__code__.co_argcount]
    if names[-1] != "busy_loop_s" or start.__defaults__ is None or len(start.__defaults__) != 1:
        raise TypeError("SpinCondition is another one than expected")
    start.__defaults__ = (SPIN_S,)
    return f"readers spin for {SPIN_S * 1000:g} ms"


def _select_the_nucleus() -> str:
    from vllm.v1.sample.ops import topk_topp_sampler

    sampler: Any = topk_topp_sampler
    by_sorting = sampler.apply_top_k_top_p_pytorch

    def select(logits: Any, k: Any, p: Any, allow_cpu_sync: bool = False) -> Any:
        if p is None or k is not None:
            return by_sorting(logits, k, p, allow_cpu_sync)

        def sorted_out(some: Any, masses: Any) -> Any:
            return by_sorting(some, None, masses, allow_cpu_sync)

        return nucleus(logits, p, sorted_out)

    sampler.apply_top_k_top_p_pytorch = select
    return "nuclei are selected"


def nucleus(logits: Any, p: Any, by_sorting: Any) -> Any:
    """Puts all logits outside of each row's nucleus to -inf.

    ``logits``: (rows, vocabulary), changed in place. ``p``: (rows,), in (0, 1]; a row of 1 stays whole. A token is in the nucleus
    if those before it, from the most probable one down, have less than ``p`` of the probability together; the first always is.
    ``by_sorting``: does the same to (some rows, their masses), for rows whose nucleus is large.
    """
    import torch

    rows = torch.nonzero(p < 1).flatten()
    for few in FEW:
        if not len(rows) or few >= logits.shape[1]:
            break
        some, mass = logits[rows], p[rows].unsqueeze(1)
        values, ids = some.topk(few, dim=-1)
        probabilities = (values - some.logsumexp(-1, keepdim=True)).exp()
        before = probabilities.cumsum(-1) - probabilities
        inside = before < mass
        inside[:, 0] = True
        found = ~inside[:, -1]
        kept = torch.full_like(some[found], -float("inf"))
        kept.scatter_(1, ids[found], values[found].masked_fill_(~inside[found], -float("inf")))
        logits[rows[found]] = kept
        rows = rows[~found]
    if len(rows):
        logits[rows] = by_sorting(logits[rows], p[rows])
    return logits
