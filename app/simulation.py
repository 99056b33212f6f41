"""Finds simulated models (``sim/...``) and datasets (``sim:...``) by their names."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.engines.restarting import CACHE_SHARE, restarting
from speclrm.runtime.engines.simulated.presets import (
    DATA_PREFIX,
    check_names,
    engines_world,
    is_simulated,
    simulated_engines,
    slices,
    world_settings,
)
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.machine.sizing import check_length
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_parts import Components

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AsyncExitStack

    from pydantic import JsonValue

    from speclrm.app.options import EngineOptions
    from speclrm.app.progress import Notify
    from speclrm.runtime.engine import Engine, Tokenizer
    from speclrm.runtime.engines.restarting import StartAnew
    from speclrm.runtime.engines.simulated.engine import SimulatedEngine
    from speclrm.runtime.machine.sizing import Work
    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.settings import EngineSettings
    from speclrm.strategies.family import Family

DEFAULT_MIX = "aime-mix"

SIMULATED_LOAD_S = 40.0
"""Virtual seconds that a simulated engine takes to start anew: a vLLM engine took 20 to 75 s to load on a CPU."""


def model_names(options: EngineOptions) -> dict[Role, str]:
    """Returns the given models by role, in the order of roles, in which engines on one device take turns."""
    names = {Role.TARGET: options.target, Role.DRAFT: options.draft}
    return {role: name for role in Role if (name := names[role]) is not None}


def simulated(options: EngineOptions) -> bool:
    """Returns whether the engines are simulated. Raises SettingsError if only one is, ModelError for an unknown one."""
    names = model_names(options)
    kinds = {is_simulated(name) for name in names.values()}
    if len(kinds) > 1:
        raise SettingsError(
            f"{options.target} and {options.draft}: one is simulated and one is real, and their times have nothing to do "
            "with each other. Give two of one kind."
        )
    if kinds == {True}:
        check_names(names)
    return kinds == {True}


def is_simulated_dataset(dataset: str) -> bool:
    return dataset.startswith(DATA_PREFIX)


def simulated_problems(dataset: str, options: EngineOptions, seed: int) -> list[Problem]:
    """Returns the problems of ``sim:MIX`` or ``sim:MIX?size=N``. Raises SettingsError if the engines are real."""
    if not simulated(options):
        raise SettingsError(
            f"{dataset} is a world of simulated engines, which real models know nothing of. Give --target "
            "sim/qwq-32b (and --draft sim/r1-1.5b), or another dataset."
        )
    settings = world_settings(_mix(dataset))
    query = dataset.partition("?")[2]
    size = query.removeprefix("size=") or "11"
    if not size.isdigit() or query.partition("=")[0] not in ("", "size"):
        raise SettingsError(
            f"There is no dataset {dataset!r}. Behind the name of a simulated one may stand ?size=N, for another "
            "number of problems."
        )
    return SimulatedWorld(settings, seed).problems(int(size))


def world(options: EngineOptions, dataset: str, seed: int, problems: Iterable[Problem]) -> SimulatedWorld:
    """Returns what simulated models write: by the dataset's world, else the engines' own preset, else the default one."""
    if is_simulated_dataset(dataset):
        settings = world_settings(_mix(dataset))
    else:
        settings = engines_world(model_names(options).values()) or world_settings(DEFAULT_MIX)
    truths = {problem.id: problem.answer for problem in problems if problem.answer is not None}
    return SimulatedWorld(settings, seed, truths)


def _mix(dataset: str) -> str:
    return dataset.removeprefix(DATA_PREFIX).partition("?")[0]


def check_target(options: EngineOptions) -> None:
    """Raises SettingsError if there is none."""
    if options.target is None:
        raise SettingsError("A draft model alone solves nothing: a target judges its steps. Give --target MODEL.")


class SimulatedEngines:
    """Engines that answer from a simulated world."""

    simulated = True

    def __init__(self, options: EngineOptions, dataset: str, seed: int) -> None:
        self._options = options
        self._dataset = dataset
        self._seed = seed
        self._made: dict[Role, list[SimulatedEngine]] = {}

    @property
    def settings(self) -> Mapping[Role, EngineSettings]:
        return {}

    @property
    def servers(self) -> Mapping[str, JsonValue]:
        return {}

    async def size(self, strategy: Family, work: Work, problems: Sequence[Problem], notify: Notify) -> None:
        check_target(self._options)
        self._made = self._make(problems)
        for engines in self._made.values():
            check_length(engines[0].name, engines[0].max_model_len, work)

    def _make(self, problems: Sequence[Problem]) -> dict[Role, list[SimulatedEngine]]:
        """Makes the engines: a replica of each role beside one of the other, as far as there are as many."""
        options = self._options
        said = world(options, self._dataset, self._seed, problems)
        names = model_names(options)
        made: dict[Role, list[SimulatedEngine]] = {role: [] for role in names}
        replicas = {role: getattr(options, f"{role.value}_replicas") for role in names}
        for number in range(max(replicas.values(), default=0)):
            here = {role: name for role, name in names.items() if number < replicas[role]}
            found = simulated_engines(here, said, shared_device=options.shared_device, mps=options.share_gpu == "mps")
            for role, engine in found.items():
                if number:
                    engine.name = f"{engine.name}#{number + 1}"
                made[role].append(engine)
        return made

    async def open(self, stack: AsyncExitStack, notify: Notify) -> Components:
        options = self._options
        engines = {
            role: [restarting(one, _starter(one), options.engine_restarts) for one in several]
            for role, several in self._made.items()
        }

        async def close() -> None:
            await asyncio.gather(*(engine.aclose() for several in engines.values() for engine in several))

        stack.push_async_callback(close)
        # Answers of the simulated world are numbers; worker processes have no place under virtual time.
        return Components(
            engines,
            ExactEquivalence(),
            slices=slices({role: several[0] for role, several in self._made.items()}),
            stall_limit_s=options.stall_timeout,
        )

    async def tokenizers(self) -> Mapping[Role, Tokenizer]:
        return {role: several[0].tokenizer for role, several in self._make(()).items()}


def _starter(first: SimulatedEngine) -> StartAnew:
    """Returns what starts a simulated engine anew."""

    async def start(old: Engine, times: int) -> tuple[Engine, Mapping[str, JsonValue]]:
        await asyncio.sleep(SIMULATED_LOAD_S)
        seqs, tokens = first.cost.max_num_seqs, first.cost.kv_tokens
        cost = dataclasses.replace(
            first.cost, max_num_seqs=max(1, seqs >> times), kv_tokens=max(1, int(tokens * CACHE_SHARE**times))
        )
        changed: dict[str, JsonValue] = (
            {"max_num_seqs": cost.max_num_seqs, "kv_tokens": cost.kv_tokens} if times and cost != first.cost else {}
        )
        return first.anew(cost), changed

    return start
