"""Finds simulated models (``sim/...``) and datasets (``sim:...``) by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.engines.simulated.presets import (
    DATA_PREFIX,
    check_names,
    engines_world,
    is_simulated,
    world_settings,
)
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speclrm.app.options import EngineOptions
    from speclrm.runtime.protocols import Problem

DEFAULT_MIX = "aime-mix"


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
