from __future__ import annotations

import gc

from speclrm.runtime.collector import YOUNG_OBJECTS, rare_collections


def test_collections_are_rare_inside_the_block_and_as_before_after_it() -> None:
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold() == (YOUNG_OBJECTS, *before[1:])
    assert gc.get_threshold() == before
