"""Upgrades events of older schema versions: one function a version, which turns an event of that version into one of the next.

They work on the JSON objects, before anything is checked, so an old version needs no models of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speclrm.runtime.events import SCHEMA_VERSION, WIDE_IDS

if TYPE_CHECKING:
    from collections.abc import Callable

JsonObject = dict[str, Any]


def _from_1(event: JsonObject) -> JsonObject:
    """Upgrades version 1, which wrote four bytes a token id where version 2 writes three, and had modes of whole
    samples, never written.
    """
    match event.get("kind"):
        case "run_started":
            return event | {"schema_version": 2}
        case "step_drafted" | "step_written":
            return event | {"ids": WIDE_IDS + event["ids"]}
        case "track_started":
            wide = {
                name: {role: WIDE_IDS + ids for role, ids in event.get(name, {}).items()}
                for name in ("prompt_ids", "opening_ids")
            }
            return event | wide
        case _:
            return event


def _from_2(event: JsonObject) -> JsonObject:
    """Upgrades version 2, which did not record when tracks waited for room, nor what the controller saw."""
    return event | {"schema_version": 3, "begun_in_form": 2} if event.get("kind") == "run_started" else event


UPGRADES: dict[int, Callable[[JsonObject], JsonObject]] = {1: _from_1, 2: _from_2}
"""By the version that they read."""


def upgraded(event: JsonObject, version: int) -> JsonObject:
    """Returns the event in the current version. ``version``: that of the trace. Raises KeyError if it is no event of
    that version.
    """
    while version < SCHEMA_VERSION:
        event = UPGRADES[version](event)
        version += 1
    return event
