"""How many samples are at work, counted by their tracks, under virtual time and at random, by seeds."""

from __future__ import annotations

import asyncio
import random
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from support import ExactAnswers, make_strategy, parts, play

from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.events import Event, ProblemStarted, SampleFinished, TrackFinished, TrackStarted
from speclrm.runtime.places import Places
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.runtime import Runtime

if TYPE_CHECKING:
    from speclrm.runtime.engine import Request
    from speclrm.runtime.events import Outcome

TRACKS = 4
PROBLEMS = [Problem(f"p{number}", f"Problem {number}", "4") for number in range(12)]


def uneven(request: Request, _: str) -> Reply:
    """Answers whose last track takes ten times as long as the first."""
    track = int(request.id.split("/")[2].lstrip("M"))
    return Reply("So it is \\boxed{4}.", wait_s={1: 1.0, 2: 2.0, 3: 3.0}.get(track, 10.0))


def at_work(events: list[Event], kind: type[Event]) -> int:
    """Most tracks at once, or with ``SampleFinished`` most samples."""
    most = now = 0
    begins, ends = (TrackStarted, TrackFinished) if kind is TrackFinished else (ProblemStarted, SampleFinished)
    for event in events:
        now += isinstance(event, begins) - isinstance(event, ends)
        most = max(most, now)
    return most


def test_a_sample_begins_when_as_many_tracks_have_ended_as_it_has() -> None:
    played = play(
        make_strategy("parallel", tracks=TRACKS, plan="plain"), target=uneven, problems=PROBLEMS[:4], concurrency=2
    )
    starts = {event.problem: event.t for event in played.collector.of(ProblemStarted)}
    # By second 2 two tracks each of the first two samples have ended; by second 4 another one each, and two of the third's.
    assert starts["p0"] == starts["p1"] == pytest.approx(0.0, abs=0.5)
    assert starts["p2"] == pytest.approx(2.0, abs=0.5)
    assert starts["p3"] == pytest.approx(4.0, abs=0.5)
    assert at_work(played.collector.events, TrackFinished) <= 2 * TRACKS


def test_one_at_a_time_is_one_at_a_time() -> None:
    played = play(
        make_strategy("parallel", tracks=TRACKS, plan="plain"), target=uneven, problems=PROBLEMS[:3], concurrency=1
    )
    assert at_work(played.collector.events, SampleFinished) == 1


def test_samples_that_are_only_graded_still_count() -> None:
    class Slow(ExactAnswers):
        async def grade(self, answer: str, problem: Problem) -> Outcome:
            await asyncio.sleep(1000)
            return await super().grade(answer, problem)

    starts: list[float] = []

    class Starts:
        def emit(self, event: Event) -> None:
            if isinstance(event, ProblemStarted):
                starts.append(now_s())

        async def room(self) -> None: ...
        async def aclose(self) -> None: ...

    async def main() -> None:
        engines = {Role.TARGET: ScriptedEngine(uneven)}
        async with Runtime(parts(engines, Slow())) as runtime:
            strategy = make_strategy("parallel", tracks=TRACKS, plan="plain")
            await runtime.run(PROBLEMS, strategy, concurrency=1, required=[Starts()])

    run_virtual(main())
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert len(waits) == len(PROBLEMS) - 1
    assert min(waits) >= 1000


@pytest.mark.parametrize("seed", range(40))
def test_no_share_is_lost_or_given_twice_however_samples_come_end_and_are_cancelled(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 4)
    places = Places(count)
    held = Fraction(0)
    most = Fraction(0)
    order: list[int] = []

    async def sample(number: int, tracks: int) -> None:
        nonlocal held, most
        place = places.place()
        left = Fraction(1)
        for _ in range(
            draw.randint(0, tracks) if draw.random() < 0.3 else 0
        ):  # those that ended before the run went on
            place.track_ended(tracks)
            left = max(left - Fraction(1, tracks), Fraction(1, tracks))
        try:
            await place.take()
            order.append(number)
            held += left
            most = max(most, held)
            try:
                for _ in range(tracks):
                    await asyncio.sleep(draw.random())
                    place.track_ended(tracks)
                    held -= left - max(left - Fraction(1, tracks), Fraction(1, tracks))
                    left = max(left - Fraction(1, tracks), Fraction(1, tracks))
                await asyncio.sleep(draw.random())  # graded
            finally:
                held -= left
                place.leave()
                place.leave()
        except asyncio.CancelledError:
            pass

    async def main() -> None:
        tasks = [asyncio.create_task(sample(number, draw.randint(1, 5))) for number in range(30)]
        for task in draw.sample(tasks, 8):
            await asyncio.sleep(draw.random())
            task.cancel()
            if draw.random() < 0.3:
                await asyncio.sleep(0)
                task.cancel()
        async with asyncio.timeout(1000):
            await asyncio.gather(*tasks)
        whole = [places.place() for _ in range(count)]
        async with asyncio.timeout(1):
            for place in whole:
                await place.take()
        late = places.place()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await late.take()
        whole[0].leave()
        async with asyncio.timeout(1):
            await places.place().take()

    run_virtual(main())
    assert held == 0
    assert most <= count
    assert order == sorted(order)


def test_a_place_that_is_given_at_the_moment_of_a_cancellation_goes_to_the_next() -> None:
    async def main() -> None:
        places = Places(1)
        first, second, third = (places.place() for _ in range(3))
        await first.take()
        waits = asyncio.create_task(second.take())
        await asyncio.sleep(0)
        first.leave()
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        async with asyncio.timeout(1):
            await third.take()

    run_virtual(main())


def test_a_smaller_share_behind_a_cancelled_one_does_not_wait_on() -> None:
    async def main() -> None:
        places = Places(1)
        works, whole, half = (places.place() for _ in range(3))
        half.track_ended(2)
        await works.take()
        waits = [asyncio.create_task(place.take()) for place in (whole, half)]
        await asyncio.sleep(0)
        works.track_ended(2)
        await asyncio.sleep(0)
        assert not waits[1].done()  # first come, first served
        waits[0].cancel()
        async with asyncio.timeout(1):
            await waits[1]

    run_virtual(main())


def test_one_that_was_cancelled_is_passed_over_before_it_knows() -> None:
    async def main() -> None:
        places = Places(1)
        first, second, third = (places.place() for _ in range(3))
        await first.take()
        waits = [asyncio.create_task(place.take()) for place in (second, third)]
        await asyncio.sleep(0)
        waits[0].cancel()
        first.leave()  # in the same turn of the loop
        with pytest.raises(asyncio.CancelledError):
            await waits[0]
        async with asyncio.timeout(1):
            await waits[1]

    run_virtual(main())
