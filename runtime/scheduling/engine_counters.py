"""Measures what the engines did during a run: counters of engines and queues at its end less those at its beginning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.events import EngineFacts, EngineReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.scheduling.engine_queue import LaneStats
    from speclrm.runtime.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over a role's engines; seconds are their mean."""

    busy_s: float
    idle_ready_s: float
    iterations: int
    batched: int
    preemptions: int
    operations: int
    waited_s: float
    output_tokens: int

    @classmethod
    def of(cls, stats: Sequence[LaneStats]) -> _Totals:
        return cls(
            busy_s=sum(one.busy_s for one in stats) / len(stats),
            idle_ready_s=sum(one.idle_ready_s for one in stats) / len(stats),
            iterations=sum(one.engine.iterations for one in stats),
            batched=sum(one.engine.batched for one in stats),
            preemptions=sum(one.engine.preemptions for one in stats),
            operations=sum(one.operations for one in stats),
            waited_s=sum(one.waited_s for one in stats),
            output_tokens=sum(one.engine.output_tokens for one in stats),
        )


class Meter:
    """Measures from its creation on. Work of other runs on the same engines is included."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._before = self._totals()
        self._deferred = scheduler.admission.deferred

    def facts(self) -> dict[str, EngineFacts]:
        """Returns what the engines are, by role."""
        facts: dict[str, EngineFacts] = {}
        for role, lane in self._scheduler.lanes.items():
            stats = lane.engine.stats()
            facts[role.value] = EngineFacts(
                name=lane.engine.name,
                parameters=stats.parameters,
                kv_tokens=stats.kv_tokens,
                max_num_seqs=lane.engine.max_num_seqs,
                replicas=len(lane.queues),
            )
        return facts

    @property
    def deferred(self) -> int:
        return self._scheduler.admission.deferred - self._deferred

    def busy_s(self) -> dict[str, float]:
        """Returns the seconds in which each role's engines had work."""
        return {role: round(totals.busy_s - self._before[role].busy_s, 6) for role, totals in self._totals().items()}

    def reports(self) -> dict[str, EngineReport]:
        """Returns what else they did, by role."""
        reports: dict[str, EngineReport] = {}
        for role, totals in self._totals().items():
            before = self._before[role]
            reports[role] = EngineReport(
                idle_ready_s=round(totals.idle_ready_s - before.idle_ready_s, 6),
                iterations=totals.iterations - before.iterations,
                batched=totals.batched - before.batched,
                preemptions=totals.preemptions - before.preemptions,
                operations=totals.operations - before.operations,
                waited_s=round(totals.waited_s - before.waited_s, 6),
                output_tokens=totals.output_tokens - before.output_tokens,
            )
        return reports

    def _totals(self) -> dict[str, _Totals]:
        return {role.value: _Totals.of(stats) for role, stats in self._scheduler.stats().items()}
