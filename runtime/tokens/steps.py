"""Finds where a step ends, in text and in ids.

A step is text up to and including the first blank line that follows something visible. The engine ends it at a token
that contains a blank line; a blank line of two tokens is found here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Confidence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speclrm.runtime.engine import Tokenizer, Vocabulary

_THINK_CLOSE = "</think>"
_NEWLINES = re.compile(r"\n+")
_CUT_CHARACTER = "\ufffd"
_UTF8_TAIL = 3
"""A character has at most four bytes, so at most three ids of one byte each can be left over."""


def step_end(text: str, *, blank: bool = False) -> int | None:
    """Returns where the first step of a text ends: after the first blank line that follows something visible.

    With ``blank``, nothing visible is required.
    """
    start = 0 if blank else len(text) - len(text.lstrip())
    at = text.find("\n\n", start)
    newlines = _NEWLINES.match(text, at) if at >= 0 else None
    return newlines.end() if newlines else None


def step_length(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    text: str,
    lines: frozenset[int],
    *,
    blank: bool = False,
    least: int = 0,
) -> int | None:
    """Returns how many of the ids make the first step, None while no blank line ends it. ``lines``: ``line_ids``.

    The step owns the token that completes the blank line, with everything else in that token. A blank line after fewer
    than ``least`` ids does not end it.
    """
    length = 0
    while (piece := _piece_length(tokenizer, ids[length:], text, lines, blank=blank)) is not None:
        length += piece
        if length >= least:
            return length
        text = tokenizer.decode(ids[length:])
    return None


def _piece_length(
    tokenizer: Tokenizer, ids: Sequence[int], text: str, lines: frozenset[int], *, blank: bool
) -> int | None:
    if step_end(text, blank=blank) is None:
        return None
    before = ids[:-1]
    if lines.isdisjoint(before) or step_end(tokenizer.decode(before), blank=blank) is None:
        return len(ids)  # the usual case: the engine stopped there
    low, high = 1, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if step_end(tokenizer.decode(ids[:middle]), blank=blank) is not None:
            high = middle
        else:
            low = middle + 1
    return low


def whole_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Returns how many of the ids make a text that does not end inside a character."""
    for length in range(len(ids), max(len(ids) - _UTF8_TAIL, 0) - 1, -1):
        if not tokenizer.decode(ids[:length]).endswith(_CUT_CHARACTER):
            return length
    return len(ids)  # the model did write U+FFFD


def split_ending(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[Sequence[int], bool]:
    """Returns the ids up to the first mark that is neither text nor a think mark, and whether there was one.

    A model that writes such a mark (the start of another turn, say) has ended its own text.
    """
    special = vocabulary.special_ids
    if special.isdisjoint(ids):
        return ids, False
    thinks = vocabulary.think_open, vocabulary.think_close
    for index, token in enumerate(ids):
        if token in special and token not in thinks:
            return ids[:index], True
    return ids, False


def runs(ids: Sequence[int], control: frozenset[int]) -> Iterator[tuple[bool, Sequence[int]]]:
    """Yields the ids in order, in pieces: each control id by itself, and the ids between two of them; and which of the
    two it is.
    """
    start = 0
    for place, token in enumerate(ids):
        if token in control:
            if start < place:
                yield False, ids[start:place]
            yield True, ids[place : place + 1]
            start = place + 1
    if start < len(ids):
        yield False, ids[start:]


VOCABULARIES_MAX = 16
"""Vocabularies whose ids are kept. Each track asks for them, and a real one has some 600: one copy serves all tracks."""


@lru_cache(maxsize=VOCABULARIES_MAX)
def line_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """Returns ids of which every blank line contains at least one."""
    return vocabulary.blank_line_ids | vocabulary.newline_ids


@lru_cache(maxsize=VOCABULARIES_MAX)
def stop_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Returns the ids that end a step inside the engine: a blank line, or a mark that is not text."""
    marks = vocabulary.special_ids - vocabulary.end_ids - {vocabulary.think_open, vocabulary.think_close}
    return tuple(sorted(vocabulary.blank_line_ids | marks))


def without_think_close(tokenizer: Tokenizer, ids: list[int], marks: Sequence[str]) -> list[int]:
    """Returns the ids without ``</think>``, unless the text has one of the marks: SSR's code cleans a step in this way."""
    text = tokenizer.decode(ids)
    if _THINK_CLOSE not in text or any(mark in text for mark in marks):
        return ids
    kept = [token for token in ids if token != tokenizer.vocabulary.think_close]
    if _THINK_CLOSE not in tokenizer.decode(kept):
        return kept
    new: list[int] = []
    for marked, run in runs(kept, tokenizer.vocabulary.control_ids):
        written = tokenizer.decode(run)
        # A model without that mark writes it in pieces, whose ids mean nothing by themselves.
        new += run if marked or _THINK_CLOSE not in written else tokenizer.encode(written.replace(_THINK_CLOSE, ""))
    return new


def confidence(logprobs: Sequence[float], first_entropy: float | None) -> Confidence | None:
    """Returns the confidence of a step's sampled tokens; None if there are none, or none were asked about."""
    return Confidence(len(logprobs), sum(logprobs) / len(logprobs), first_entropy) if logprobs else None
