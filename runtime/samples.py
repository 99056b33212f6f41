"""Runs the samples of a run, a limited number at a time, and tells how the run ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from speclrm.runtime.cleanup import OrderedTaskGroup
from speclrm.runtime.errors import first_of
from speclrm.runtime.events import RunFinished
from speclrm.runtime.places import Places
from speclrm.runtime.protocols import EquivalenceBySample
from speclrm.runtime.replay.recorded_lane import RecordedLane
from speclrm.runtime.replay.recorded_verdicts import RecordedVerdicts
from speclrm.runtime.run_parts import Job
from speclrm.runtime.sample import Sample
from speclrm.runtime.scheduling.engine_counters import Meter
from speclrm.runtime.state import SampleState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from speclrm.runtime.places import Place
    from speclrm.runtime.protocols import Equivalence, Role
    from speclrm.runtime.replay.playback import Playback, SamplePlayback
    from speclrm.runtime.scheduling.requests import RequestLane
    from speclrm.runtime.scheduling.scheduler import Scheduler
    from speclrm.runtime.trace.bus import EventBus

STARTED_AT_ONCE = 64
"""Samples that start together before other tasks have their turn: the first events of thousands would overwhelm every sink."""


class Samples:
    """Runs samples on one scheduler. ``orders``: numbers samples by age, over all runs of the runtime."""

    def __init__(self, scheduler: Scheduler, judge: Equivalence, orders: Iterator[int]) -> None:
        self._scheduler = scheduler
        self._judge = judge
        self._orders = orders

    async def run(
        self,
        jobs: Sequence[Job | SampleState],
        concurrency: int | None,
        bus: EventBus,
        playback: Playback | None = None,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[SampleState, ...]:
        """Runs the samples, a limited number at a time (None: all), and publishes the run's end.

        ``begin``: lets a resumed run continue. It is called when the samples of its ``playback`` that had begun have
        caught up with the trace, for which they need no place.
        """
        meter = Meter(self._scheduler)
        places = Places(concurrency or max(1, len(jobs)))
        controller = self._scheduler.controller
        released = asyncio.Event()
        states = {number: job for number, job in enumerate(jobs) if isinstance(job, SampleState)}
        begun: list[tuple[int, Job, SamplePlayback]] = []
        anew: list[tuple[int, Job]] = []
        for number, job in enumerate(jobs):
            if isinstance(job, Job):
                again = None if begin is None or playback is None else playback.sample(job.problem.id, job.repeat)
                if again is not None and again.began:
                    begun.append((number, job, again))
                else:
                    anew.append((number, job))

        async def start(group: asyncio.TaskGroup) -> None:
            """Starts one sample after the other, each when there is a place for it."""
            if begin is not None:
                await released.wait()
            for count, (number, job) in enumerate(anew, 1):
                place = places.place()
                await place.take()
                if controller is not None:
                    controller.calls.queue(places, len(anew) - count)
                task = group.create_task(run(number, job, place), name=f"sample {number}")
                task.add_done_callback(lambda _, place=place: place.leave())
                if count % STARTED_AT_ONCE == 0:
                    await asyncio.sleep(0)

        async def run(number: int, job: Job, place: Place) -> None:
            states[number] = await self._sample(job, bus, place)

        async def go_on(number: int, job: Job, again: SamplePlayback) -> None:
            place = places.place()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(self._sample(job, bus, place), name=f"sample {number} again")
                await released.wait()
                await place.take()
                try:
                    again.go_on()
                    await asyncio.wait({running})
                finally:
                    place.leave()
            states[number] = running.result()

        async def catch_up(playback: Playback, begin: Callable[[], Awaitable[None]]) -> None:
            await playback.caught_up([again for _, _, again in begun])
            await begin()
            released.set()

        def finish(status: Any, error: str | None = None) -> None:
            bus.publish(
                RunFinished(
                    status=status,
                    seconds=bus.elapsed_s,
                    error=error,
                    busy_s=meter.busy_s(),
                    engines=meter.reports(),
                    deferred=meter.deferred,
                )
            )

        try:
            with self._scheduler.told(bus.publish):
                async with OrderedTaskGroup() as group:
                    if playback is not None and begin is not None:
                        group.create_task(catch_up(playback, begin), name="catching up")
                    for number, job, again in begun:
                        group.create_task(go_on(number, job, again), name=f"sample {number} goes on")
                    group.create_task(start(group), name="starting samples")
                if controller is not None and len(jobs) == 1:
                    controller.calls.singles += 1
        except asyncio.CancelledError:
            finish("cancelled")
            raise
        except BaseExceptionGroup as errors:
            first = first_of(errors)
            finish("failed", f"{type(first).__name__}: {first}")
            raise first from None
        finally:
            if controller is not None:
                controller.calls.queue(places, 0)
        finish("finished")
        return tuple(states[number] for number in range(len(jobs)))

    async def _sample(self, job: Job, bus: EventBus, place: Place) -> SampleState:
        problem, playback = job.problem, job.playback
        await bus.turn("problem_started", problem.id, job.repeat)
        lanes: Mapping[Role, RequestLane] = self._scheduler.lanes
        equivalence = self._judge.of_sample() if isinstance(self._judge, EquivalenceBySample) else self._judge
        again: SamplePlayback | None = None
        if playback is not None:
            again = playback.sample(problem.id, job.repeat)
            lanes = {role: RecordedLane(lane, again) for role, lane in lanes.items()}
            equivalence = RecordedVerdicts(again, equivalence)
        sample = Sample(
            problem,
            job.repeat,
            order=next(self._orders),
            seed=job.seed,
            strategy=job.strategy,
            scheduler=self._scheduler,
            lanes=lanes,
            record=again,
            equivalence=equivalence,
            bus=bus,
            track_ended=place.track_ended,
        )
        return await sample.run()
