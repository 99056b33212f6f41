"""A speed-up split into its causes: by hand, and as an identity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speclrm.evaluators.metrics import RunSummary, SampleRow, TrackRow
from speclrm.evaluators.speedup import split, work
from speclrm.runtime.ledger import PhaseTime, TokenCounts


def row(tracks: int = 1) -> SampleRow:
    return SampleRow(
        problem="p",
        repeat=0,
        answer=None,
        gold=None,
        outcome="wrong",
        winner=None,
        votes=(),
        tracks=tuple(
            TrackRow(track=str(number), reason="answer", answer=None, steps=1, tokens=1, mean_score=None)
            for number in range(tracks)
        ),
        tokens=1,
        seconds=1.0,
    )


def phase(engine_s: float) -> PhaseTime:
    return PhaseTime(requests=1, engine_s=engine_s)


ALONE = RunSummary(
    samples=(row(),),
    # 1,000 tokens at 0.1 s, ten tracks' worth of them side by side.
    tokens={"target": TokenCounts(kept=1000, generated=1000)},
    phases={"write": phase(100.0)},
    seconds=10.0,
    decode_flops=1000,
    all_flops=1200,
)
DRAFTED = RunSummary(
    samples=(row(),),
    # 800 kept tokens, of which 600 by the draft: 800 drafted at 0.025 s, 200 rejected and rewritten at 0.1 s, 40 scores of 0.1 s.
    tokens={
        "draft": TokenCounts(kept=600, rejected=200, generated=800),
        "target": TokenCounts(kept=200, judge=40, generated=240),
    },
    phases={"draft": phase(20.0), "rewrite": phase(20.0), "score": phase(4.0)},
    seconds=5.5,
    decode_flops=400,
    all_flops=2400,
)


def test_the_example_of_the_docs() -> None:
    found = split(ALONE, DRAFTED)
    assert found is not None
    assert (found.base.work, found.base.rate, found.base.side_by_side) == pytest.approx((1.0, 100.0, 10.0))
    # (20 + 20 + 4) s / 0.1 s / 800: c + s + 1 - a = 0.25 + 0.05 + 1 - 0.75.
    assert found.other.work == pytest.approx(0.55)
    assert (found.other.rate, found.other.side_by_side) == pytest.approx((80.0, 8.0))
    assert found.chains == pytest.approx(1000 / 800)
    assert found.speculation == pytest.approx(1 / 0.55)
    assert found.schedule == pytest.approx(0.8)
    assert found.tracks == 1
    assert found.total == pytest.approx(10 / 5.5) == pytest.approx(1.25 / 0.55 * 0.8)
    assert (found.decode_flops, found.all_flops) == (2.5, 0.5)


def test_a_slower_engine_is_the_schedules_and_not_the_drafts() -> None:
    slow = DRAFTED.model_copy(
        update={"phases": {name: phase(2 * one.engine_s) for name, one in DRAFTED.phases.items()}, "seconds": 11.0}
    )
    one, two = split(ALONE, DRAFTED), split(ALONE, slow)
    assert one is not None
    assert two is not None
    assert (two.chains, two.speculation) == pytest.approx((one.chains, one.speculation))
    assert two.schedule == pytest.approx(one.schedule / 2)


def test_more_tracks_are_a_cause_of_their_own() -> None:
    tokens = {"target": TokenCounts(kept=3000, generated=3000)}
    three = ALONE.model_copy(update={"samples": (row(3),), "tokens": tokens, "phases": {"write": phase(300.0)}})
    found = split(ALONE, three)
    assert found is not None
    assert (found.tracks, found.chains, found.speculation, found.schedule) == pytest.approx((1 / 3, 1, 1, 3))


count, time = st.integers(1, 10_000), st.floats(0.01, 1e4)


@given(st.tuples(count, count, count, time, time, time, time), st.tuples(count, count, count, time, time, time, time))
def test_the_causes_multiply_to_the_whole(
    one: tuple[int, int, int, float, float, float, float], two: tuple[int, int, int, float, float, float, float]
) -> None:
    runs = [
        RunSummary(
            samples=(row(1 + drafted % 3),),
            tokens={
                "draft": TokenCounts(kept=drafted, generated=drafted),
                "target": TokenCounts(kept=kept, judge=judge, generated=kept + judge),
            },
            phases={"draft": phase(draft_s), "write": phase(write_s), "score": phase(score_s)},
            seconds=seconds,
        )
        for drafted, kept, judge, draft_s, write_s, score_s, seconds in (one, two)
    ]
    found = split(*runs)
    assert found is not None
    assert found.total == pytest.approx(found.chains * found.speculation * found.schedule * found.tracks)
    assert found.total == pytest.approx(runs[0].seconds / runs[1].seconds)


def test_a_run_without_a_token_of_the_target_has_no_measure() -> None:
    assert work(RunSummary()) is None
    only = DRAFTED.model_copy(update={"tokens": {"draft": DRAFTED.tokens["draft"]}})
    assert work(only) is None
    assert split(ALONE, only) is None
