"""Loads what an engine on a CPU needs. Imported by the nursery alone (``vllm_nursery.py``), whose copies then have it."""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

NEEDED = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)

for name in NEEDED:
    with suppress(ImportError):  # another version of vLLM: each engine loads it by itself
        import_module(name)
with suppress(ImportError):
    # It finds the title's place from the environment as it was at the start, which a copy replaces.
    import_module("setproctitle").getproctitle()
gc.collect()
gc.freeze()  # the collector would write into each object, and so copy the memory that engines share
