"""Finds what other packages bring: by an entry point of theirs, by MODULE:NAME, or by FILE.py:NAME."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

from speclrm.runtime.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Container
    from types import ModuleType


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Returns the entry points of a group by their names."""
    return {one.name: one for one in entry_points(group=group)}


def find(group: str, kind: str, name: str, builtin: Container[str] = ()) -> tuple[Any, str] | None:
    """Returns what is called ``name``, and how errors call it; None if nobody brings it. ``kind``: one word for errors.

    Raises:
        SettingsError: it cannot be imported, or a package brings it under a name in ``builtin``.
    """
    brought = installed(group).get(name)
    if brought is not None:
        package = brought.dist.name if brought.dist is not None else brought.module
        if name in builtin:
            raise SettingsError(
                f"The package {package} brings a {kind} called {name!r}, which is the name of a built-in one. Give it as "
                f"{brought.value}, or remove the package; for the built-in one remove the package."
            )
        what = f"{kind.capitalize()} {name!r} of the package {package}"
        return load(brought.value, what), what
    if ":" in name and name not in builtin:
        what = f"{kind.capitalize()} {name!r}"
        return load(name, what), what
    return None


def load(value: str, what: str) -> Any:
    """Returns the object called MODULE:NAME or FILE.py:NAME. Raises SettingsError, which calls it ``what``."""
    place, _, name = value.rpartition(":")
    try:
        module = _from_file(place) if place.endswith(".py") else import_module(place)
    except Exception as error:  # that code may raise anything
        raise SettingsError(f"{what} cannot be imported: {type(error).__name__}: {error}.") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise SettingsError(f"{what}: {place} has no {name!r}.") from None


def _from_file(path: str) -> ModuleType:
    name = f"speclrm_plugin_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
