"""How long a run will still take, told while it goes, under virtual time."""

from __future__ import annotations

import math
import random
from statistics import mean
from typing import TYPE_CHECKING

import pytest

from speclrm.app.time_left import TimeLeft
from speclrm.app.track_lengths import Law, Lengths
from speclrm.benchmarks.studies.time_left import CASES, GOAL, Case, Messages, simulate
from speclrm.runtime.events import (
    ProblemStarted,
    RunResumed,
    RunStarted,
    SampleFinished,
    StepCommitted,
    TrackFinished,
    TrackStarted,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

    from speclrm.runtime.events import Event


@pytest.mark.parametrize(
    ("case", "steps"),
    [
        (CASES["baseline"], 24.0),
        (CASES["parallel"], 16.0),
        (Case("speculative", 60, 6, options={"tracks": 2, "token_budget": 1000}), 12.0),
    ],
    ids=["baseline", "parallel", "speculative"],
)
def test_nine_in_ten_messages_after_a_fifth_of_a_run_are_within_30_percent(case: Case, steps: float) -> None:
    messages = Messages()
    for seed in range(2):
        messages.read(simulate(case, seed, steps=steps))
    assert len(messages.ratios) > 50
    assert messages.share >= GOAL, messages.line(case.strategy)
    assert messages.none == 0


@pytest.mark.parametrize("name", ["one turn", "one turn, one track"])
def test_where_one_number_would_lie_a_range_holds_the_truth(name: str) -> None:
    messages = Messages()
    for seed in range(4):
        messages.read(simulate(CASES[name], seed))
    assert messages.share >= GOAL, messages.line(name)
    assert messages.widths


def test_many_samples_of_like_lengths_are_told_by_one_number_and_a_single_long_one_by_a_range() -> None:
    left = TimeLeft(50)
    left.add(started(1))
    for number in range(20):
        for event in sample(number, 10.0 * number, 100, 10.0 * number + 10):
            left.add(event)
    assert (many := left.left(200.0)) is not None
    assert many.sure
    left.samples = 21
    for event in sample(20, 200.0, 100, None):
        left.add(event)
    assert (one := left.left(203.0)) is not None
    assert one.low < one.seconds < one.high


def repeats_of(seconds_each: dict[str, float], repeats: int, known: int) -> TimeLeft:
    """After so many samples one by one, each of 100 tokens."""
    left = TimeLeft(len(seconds_each) * repeats)
    left.add(started(1, repeats))
    now = 0.0
    samples = [(problem, repeat) for problem in seconds_each for repeat in range(repeats)]
    for problem, repeat in samples[:known]:
        for event in sample(0, now, 100, now + seconds_each[problem]):
            left.add(event.model_copy(update={"problem": problem, "repeat": repeat}))
        now += seconds_each[problem]
    return left


def test_the_repeats_of_one_problem_do_not_tell_how_fast_other_problems_are() -> None:
    told = repeats_of({"a": 10.0, "b": 10.0, "c": 10.0}, 8, 8).left(80.0)
    assert told is not None
    assert not told.sure
    alone = repeats_of({f"p{number}": 10.0 for number in range(24)}, 1, 8).left(80.0)
    assert alone is not None
    assert alone.sure


def test_what_is_left_of_a_problem_goes_by_its_own_speed() -> None:
    """The last six samples are of the slow problem: 180 s, whatever the mean of all is."""
    told = repeats_of({"a": 10.0, "b": 30.0}, 8, 10).left(140.0)
    assert told is not None
    assert told.seconds == pytest.approx(180.0, rel=0.2)


def test_a_track_that_is_already_long_tells_of_the_others_of_its_sample() -> None:
    """Lengths of a sample are alike: three that run on far beyond the mean are each likelier to be long than one alone."""
    law = Law(0.0, math.log(100), 0.5, 0.2)

    def of_first(so_far: list[float]) -> float:
        draw = random.Random(3)
        return mean(law.rest([], so_far, draw)[0] for _ in range(2000))

    assert of_first([150.0, 180.0, 180.0]) > 1.05 * of_first([150.0])


def test_the_law_from_few_lengths_is_less_sure_than_that_from_many() -> None:
    def spread(count: int) -> float:
        draw = random.Random(1)
        lengths = Lengths()
        for _ in range(count):
            length = max(1, round(draw.gauss(200, 40)))
            lengths.add(length)
            lengths.group([length])
        drawn = [law.back(law.mean) for law in (lengths.law(None).possible(draw) for _ in range(500))]
        return (sorted(drawn)[475] - sorted(drawn)[25]) / mean(drawn)

    assert spread(4) > 2 * spread(64)


def test_short_tracks_that_end_first_do_not_stand_for_all() -> None:
    """Two of 20 tracks ended after 10 tokens, and the others have 100 so far: what is left is not next to nothing."""
    lengths = Lengths()
    for _ in range(2):
        lengths.add(10)
    for _ in range(18):
        lengths.add_cut(100)
    law = lengths.law(None)
    assert law.back(law.mean) > 100


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_law_of_lengths_is_found_from_lengths_of_which_a_third_was_cut_off(power: float) -> None:
    draw = random.Random(5)
    true = [math.exp(draw.gauss(5, 0.6)) if not power else draw.gauss(200, 60) for _ in range(600)]
    lengths = Lengths()
    cut = sorted(true)[400]
    for length in map(int, true):
        if length > cut:
            lengths.add_cut(cut)
        else:
            lengths.add(max(1, length))
    law = lengths.law(None)
    drawn = [law.back(draw.gauss(draw.gauss(law.mean, law.shared), law.own)) for _ in range(4000)]
    assert mean(drawn) == pytest.approx(mean(true), rel=0.08)


def sample(number: int, start: float, tokens: int, end: float | None) -> list[Event]:
    """A sample of one track that writes its tokens in one step."""
    where = {"problem": f"p{number}", "repeat": 0}
    events: list[Event] = [
        ProblemStarted(**where, t=start, text="", gold=None),  # type: ignore[arg-type]
        TrackStarted(**where, t=start, track="M1", hint="", prompt_ids={}),  # type: ignore[arg-type]
    ]
    if end is not None:
        events += [
            StepCommitted(**where, t=end, track="M1", step=0, origin="write", tokens=tokens, score=None),  # type: ignore[arg-type]
            TrackFinished(**where, t=end, track="M1", reason="answer", answer="4", tokens=tokens),  # type: ignore[arg-type]
            SampleFinished(**where, t=end, answer="4", winner="M1", outcome="correct", seconds=end - start),  # type: ignore[arg-type]
        ]
    return events


def started(concurrency: int, repeats: int = 1) -> RunStarted:
    config: dict[str, JsonValue] = {"concurrency": concurrency, "repeats": repeats}
    return RunStarted(run="r", started="", config=config, versions={}, machine={})


def test_equal_samples_one_after_the_other_take_what_their_number_says() -> None:
    left = TimeLeft(50)
    left.add(started(1))
    for number in range(20):
        for event in sample(number, 10.0 * number, 100, 10.0 * number + 10):
            left.add(event)
    first, later = left.left(200.0), left.left(203.0)
    assert first
    assert later
    assert first.seconds == pytest.approx(300.0, rel=0.1)
    assert later.seconds == pytest.approx(first.seconds - 3.0)  # it counts down where nothing happens


def test_a_few_short_samples_that_ended_first_do_not_make_the_end_near() -> None:
    """Twenty samples side by side: two ended after 10 tokens, the others have 100 after ten seconds."""
    left = TimeLeft(20)
    left.add(started(20))
    running = [sample(number, 0.0, 10, 1.0 if number < 2 else None) for number in range(20)]
    for event in sorted((event for events in running for event in events), key=lambda event: event.t):
        left.add(event)
    for number in range(2, 20):
        left.add(sample(number, 0.0, 100, 10.0)[2])
    told = left.left(10.0)
    assert told is not None
    assert told.seconds > 5.0


def test_what_a_break_took_is_no_work() -> None:
    def told(resumed: bool) -> float | None:
        left = TimeLeft(50)
        left.add(started(1))
        for number in range(20):
            for event in sample(number, 10.0 * number, 100, 10.0 * number + 10):
                left.add(event)
        for event in sample(20, 200.0, 100, None):
            left.add(event)
        if resumed:
            left.add(RunResumed(t=209.0, started="", config={"concurrency": 1}, versions={}, machine={}))
        now = 209.0 if resumed else 200.0
        for event in sample(20, now, 100, now + 10)[2:]:
            left.add(event)
        found = left.left(now + 10)
        return None if found is None else found.seconds

    assert told(resumed=True) == pytest.approx(told(resumed=False), rel=0.02)


def test_nothing_is_told_before_a_track_has_ended_or_without_the_number_of_samples() -> None:
    left = TimeLeft(3)
    assert left.left(0.0) is None
    left.add(started(1))
    for event in sample(0, 0.0, 100, 10.0)[:3]:
        left.add(event)
    assert left.left(10.0) is None
    left.add(sample(0, 0.0, 100, 10.0)[3])
    assert left.left(10.0) is not None
    left.samples = None
    assert TimeLeft(None).left(10.0) is None


def test_samples_that_are_differently_fast_are_told_by_a_range() -> None:
    """Equal lengths, but two or ten seconds each: what eight more will take depends on which of both they are."""
    left = TimeLeft(11)
    left.add(started(1))
    now = 0.0
    for number, seconds in enumerate((2.0, 10.0, 10.0)):
        for event in sample(number, now, 100, now + seconds):
            left.add(event)
        now += seconds
    told = left.left(now)
    assert told is not None
    assert not told.sure
    assert told.high > 3 * told.low


def test_slow_samples_that_still_run_tell_how_fast_the_next_ones_are() -> None:
    """Fast samples write more tokens in the same time and end first: their tokens are not worth more for it."""

    def told(slow: int) -> float:
        left = TimeLeft(100)
        left.add(started(10))
        samples = [sample(number, 0.0, 400, None if number < slow else 40.0) for number in range(10)]
        for event in sorted((event for events in samples for event in events), key=lambda event: event.t):
            left.add(event)
        for number in range(slow):
            left.add(sample(number, 0.0, 100, 40.0)[2])
        found = left.left(40.0)
        assert found is not None
        return found.seconds

    # Five of ten write a quarter as much: a sample takes 2.5 times as long on average, not 1.6 times.
    assert told(5) > 2.1 * told(0)
