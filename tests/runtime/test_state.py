"""The state of a sample: what was seen once stays as it was, and no event costs more because much went before."""

from __future__ import annotations

import tracemalloc
from statistics import median
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from speclrm.runtime.events import ModeChanged, StepCommitted, StepDrafted, TrackStarted
from speclrm.runtime.state import CommittedStep, SampleState, Steps, TrackState, apply

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.events import Event

WHERE: Any = {"problem": "p", "repeat": 0}


def started(track: str) -> Event:
    return TrackStarted(**WHERE, track=track, hint="", prompt_ids={})


def drafted(track: str, step: int) -> Event:
    return StepDrafted(**WHERE, track=track, step=step, text=f"step {step}", ids=(1,), operations=())


def committed(track: str, step: int) -> Event:
    return StepCommitted(**WHERE, track=track, step=step, origin="draft", tokens=1, score=float(step % 10))


def turned(track: str) -> Event:
    return ModeChanged(**WHERE, track=track, step=0, mode="write", reason="")


def plain(state: SampleState) -> tuple[list[tuple[str, TrackState]], list[tuple[CommittedStep, ...]]]:
    """All that a state says of its tracks, by value."""
    tracks = [(name, state.tracks[name]) for name in state.tracks]
    return [(name, track._replace(steps=())) for name, track in tracks], [tuple(track.steps) for _, track in tracks]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=25), st.data())
@settings(max_examples=60)
def test_a_state_stays_as_it_was_whatever_comes_after_it(
    moves: list[tuple[str, bool, bool]], data: st.DataObject
) -> None:
    """Also where two go on from the same one, and in whatever order old ones are looked at."""
    states = [SampleState("p", 0)]
    said = [plain(states[0])]
    for name, turn, back in moves:
        state = states[data.draw(st.integers(0, len(states) - 1))] if back else states[-1]
        if name not in state.tracks:
            events = [started(name)]
        elif turn:
            events = [turned(name)]
        else:
            step = len(state.tracks[name].steps)
            events = [drafted(name, step), committed(name, step)]
        for event in events:
            state = apply(state, event)
        states.append(state)
        said.append(plain(state))
    for place in data.draw(st.permutations(range(len(states)))):
        assert plain(states[place]) == said[place]


def test_steps_are_a_sequence_like_a_tuple() -> None:
    made = [CommittedStep(str(number), "draft", 1, float(number), False) for number in range(4)]
    steps = Steps()
    for step in made:
        steps = steps.with_step(step)
    assert steps == tuple(made)
    assert tuple(made) == steps
    assert hash(steps) == hash(tuple(made))
    assert (steps[0], steps[-1], steps[1:], steps[::-2]) == (made[0], made[3], tuple(made[1:]), tuple(made[::-2]))
    assert len(steps) == 4
    assert list(steps) == made
    assert steps != tuple(made[:3])
    assert repr(steps) == repr(tuple(made))


def test_the_mean_score_of_a_track_is_worked_out_once() -> None:
    class Asked(CommittedStep):
        times = 0

        @property
        def score(self) -> float | None:  # type: ignore[override]
            Asked.times += 1
            return 4.0

    state = TrackState("a", steps=Steps([Asked("", "draft", 1, None, False)]))
    assert [state.mean_score for _ in range(3)] == [4.0] * 3
    assert Asked.times == 2  # whether there is one, and which


def bytes_of(make: Callable[[], object]) -> int:
    """What it takes at most beside what was there."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = make()
        return tracemalloc.get_traced_memory()[1] - before + (kept is None)
    finally:
        tracemalloc.stop()


def bytes_of_a_step(tracks: int, steps: int) -> float:
    """Of a draft and its commit, in a sample of so many tracks whose last one has so many steps. The median: now and then
    a list is given more room.
    """
    state = SampleState("p", 0)
    for number in range(tracks):
        state = apply(state, started(str(number)))
    name = str(tracks - 1)

    def go(step: int) -> None:
        nonlocal state
        state = apply(apply(state, events[0]), events[1])

    sizes: list[int] = []
    for step in range(steps + 9):
        events = drafted(name, step), committed(name, step)
        if step < steps:
            go(step)
        else:
            sizes.append(bytes_of(lambda step=step: go(step)))
    return median(sizes)


def test_an_event_copies_neither_the_tracks_of_its_sample_nor_the_steps_of_its_track() -> None:
    few = bytes_of_a_step(10, 10)
    assert bytes_of_a_step(1_000, 10) <= few + 200
    assert bytes_of_a_step(10, 1_000) <= few + 200
