"""Text in pieces becomes the ids of the whole text, however it was cut."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from speclrm.runtime.engines.http.texts import TextToIds
from speclrm.runtime.engines.scripted import ByteTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENIZER = ByteTokenizer(thinking=True)
TEXTS = st.lists(
    st.sampled_from(["We add. ", "x\n", "\n", "\n\n", " ", "é", "</think>", "<thi", "漢", "4", "$$"]), max_size=30
)


def fed(pieces: Sequence[str]) -> list[int]:
    texts = TextToIds(TOKENIZER)
    return [*(token for piece in pieces for token in texts.feed(piece)), *texts.end()]


@given(TEXTS, st.lists(st.integers(0, 200), max_size=10))
@settings(deadline=None)
def test_nothing_is_lost_or_added_wherever_the_text_is_cut(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(borders)]
    assert TOKENIZER.decode(fed(pieces)) == text


def test_a_blank_line_is_handed_over_at_once_so_that_a_step_can_end_there() -> None:
    texts = TextToIds(TOKENIZER)
    assert TOKENIZER.decode(texts.feed("It is 4.\n")) == "It is"
    assert TOKENIZER.decode(texts.feed("\n")) == " 4.\n\n"


def test_a_mark_that_comes_in_parts_is_one_id() -> None:
    assert TOKENIZER.vocabulary.think_close in fed(["I see. </th", "ink>", "\n\nSo"])
