"""Log-probabilities of a prompt in both layouts that vLLM's runners give: cached places filled with anything, or left out."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from speclrm.runtime.engines.vllm import read_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTH = 40


@dataclass
class Flat:
    """As vLLM's FlatLogprobs: an entry a place, none in the first; an empty slice is an error in some versions."""

    logprobs: Sequence[float | None]

    def __len__(self) -> int:
        return len(self.logprobs)

    def __getitem__(self, places: slice) -> Flat:
        found = self.logprobs[places]
        assert found, "an empty slice"
        assert None not in found, "the first place has no value"
        return Flat(found)


def output(cached: int, *, left_out: bool) -> Any:
    """What a runner says of a prompt of which so many ids were cached: place n has the value -n."""
    computed: list[float | None] = [-float(place) for place in range(cached + 1, LENGTH)]
    garbage: list[float | None] = [] if left_out else [7e37] * cached
    return SimpleNamespace(
        num_cached_tokens=cached,
        prompt_token_ids=list(range(LENGTH)),
        prompt_logprobs=Flat([None, *garbage, *computed]),
    )


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("cached", [0, 1, 16, 24, 25, 32, LENGTH - 1])
def test_only_places_behind_the_cached_ones_are_read_in_either_layout(cached: int, left_out: bool) -> None:
    values: dict[int, float] = {}
    assert read_prompt(output(cached, left_out=left_out), 25, LENGTH, values) == cached
    assert values == {place: -float(place) for place in range(max(25, cached + 1), LENGTH)}
