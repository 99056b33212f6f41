"""Turns text that comes in pieces into ids of our own tokenizer, for servers that give no ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speclrm.runtime.engine import Tokenizer

_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_BORDER = re.compile(r"(?<=\n)(?=[^\n])|(?<=[^\s])(?= )")


class TextToIds:
    """Encodes what has come as far as later text cannot change its ids: up to the last border of a word or line, and through a
    blank line at once, since a step may end there. The marks of thought become ids, as the model wrote them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rest = ""
        vocabulary = tokenizer.vocabulary
        marks = {
            tokenizer.decode([token]): token
            for token in (vocabulary.think_open, vocabulary.think_close)
            if token is not None
        }
        self._marks = marks
        self._pattern = re.compile(f"({'|'.join(map(re.escape, marks))})") if marks else None

    def feed(self, text: str) -> list[int]:
        """Takes more text; returns the ids that are certain now."""
        self._rest += text
        border = max((found.end() for found in _BLANK_LINE.finditer(self._rest)), default=0)
        border = max([border, *(found.start() for found in _BORDER.finditer(self._rest))])  # no mark has a space in it
        ready, self._rest = self._rest[:border], self._rest[border:]
        return self._encode(ready)

    def end(self) -> list[int]:
        """Returns the ids of what is left."""
        ready, self._rest = self._rest, ""
        return self._encode(ready)

    def _encode(self, text: str) -> list[int]:
        if self._pattern is None:
            return self._tokenizer.encode(text) if text else []
        ids: list[int] = []
        for part in self._pattern.split(text):
            if (mark := self._marks.get(part)) is not None:
                ids.append(mark)
            elif part:
                ids += self._tokenizer.encode(part)
        return ids
