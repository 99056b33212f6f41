from __future__ import annotations

import random
import typing

import pytest
from pydantic import BaseModel, ValidationError

from speclrm.runtime import events, unchecked_events
from speclrm.runtime.engine import LOGPROB_MIN
from speclrm.runtime.events import EVENT, EventBase

OPERATION = events.Operation(
    id="p/0/A1/0/draft",
    engine="d",
    seed=7,
    prompt_tokens=5,
    cached_tokens=2,
    output_tokens=3,
    queue_s=0.5,
    engine_s=1.5,
)
WHERE: typing.Any = {"problem": "p", "repeat": 0}
TRACK: typing.Any = {**WHERE, "track": "A1"}
STEP: typing.Any = {**TRACK, "step": 0}

SAMPLES: list[EventBase] = [
    events.RunStarted(
        run="r",
        started="2026-01-01",
        config={"a": [1]},
        versions={"x": "1"},
        machine={"cores": 2},
        engines={"draft": events.EngineFacts(name="d", parameters=10**11, max_num_seqs=4)},
    ),
    events.RunResumed(
        started="2026-01-02",
        config={},
        versions={},
        machine={},
        overrides={"seed": (0, None), "recipe": ({"a": 1}, [2])},
    ),
    events.ProblemStarted(**WHERE, text="two\nlines \u2028 ü", gold=None),
    events.MethodsChosen(**WHERE, codes=("A", "B"), chosen_by="seed"),
    events.TrackStarted(**TRACK, hint="try", prompt_ids={"draft": (1, 2, 151_643)}),
    events.StepDrafted(**STEP, text="x\n\n", ids=(1, 2), ended=False, operations=(OPERATION,)),
    events.StepGated(**STEP, verdict="doubtful", mean_logprob=-2.5, first_entropy=None, tokens=8),
    events.StepScored(**STEP, value=6.5, mass=0.9, digits=(-1.0,) * 10, operations=(OPERATION,)),
    events.StepWritten(**STEP, write_kind="rewrite", text="y", ids=(4_000_000_000,), ended=True, operations=()),
    events.StepCommitted(**STEP, origin="draft", tokens=3, score=None),
    events.OperationDropped(**STEP, role="draft", purpose="draft", reason="stopped", operation=OPERATION),
    events.TrackPaused(**STEP, reason="room"),
    events.TrackContinued(**STEP),
    events.TrackResumed(**TRACK),
    events.TrackFinished(**TRACK, reason="answer", answer="4", tokens=9),
    events.VoteUpdated(**WHERE, classes=(("A1", "B2"), ("C3",)), leader="A1"),
    events.SampleFinished(**WHERE, answer="4", winner="A1", outcome="correct", seconds=1.0),
    events.ModeChanged(**WHERE, track="A1", step=3, mode="write", reason="slow"),
    events.EnginesObserved(
        engines={"draft": events.EngineCounters(busy_s=0.5, iterations=3, new_tokens=9, batched=5)},
        both_s=0.25,
        context=100.5,
        waiting=1,
    ),
    events.DraftPaced(iterations=5, interval_s=0.0075, reason="its iterations take the target's time"),
    events.EngineFailed(engine="t", error="gone"),
    events.EngineRecovered(engine="t", down_s=3.0),
    events.OperationStuck(operation="p/0/1/2/draft", engine="t", role="target", seconds=150.0, limit_s=600.0),
    events.RunFinished(
        status="finished",
        seconds=2.0,
        busy_s={"draft": 1.0},
        engines={
            "draft": events.EngineReport(
                idle_ready_s=0.5, iterations=3, batched=6, preemptions=1, operations=2, waited_s=0.1
            )
        },
        deferred=1,
    ),
]


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.kind)
def test_an_event_survives_writing_and_reading(event: EventBase) -> None:
    line = event.model_dump_json()
    assert "\n" not in line
    assert EVENT.validate_json(line) == event


def test_every_kind_is_tried() -> None:
    union = typing.get_args(typing.get_args(events.Event)[0])
    assert {type(sample) for sample in SAMPLES} == set(union)


def test_token_ids_take_less_than_six_characters_each() -> None:
    event = events.StepDrafted(**STEP, text="", ids=tuple(range(100_000, 101_000)), ended=False, operations=())
    assert len(event.model_dump_json()) < 6 * 1000


def test_events_cannot_be_changed_or_extended() -> None:
    with pytest.raises(ValidationError):
        SAMPLES[0].seq = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        EVENT.validate_json('{"kind": "engine_failed", "engine": "t", "error": "x", "more": 1}')


def test_a_stamp_changes_the_place_in_the_run_and_nothing_else() -> None:
    event = events.EngineFailed(engine="t", error="gone")
    events.stamp(event, 7, 1, 2.5)
    assert event == events.EngineFailed(seq=7, attempt=1, t=2.5, engine="t", error="gone")
    assert EVENT.validate_json(events.to_line(event)) == event
    assert event.model_fields_set == {"seq", "attempt", "t", "engine", "error"}


def test_six_digits_are_left_of_a_number_and_a_reader_gets_the_same_again() -> None:
    draw = random.Random(5)
    numbers = [0.0, LOGPROB_MIN, *(draw.choice((1, -1)) * 10 ** draw.uniform(-8, 7) for _ in range(2_000))]
    for number in numbers:
        rounded = events.six_digits(number)
        assert abs(rounded - number) <= 0.5000001e-6 + 1e-15 * abs(number)
        assert rounded == float(f"{rounded:.6f}")
        assert events.six_digits(rounded) == rounded
    assert str(events.six_digits(-1e-9)) == "0.0"


@pytest.mark.parametrize(
    ("make", "made"),
    [
        (unchecked_events.make_operation, OPERATION),
        (unchecked_events.make_drafted, next(one for one in SAMPLES if isinstance(one, events.StepDrafted))),
        (unchecked_events.make_scored, next(one for one in SAMPLES if isinstance(one, events.StepScored))),
        (unchecked_events.make_written, next(one for one in SAMPLES if isinstance(one, events.StepWritten))),
        (unchecked_events.make_committed, next(one for one in SAMPLES if isinstance(one, events.StepCommitted))),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_made_unchecked_is_as_what_was_checked(make: typing.Callable[..., BaseModel], made: BaseModel) -> None:
    one, other = (make(**{name: getattr(made, name) for name in made.model_fields_set}) for _ in range(2))
    assert one == made
    assert one.model_dump_json() == made.model_dump_json()
    assert list(vars(one)) == list(vars(made))
    first = next(iter(type(made).model_fields))
    changed = one.model_copy(update={first: "x"})
    assert changed != one == other
    with pytest.raises(ValidationError):
        setattr(one, first, "x")
    if isinstance(one, EventBase):
        events.stamp(one, 7, 1, 2.5)
        assert other == made
        assert EVENT.validate_json(events.to_line(one)) == one
