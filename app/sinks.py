"""Makes the sinks of other packages that ``--sink`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime import plugins
from speclrm.runtime.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speclrm.runtime.protocols import Sink

GROUP = "speclrm.sinks"
"""Entry points of packages that bring sinks: each a name, and a callable without arguments that returns a sink."""


def named_sinks(names: Iterable[str]) -> list[Sink]:
    """Makes the sinks of these names: entry points, MODULE:NAME or FILE.py:NAME.

    Raises:
        SettingsError: there is no such sink, or it cannot be made.
    """
    return [_named(name) for name in names]


def _named(name: str) -> Sink:
    brought = plugins.find(GROUP, "sink", name)
    if brought is None:
        there = ", ".join(sorted(plugins.installed(GROUP))) or "none"
        raise SettingsError(
            f"There is no sink called {name!r}. Installed packages bring: {there}. Or give MODULE:NAME or FILE.py:NAME."
        )
    make, what = brought
    try:
        sink = make()
    except Exception as error:  # that code may raise anything
        raise SettingsError(f"{what} cannot be made: {type(error).__name__}: {error}.") from error
    if missing := [verb for verb in ("emit", "room", "aclose") if not callable(getattr(sink, verb, None))]:
        raise SettingsError(f"{what} gives no sink: a {type(sink).__name__} has no {missing[0]}() (speclrm.Sink).")
    return sink
