"""Reads sets of numbers into sympy, however they are written, and compares them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import sympy as _sympy

from speclrm.evaluators.answer_parts import DOMAIN, Related, cut, in_brackets, list_in, relations_in
from speclrm.evaluators.answer_words import JOINT, bare
from speclrm.evaluators.formula_marks import Unknown

if TYPE_CHECKING:
    from collections.abc import Callable

sympy: Any = _sympy

_SET_SIGNS = re.compile(
    r"\\(?:cup|cap|setminus|emptyset)(?![a-zA-Z])|\\mathbb|\\mid|\\\{[^}]*[|:]|\\(?:le|ge|ne|in)(?![a-zA-Z])|[<>]"
)
_EITHER, _BOTH = re.compile(r"\\(?:lor|vee)(?![a-zA-Z])"), re.compile(r"\\(?:land|wedge)(?![a-zA-Z])")
_LIMITS = {
    "<": sympy.StrictLessThan,
    ">": sympy.StrictGreaterThan,
    "<=": sympy.LessThan,
    ">=": sympy.GreaterThan,
    "!=": sympy.Ne,
    "=": sympy.Eq,
}
_DOMAINS = {
    "R": sympy.Reals,
    "Q": sympy.Rationals,
    "Z": sympy.Integers,
    "N": sympy.Naturals,
    "C": sympy.Complexes,
}


def same_sets(gold: str, answer: str, read: Callable[[str], Any]) -> bool | None:
    """Returns whether two answers are the same set; None if they are not both sets of numbers.

    ``read``: reads one formula, or raises Unknown.
    """
    if (
        not (_SET_SIGNS.search(gold) or _SET_SIGNS.search(answer))
        or "=" in relations_in(gold).signs + relations_in(answer).signs
    ):
        return None
    if any(DOMAIN.search(text) and not text.startswith("\\{") for text in (gold, answer)) and (
        list_in(gold).several or list_in(answer).several
    ):
        return None
    ours, theirs = _Reader(read), _Reader(read)
    try:
        one, other = ours.read_set(gold), theirs.read_set(answer)
    except (Unknown, TypeError, NotImplementedError, AttributeError, ValueError):
        return False if re.search(r"\\(?:cup|cap|setminus)", gold + answer) else None
    if ours.bounded and theirs.bounded and ours.bounded != theirs.bounded:
        return False  # bounds of different letters
    if one == other:
        return True
    try:
        return bool((one - other).is_empty and (other - one).is_empty) or bool(
            sympy.SymmetricDifference(one, other).is_empty
        )
    except (TypeError, NotImplementedError, ValueError, AttributeError):
        return False


def conditions(related: Related, read: Callable[[str], Any]) -> list[Any]:
    """Returns the relation between each two sides of a chain. Raises Unknown."""
    sides = [read(side) for side in related.sides]
    return [
        _LIMITS[sign](left, right, evaluate=False)
        for sign, left, right in zip(related.signs, sides, sides[1:], strict=False)
    ]


class _Reader:
    """Reads one set. ``bounded``: the letters whose bounds made it."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read
        self.bounded: set[Any] = set()

    def read_set(self, text: str) -> Any:
        """Returns a set of numbers by any of the ways in which one is written. Raises Unknown."""
        text = bare(text)
        ored = cut(_EITHER.sub(" or ", _BOTH.sub(" and ", text)), {"or"})
        if len(ored) > 1:
            return sympy.Union(*(self._inequality_set(part) for part in ored))
        anded = cut(_BOTH.sub(" and ", text), {"and"})
        if len(anded) > 1 and relations_in(text).signs:
            return sympy.Intersection(*(self._inequality_set(part) for part in anded))
        for sign, made in (("\\cup", sympy.Union), ("\\cap", sympy.Intersection)):
            parts = cut(text, {sign})
            if len(parts) > 1:
                return made(*(self.read_set(part) for part in parts))
        parts = cut(text, {"\\setminus", "\\backslash"})
        if len(parts) == 1 and re.search(r"\\mathbb\s*\{?\s*[A-Z]\}?\s*(?:\\|-)\s*\\\{", text):
            parts = re.split(r"(?<=[A-Z}])\s*-\s*(?=\\\{)", text)
        if len(parts) == 2:
            return self.read_set(parts[0]) - self.read_set(parts[1])
        if match := re.fullmatch(r"\\mathbb\s*\{?\s*([RQZNC])\s*\}?(\s*[\^_]\s*\{?\s*\+\s*\}?)?", text):
            positive = {"R": sympy.Interval.open(0, sympy.oo), "Z": sympy.Naturals, "N": sympy.Naturals}
            if match[2] and match[1] not in positive:
                raise Unknown(text)
            return positive[match[1]] if match[2] else _DOMAINS[match[1]]
        if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
            return sympy.EmptySet
        if match := re.fullmatch(r"([a-zA-Z])\s*\\in\b(.*)", text, re.DOTALL):
            self.bounded.add(self._read(match[1]))
            return self.read_set(match[2])
        if text.startswith("\\{") and text.endswith("\\}"):
            return self._in_braces(text[2:-2].strip())
        if (brackets := in_brackets(text)) is not None and len(brackets[1]) == 2:
            begin, end = (self._read(part) for part in brackets[1])
            if not (begin.is_extended_real and end.is_extended_real) or (begin - end).is_positive:
                raise Unknown("interval")
            return sympy.Interval(begin, end, brackets[0] == "(", brackets[2] == ")")
        return self._inequality_set(text)

    def _in_braces(self, inside: str) -> Any:
        """Reads elements, or a letter with the conditions for it."""
        built = re.split(r"\\mid(?![a-zA-Z])|\||:", inside, maxsplit=1)
        if len(built) != 2 or not re.match(r"\s*[a-zA-Z]\s*(?:\\in.*)?$", built[0]):
            return sympy.FiniteSet(*(self._read(part) for part in cut(inside, {",", ";"})))
        domain = built[0].partition("\\in")[2]
        several = re.search(r"\bor\b|\band\b", JOINT.sub(r" \1 ", built[1]))
        found = self.read_set(built[1]) if several else self._inequality_set(built[1])
        return sympy.Intersection(found, self.read_set(domain)) if domain.strip() else found

    def _inequality_set(self, text: str) -> Any:
        """Reads the numbers for which inequalities of one letter hold. Raises Unknown."""
        parts = cut(text, {","})
        if len(parts) > 1:
            sets = [self._inequality_set(part) for part in parts]
            both = sympy.Intersection(*sets)
            return sympy.Union(*sets) if both == sympy.EmptySet else both  # x < 1, x > 3 can only mean either
        related = relations_in(bare(text))
        inequalities = set(related.signs) <= _LIMITS.keys() and related.signs != ["="]
        if not related.signs or related.unknown or not inequalities or "" in related.sides:
            raise Unknown("no inequality")
        limits = conditions(related, self._read)
        letters = set[Any]().union(*(limit.free_symbols for limit in limits))
        if len(letters) != 1:
            raise Unknown("several letters")
        letter = letters.pop()
        self.bounded.add(letter)
        plain = sympy.Symbol("x", real=True)
        limits = [limit.subs(letter, plain) for limit in limits]
        if any(limit in (True, False) for limit in limits):
            raise Unknown("no limit")
        return sympy.Intersection(*(limit.as_set() for limit in limits))
