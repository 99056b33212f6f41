"""What became of one attack, so that it can be counted and made again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from attack.attempts import Fault
from attack.drawn import labels, told

if TYPE_CHECKING:
    from workloads import Workload


@dataclass
class Report:
    """``about``: the attack in one line; ``labels``: the kinds of configuration that it falls under; ``counts``: of what was
    done.
    """

    kind: str
    seed: int
    about: str
    labels: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list[Fault])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def of(cls, kind: str, seed: int, work: Workload) -> Self:
        return cls(kind, seed, told(work), labels(work))

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def __str__(self) -> str:
        again = f"again: python tests/soak.py --only {self.kind}:{self.seed}"
        return "\n".join([f"{self.kind} {self.seed}: {self.about}", *map(str, self.faults), again])
