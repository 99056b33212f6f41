"""Finds strategies by name: those of the experiments, with their defaults, those of installed packages, and classes."""

from __future__ import annotations

import difflib
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from speclrm.runtime.errors import SettingsError
from speclrm.strategies.direct import Direct
from speclrm.strategies.family import Family
from speclrm.strategies.recipe import Recipe
from speclrm.strategies.speculative import Speculative

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

GROUP = "speclrm.strategies"
"""Entry points of packages that bring strategies: a name each, and a subclass of ``Family``."""
STRATEGIES: dict[str, tuple[type[Family], Recipe]] = {
    "baseline": (Direct, Recipe(tracks=1)),
    "parallel": (Direct, Recipe(tracks=3)),
    "speculative": (Speculative, Recipe(tracks=3, plan="drawn")),
    "speculative-methods": (Speculative, Recipe(tracks=3, plan="chosen")),
}
ALIASES = {
    "direct": "baseline",
    "majority": "parallel",
    "ssr": "speculative",
    "ssr-m": "speculative-methods",
    "specreason": "speculative",
}
ORIGINAL: dict[str, Any] = {
    "prompt_style": "raw",
    "closing": False,
    "speculate": "always",
    "draft_ahead": "never",
    "rewrite_ahead": "never",
}
"""What ``fidelity="original"`` changes in a recipe unless it is given: the original has none of these."""


def defaults(name: str) -> Recipe:
    """The recipe of a strategy before any option. Raises SettingsError for an unknown name."""
    return _entry(name)[1]


def strategy(
    name: str,
    find_answer: Callable[[str], str | None],
    finished_answer: Callable[[str, str], str | None] | None = None,
    /,
    **options: Any,
) -> Family:
    """A strategy by its name or alias, with options of its recipe; None leaves an option at its default.

    ``find_answer``, ``finished_answer``: as ``Family`` takes them.

    Raises:
        SettingsError: the name or an option is unknown, or a value is out of range.
    """
    family, recipe = _entry(name)
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("fidelity") == "original":
        if family is not Speculative:
            raise SettingsError(
                f"Strategy {name} knows no fidelity original, which is about drafts and scores. Give it to speculative "
                "or speculative-methods."
            )
        given = {**ORIGINAL, **given}
    try:
        return family(
            Recipe.model_validate({**recipe.model_dump(exclude_unset=True), **given}),
            find_answer,
            ALIASES.get(name, name),
            finished_answer=finished_answer,
        )
    except ValidationError as error:
        problems = "; ".join(_told(dict(item)) for item in error.errors())
        raise SettingsError(f"Strategy {name}: {problems}.") from error


def _told(item: dict[str, Any]) -> str:
    """One thing that is wrong, with its value where it is that of a single option."""
    place = ".".join(map(str, item["loc"]))
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{place} = {item['input']!r}: {message}" if place else message


def names() -> list[str]:
    """What a strategy may be called: built-in names, aliases, and those of installed packages."""
    return [*STRATEGIES, *ALIASES, *sorted(set(_installed()) - {*STRATEGIES, *ALIASES})]


def _entry(name: str) -> tuple[type[Family], Recipe]:
    known = ALIASES.get(name, name)
    brought = _installed().get(name) or _installed().get(known)
    if known in STRATEGIES:
        if brought is not None:
            raise SettingsError(
                f"The package {_package(brought)} brings a strategy called {brought.name!r}, which is the name of a built-in "
                f"one. Give it as {brought.value}, or remove the package; for the built-in one remove the package."
            )
        return STRATEGIES[known]
    if brought is not None:
        return _own(brought.value, f"Strategy {name!r} of the package {_package(brought)}")
    if ":" in name:
        return _own(name, f"Strategy {name!r}")
    close = difflib.get_close_matches(known, names(), n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    raise SettingsError(
        f"There is no strategy called {name!r}. There are: {', '.join(sorted({*STRATEGIES, *_installed()}))}; or give "
        f"MODULE:CLASS or FILE.py:CLASS.{meant}"
    )


@cache
def _installed() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=GROUP)}


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def _own(value: str, what: str) -> tuple[type[Family], Recipe]:
    """A class by ``module:Class`` or ``file.py:Class``. Raises SettingsError."""
    place, _, name = value.rpartition(":")
    try:
        module = _from_file(place) if place.endswith(".py") else import_module(place)
    except Exception as error:  # whatever that code raises is its own affair, and told as such
        raise SettingsError(f"{what} cannot be imported: {type(error).__name__}: {error}.") from error
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, Family):
        raise SettingsError(f"{what}: {place} has no class {name!r} that is made from speclrm.Family.")
    try:
        return found, Recipe.model_validate(dict(found.defaults))
    except ValidationError as error:
        problems = "; ".join(_told(dict(item)) for item in error.errors())
        raise SettingsError(f"{what}: its defaults are wrong: {problems}.") from error


def _from_file(path: str) -> ModuleType:
    name = f"speclrm_strategy_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
