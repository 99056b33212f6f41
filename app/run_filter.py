"""Filters runs by dataset, model, size and strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.evaluators.benchmarks import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class Wanted:
    """The wanted runs. None, or no strategy, means all.

    ``dataset``: with all its splits. ``model``: the target's name or the last part of it, in any letter case.
    ``model_size``: the end of that part, such as ``32b``. ``strategies``: their own names.
    """

    dataset: str | None = None
    model: str | None = None
    model_size: str | None = None
    strategies: tuple[str, ...] = ()

    def takes(self, config: Mapping[str, JsonValue]) -> bool:
        """Returns whether a run is wanted. ``config``: the configuration at the beginning of its trace."""
        target = last_part(str(config.get("target")))
        return (
            (self.dataset is None or _whole(str(config.get("dataset"))) == _whole(self.dataset))
            and (self.model is None or target == last_part(self.model))
            and (self.model_size is None or f"-{target}".endswith(f"-{self.model_size.casefold()}"))
            and (not self.strategies or config.get("strategy") in self.strategies)
        )

    def __str__(self) -> str:
        size = None if self.model_size is None else f"size {self.model_size}"
        return ", ".join(filter(None, [self.dataset, self.model, size, " or ".join(self.strategies)]))


def last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _whole(dataset: str) -> str:
    return canonical(dataset).partition(":")[0]
