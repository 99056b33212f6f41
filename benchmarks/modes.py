"""Reads what a benchmark compares: strategies with options, written as ``NAME`` or ``NAME:option=value:option=value``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from speclrm.app import original_faults
from speclrm.app.resolve import make_strategy
from speclrm.runtime.errors import SettingsError
from speclrm.strategies.catalog import defaults
from speclrm.strategies.recipe import Recipe

if TYPE_CHECKING:
    from speclrm.strategies.family import Family

LOCK_STEP = "lock-step"
SHORT = {LOCK_STEP: "speculative:speculate=always:fault=rounds"}
"""Short names for modes. Lock-step is the original's way: every track waits for all others after each phase of a step."""


class Mode(BaseModel):
    """A strategy with options. ``options``: of the strategy's recipe. ``fault``: one of the original's that is on meanwhile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    strategy: str
    options: dict[str, str]
    fault: str | None = None

    def family(self, **common: Any) -> Family:
        """Returns the strategy, with options that all modes share. Raises SettingsError for an option that it does not have."""
        return make_strategy(self.strategy, **{**common, **self.options})

    def reproduced(self) -> AbstractContextManager[None]:
        if self.fault is None:
            return nullcontext()
        return original_faults.reproduced([self.fault])


def read_modes(text: str) -> list[Mode]:
    """Reads modes separated by commas. Raises SettingsError: one is unknown, or given twice."""
    modes = [_read(part.strip()) for part in text.split(",") if part.strip()]
    names = [mode.name for mode in modes]
    if not modes or len(set(names)) < len(names):
        raise SettingsError(f"--modes {text!r}: write one or more different modes with commas between.")
    return modes


def _read(text: str) -> Mode:
    strategy, *pairs = SHORT.get(text, text).split(":")
    defaults(strategy)  # raises for an unknown strategy at once
    options: dict[str, str] = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        name = name.replace("-", "_")
        if not given or (name != "fault" and name not in Recipe.model_fields):
            raise SettingsError(
                f"Mode {text!r}: {pair!r} is no option=value. Options are {', '.join(sorted(Recipe.model_fields))}, "
                "and fault."
            )
        options[name] = value
    fault = options.pop("fault", None)
    if fault is not None:
        original_faults.check(fault)
    return Mode(name=text, strategy=strategy, options=options, fault=fault)
