"""More seeds, in a file of their own: files are what processes share."""

from __future__ import annotations

import pytest
from simulation.cases import simulate
from simulation.test_seeds import EACH, expect_nothing

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("first", range(150, 300, EACH))
def test_nothing_is_lost_and_nothing_hangs_whatever_goes_wrong(first: int) -> None:
    expect_nothing(first)


@pytest.mark.parametrize(
    "seed", [576, 2353, 8082, 8441, 9753, 10252, 11204, 92809, 207154, 302900, 400256, 444299, 450432]
)
def test_what_broke_once_does_so_no_more(seed: int) -> None:
    """2353 to 9753: an engine that stopped before the limit left a reply that a replay took for a part of one. 10252, 11204,
    302900: work ahead failed while its track waited, and the replay asked for the next request at once, or stopped. 92809:
    iterations seemed to cost nothing but what another engine slows them down. 207154: the second piece of a step that was made
    ahead failed, and the replay let the first one fail. 400256: a sample that waited for a place was cancelled as one became
    free. 444299, 450432: work ahead went on while the request of its cancelled track was being aborted.
    """
    assert not (outcome := simulate(seed)).faults, str(outcome)
