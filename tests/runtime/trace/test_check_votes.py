"""The checker states the rule of the vote for itself. Both statements are held against each other over all recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from again import simulated
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import boxed, play

from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.events import (
    ProblemStarted,
    RunStarted,
    StepCommitted,
    StepWritten,
    TrackFinished,
    TrackResumed,
    TrackStarted,
    VoteUpdated,
    stamp,
)
from speclrm.runtime.state import SampleState, apply
from speclrm.runtime.trace.check import Checker
from speclrm.strategies.catalog import strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import Event
    from speclrm.runtime.trace.check import Violation
    from speclrm.strategies.family import Family

PLACE: dict[str, Any] = {"problem": "p", "repeat": 0}
KEPT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def checked(events: Sequence[Event]) -> Sequence[Violation]:
    checker = Checker()
    for line, event in enumerate(events, start=1):
        checker.add("trace", line, event)
    return checker.report().violations


def head(chosen: Family) -> RunStarted:
    recipe = chosen.recipe.model_dump(mode="json")
    return RunStarted(run="r", started="", config={"recipe": recipe}, versions={}, machine={})


def numbered(events: Sequence[Event]) -> Sequence[Event]:
    for seq, event in enumerate(events):
        stamp(event, seq, 0, 0.0)
    return events


def with_leader(events: Sequence[Event], place: int, leader: str) -> Sequence[Event]:
    return [*events[:place], events[place].model_copy(update={"leader": leader}), *events[place + 1 :]]


def planted(events: Sequence[Event]) -> list[tuple[int, Sequence[Event]]]:
    """Each vote with each wrong leader put into it, and the line where that is."""
    found: list[tuple[int, Sequence[Event]]] = []
    for place, event in enumerate(events):
        if isinstance(event, VoteUpdated):
            others = {name for members in event.classes for name in members} - {event.leader}
            found += [(place + 1, with_leader(events, place, other)) for other in sorted(others)]
    return found


# ------------------------------------------------------------------------------------------------------------ any votes


def ended(name: str, answer: str | None, scores: Sequence[float | None], tokens: int) -> list[Event]:
    """A track's steps, all but the last of one token, and its end."""
    events: list[Event] = []
    for step, score in enumerate(scores):
        last = tokens if step == len(scores) - 1 else 1
        where: dict[str, Any] = {**PLACE, "track": name, "step": step}
        events.append(StepWritten(**where, write_kind="write", text="x", ids=(7,) * last, operations=()))
        events.append(StepCommitted(**where, origin="write", tokens=last, score=score))
    total = len(scores) - 1 + tokens
    return [*events, TrackFinished(**PLACE, track=name, reason="answer", answer=answer, tokens=total)]


@st.composite
def tracks(draw: st.DrawFn, worst: float, best: float) -> list[tuple[str, str | None, list[float | None], int]]:
    """Few values, so that equal ones are common. In the order of their ends."""
    count = draw(st.integers(1, 7))
    score = st.sampled_from([None, best, worst, (best + worst) / 2])
    names = draw(st.permutations([f"T{number}" for number in range(count)]))
    one = st.tuples(st.sampled_from(["1", "2", "3", None]), st.lists(score, min_size=1, max_size=3), st.integers(1, 3))
    return [(name, *draw(one)) for name in names]


def voted(chosen: Family, ends: Sequence[tuple[str, str | None, list[float | None], int]]) -> list[Event]:
    """A sample whose tracks end in this order, with the strategy's own vote after each answer."""
    events: list[Event] = [head(chosen), ProblemStarted(**PLACE, text="", gold=None)]
    events += [TrackStarted(**PLACE, track=name, hint="", prompt_ids={}) for name in sorted(end[0] for end in ends)]
    state = SampleState("p", 0)
    for event in events:
        state = apply(state, event)
    classes: dict[str, tuple[str, ...]] = {}
    for name, answer, scores, tokens in ends:
        more = ended(name, answer, scores, tokens)
        for event in more:
            state = apply(state, event)
        events += more
        if answer is not None:
            classes[answer] = (*classes.get(answer, ()), name)
            together = tuple(classes.values())
            events.append(VoteUpdated(**PLACE, classes=together, leader=chosen.vote(state, together)))
            state = apply(state, events[-1])
    numbered(events)
    return events


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"scorer": "judge"}, (0.0, 9.0)),
        ({"ties": "first"}, (0.0, 9.0)),
        ({"scorer": "likelihood"}, (-3.0, 0.0)),
        ({"fidelity": "original"}, (0.0, 9.0)),
    ],
    ids=["judge", "first", "likelihood", "original"],
)
@settings(KEPT, max_examples=80)
@given(data=st.data())
def test_any_vote_by_the_strategys_rule_is_sound_and_any_other_leader_is_found(
    options: dict[str, Any], scale: tuple[float, float], data: st.DataObject
) -> None:
    chosen = strategy("speculative", boxed, **options)
    events = voted(chosen, data.draw(tracks(*scale)))
    assert checked(events) == ()
    for line, wrong in planted(events):
        assert [(one.rule, one.line) for one in checked(wrong)] == [("vote", line)]


def test_a_track_without_scores_stands_behind_one_whose_scores_are_all_the_worst() -> None:
    for options, worst in (({"scorer": "judge"}, 0.0), ({"scorer": "likelihood"}, -2.0)):
        events = voted(strategy("speculative", boxed, **options), [("T0", "1", [None], 1), ("T1", "2", [worst], 1)])
        last = events[-1]
        assert isinstance(last, VoteUpdated)
        assert last.leader == "T1"
        assert checked(events) == ()


def test_a_track_that_goes_on_after_an_attempts_end_ends_behind_those_that_ended_before() -> None:
    chosen = strategy("speculative", boxed)
    names = ("A", "B", "C", "D")
    events: list[Event] = [head(chosen), ProblemStarted(**PLACE, text="", gold=None)]
    events += [TrackStarted(**PLACE, track=name, hint="", prompt_ids={}) for name in names]
    for name in "AB":
        events.append(TrackFinished(**PLACE, track=name, reason="error", answer=None, tokens=0, error="x"))
    events += ended("C", "1", [5.0], 1)
    events.append(VoteUpdated(**PLACE, classes=(("C",),), leader="C"))
    events += [TrackResumed(**PLACE, track=name) for name in "AB"]
    events += ended("D", "2", [5.0], 1)
    events.append(VoteUpdated(**PLACE, classes=(("C",), ("D",)), leader="C"))
    assert checked(numbered(events)) == ()


# ---------------------------------------------------------------------------------------------------------- whole runs

OPTIONS: dict[str, Sequence[Any]] = {
    "scorer": ("judge", "likelihood"),
    "score_method": ("greedy", "average"),
    "judge": (None, "turn", "inline"),
    "speculate": ("auto", "always", "never"),
    "draft_ahead": ("auto", "always", "never"),
    "rewrite_ahead": ("auto", "always", "never"),
    "gate_sure": (None, -0.3, -0.6),
    "gate_doubt": (None, -1.0),
    "gate_entropy": (None, 1.0),
    "fast": (None, None, 1, 2),
    "token_budget": (20, 60, 8192),
    "min_step_tokens": (0, 20),
    "step_limit": (None, None, 3),
    "closing": (True, False),
    "duplicates": (True, False),
    "ties": ("shortest", "first"),
    "prompt_style": ("chat", "raw"),
    "fidelity": ("none", "none", "original"),
    "tracks": (1, 2, 3, 5, 7),
}


@st.composite
def recipes(draw: st.DrawFn) -> Family:
    name = draw(st.sampled_from(["baseline", "parallel", "speculative", "speculative", "speculative-methods"]))
    options = {option: draw(st.sampled_from(values)) for option, values in OPTIONS.items()}
    if options["fidelity"] == "original":
        name = name if name.startswith("speculative") else "speculative"
        for option in ("scorer", "gate_sure", "gate_doubt", "gate_entropy", "min_step_tokens", "judge"):
            del options[option]
    elif options["scorer"] == "likelihood" or options["prompt_style"] == "raw":
        del options["judge"]
    try:
        return strategy(name, boxed, **options)
    except SettingsError:
        assume(False)
        raise


@settings(KEPT, max_examples=30)
@given(chosen=recipes(), seed=st.integers(0, 99))
def test_whole_runs_of_all_recipes_are_sound_and_a_wrong_leader_in_them_is_found(chosen: Family, seed: int) -> None:
    world = SimulatedWorld(
        WorldSettings((0.6,), steps=4, steps_spread=0.5, draft_step=8, target_step=9, solved_alpha=1, solved_beta=1),
        seed,
    )
    recipe = chosen.recipe.model_dump(mode="json")
    engines: Any = {role: engine for role, engine in simulated(world).items() if role in chosen.roles}
    played = play(
        chosen, target=by_step([]), engines=engines, problems=world.problems(2), seed=seed, config={"recipe": recipe}
    )
    events = played.collector.events
    assert checked(events) == ()
    for line, wrong in planted(events):
        assert ("vote", line) in [(one.rule, one.line) for one in checked(wrong)]
