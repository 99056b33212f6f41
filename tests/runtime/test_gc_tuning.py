from __future__ import annotations

import gc

import pytest
from support import make_strategy, play

from speclrm.runtime.engines.scripted import by_step
from speclrm.runtime.gc_tuning import MIDDLE_ROUNDS, YOUNG_OBJECTS, YOUNG_ROUNDS, rare_collections
from speclrm.runtime.protocols import Problem
from speclrm.runtime.sample import Sample
from speclrm.runtime.track.track import RuntimeTrack


def test_collections_are_rare_inside_the_block_and_as_before_after_it() -> None:
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold() == (YOUNG_OBJECTS, YOUNG_ROUNDS, MIDDLE_ROUNDS)
    assert gc.get_threshold() == before


@pytest.mark.parametrize("name", ["speculative", "parallel"])
def test_a_finished_sample_leaves_no_track_to_the_garbage_collector(name: str) -> None:
    """What is in a ring waits for a look at all objects there are, which is rare and stops everything."""
    steps = ["First we add.\n\n", "So it is \\boxed{4}."]
    problems = [Problem(f"p{number}", "What is two and two?", "4") for number in range(5)]
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        play(
            make_strategy(name, tracks=3),
            problems=problems,
            target=by_step(steps, scores=[8, 8]),
            draft=by_step(steps) if name == "speculative" else None,
        )
        gc.collect()
        assert not [one for one in gc.garbage if isinstance(one, RuntimeTrack | Sample)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
