"""Cuts a formula into marks: numbers, commands, letters and single characters."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator

_NESTING_MAX = 60
LETTERS_MAX = 4
"""More letters in a row are a word."""
END = ""


class Unknown(Exception):
    """Something in the text is not known."""


class _Mark(NamedTuple):
    """``text``: a number, a command, letters or one character. ``apart``: a space stands before it."""

    text: str
    apart: bool


_MARK = re.compile(
    r"(?P<space>(?:\s|~|\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|\\(?:no)?limits(?![a-zA-Z])|\{\})*)"
    r"(?P<mark>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?![\d.a-zA-Z]))?|\\[a-zA-Z]+\*?|\\.|\*\*|[A-Za-z]+|.|\Z)",
    re.DOTALL,
)
_ALONE = re.compile(r"(?<![\\a-zA-Z])([a-zA-Z]+)(?!\s*[('_^a-zA-Z])|(?<![\\a-zA-Z])([a-zA-Z]+)(?=[a-zA-Z])")


def factors(*texts: str) -> frozenset[str]:
    """Returns the letters that stand in one of the texts with no bracket behind: they are no names of functions."""
    runs = [run[1] or run[2] for text in texts for run in _ALONE.finditer(text)]
    return frozenset(letter for run in runs if len(run) <= LETTERS_MAX for letter in run)


def letters(text: str) -> set[str]:
    """Returns the letters that stand alone in it: what ``i`` means depends on the others."""
    return {mark for match in _MARK.finditer(text) if (mark := match["mark"]) and mark.isalpha() and len(mark) == 1}


class Marks:
    """The marks of a text and the place that a reader has come to. The last mark is ``END``."""

    def __init__(self, text: str) -> None:
        self._marks = [_Mark(match["mark"], bool(match["space"])) for match in _MARK.finditer(text)]
        self._marks.append(_Mark(END, False))
        self._at: int = 0
        self._depth = 0

    @property
    def _mark(self) -> str:
        return self._marks[self._at].text

    def _take(self, mark: str | None = None) -> str:
        here = self._mark
        if (mark is not None and here != mark) or here == END:
            raise Unknown(here)
        self._at += 1
        return here

    def _split(self, *, apart: bool = False) -> None:
        """Makes two marks of this one: its first character, and the rest."""
        mark = self._mark
        self._marks[self._at : self._at + 1] = [_Mark(mark[0], apart), _Mark(mark[1:], False)]

    @contextmanager
    def _deeper(self) -> Generator[None]:
        self._depth += 1
        if self._depth > _NESTING_MAX:
            raise Unknown("nesting")
        yield
        self._depth -= 1
