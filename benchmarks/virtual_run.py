"""Runs problems on simulated engines in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.simulated.presets import simulated_engines, slices
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from speclrm.runtime.engines.simulated.engine import SimulatedEngine
    from speclrm.runtime.engines.simulated.text_world import SimulatedWorld
    from speclrm.runtime.protocols import Role, Sink
    from speclrm.strategies.family import Family


def simulate_run(
    strategy: Family,
    world: SimulatedWorld,
    names: Mapping[Role, str],
    sink: Sink,
    *,
    problems: int,
    concurrency: int,
    shared: bool,
    seed: int,
    mps: bool = False,
    paced: bool = True,
) -> Mapping[Role, SimulatedEngine]:
    """Runs the first ``problems`` of the world, and returns the engines, closed, for their counters.

    ``names``: presets by role, of which the strategy's are used. ``shared``: the engines have one device, by time slices or,
    with ``mps``, side by side. ``paced``: where they share it by time slices, the draft has a pace.
    """
    made: dict[Role, SimulatedEngine] = {}

    async def main() -> None:
        engines = simulated_engines(
            {role: names[role] for role in strategy.roles}, world, shared_device=shared, mps=mps
        )
        made.update(engines)

        async def open_components(_: AsyncExitStack) -> Components:
            return Components(dict(engines), ExactEquivalence(), slices=paced and slices(engines))

        async with Runtime(open_components) as runtime:
            await runtime.run(world.problems(problems), strategy, seed=seed, concurrency=concurrency, required=[sink])
        await asyncio.gather(*(engine.aclose() for engine in engines.values()))

    run_virtual(main())
    return made
