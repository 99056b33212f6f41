from __future__ import annotations

import pytest

from speclrm.benchmarks.studies.sums import sums_hold


@pytest.mark.parametrize(
    ("text", "hold"),
    [
        ("3 + 4 = 7", True),
        ("3 + 4 = 8", False),
        ("so (3 + 4) * 2 = 14 = 7 * 2", True),
        (r"3 \times 4 = 12, then 12 \div 5 = 2.4", True),
        ("1/2 + 1/3 = 5/6", True),
        ("x = 7", None),
        ("7 = 7", None),
        ("3/0 = 4", None),
        ("no sum at all", None),
    ],
)
def test_sums_of_plain_numbers_are_checked_and_nothing_else(text: str, hold: bool | None) -> None:
    assert sums_hold(text) is hold
