"""Finds strategies by name: those of the experiments, with their defaults, those of installed packages, and classes."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from speclrm.runtime import plugins
from speclrm.runtime.errors import SettingsError
from speclrm.strategies.direct import Direct
from speclrm.strategies.family import Family
from speclrm.strategies.recipe import Recipe
from speclrm.strategies.speculative import Speculative

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "speclrm.strategies"
"""Entry points of packages that bring strategies: a name each, and a subclass of ``Family``."""
STRATEGIES: dict[str, tuple[type[Family], Recipe]] = {
    "baseline": (Direct, Recipe(tracks=1)),
    "parallel": (Direct, Recipe(tracks=3)),
    "speculative": (Speculative, Recipe(tracks=3, plan="drawn")),
    "speculative-methods": (Speculative, Recipe(tracks=3, plan="chosen")),
}
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "direct": ("baseline", {}),
    "majority": ("parallel", {}),
    "ssr": ("speculative", {}),
    "ssr-m": ("speculative-methods", {}),
    # One chain without hints, as in the paper: arXiv 2504.07891, section 3.
    "specreason": ("speculative", {"tracks": 1, "plan": "plain"}),
}
"""Other names of strategies, with what each sets differently."""
ORIGINAL: dict[str, Any] = {
    "prompt_style": "raw",
    "closing": False,
    "speculate": "always",
    "draft_ahead": "never",
    "rewrite_ahead": "never",
}
"""Changes of ``fidelity="original"`` to a recipe's defaults: the original has none of these."""


def defaults(name: str) -> Recipe:
    """Returns the recipe of a strategy before any option. Raises SettingsError for an unknown name."""
    return _entry(name)[1]


def strategy(
    name: str,
    find_answer: Callable[[str], str | None],
    finished_answer: Callable[[str, str], str | None] | None = None,
    /,
    **options: Any,
) -> Family:
    """Returns a strategy by its name or alias, with options of its recipe; None leaves an option at its default.

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
            ALIASES.get(name, (name,))[0],
            finished_answer=finished_answer,
        )
    except ValidationError as error:
        raise SettingsError(f"Strategy {name}: {_all_told(error)}.") from error


def _all_told(error: ValidationError) -> str:
    """Returns all that is wrong. A default that is made from other options fails with them, and nobody gave it."""
    items = [dict(item) for item in error.errors()]
    return "; ".join(_told(item) for item in items if item["type"] != "default_factory_not_called")


def _told(item: dict[str, Any]) -> str:
    """Describes one error, with its value if it is that of a single option."""
    place = ".".join(map(str, item["loc"]))
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{place} = {item['input']!r}: {message}" if place else message


def names() -> list[str]:
    """Returns all names of strategies: built-in names, aliases, and those of installed packages."""
    return [*STRATEGIES, *ALIASES, *sorted(set(plugins.installed(GROUP)) - {*STRATEGIES, *ALIASES})]


def _entry(name: str) -> tuple[type[Family], Recipe]:
    known, changes = ALIASES.get(name, (name, {}))
    found = plugins.find(GROUP, "strategy", name, [*STRATEGIES, *ALIASES])
    if found is not None:
        return _family(*found)
    if known in STRATEGIES:
        family, recipe = STRATEGIES[known]
        return family, recipe.model_copy(update=changes)
    close = difflib.get_close_matches(known, names(), n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    raise SettingsError(
        f"There is no strategy called {name!r}. There are: {', '.join(sorted({*STRATEGIES, *plugins.installed(GROUP)}))}; or "
        f"give MODULE:CLASS or FILE.py:CLASS.{meant}"
    )


def _family(found: Any, what: str) -> tuple[type[Family], Recipe]:
    if not isinstance(found, type) or not issubclass(found, Family):
        raise SettingsError(f"{what} is no class that is made from speclrm.Family.")
    try:
        return found, Recipe.model_validate(dict(found.defaults))
    except ValidationError as error:
        raise SettingsError(f"{what}: its defaults are wrong: {_all_told(error)}.") from error
