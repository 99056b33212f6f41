"""Checks the sums in a step of reasoning."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from speclrm.evaluators import formula_marks, formulas

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
_EXPRESSION = re.compile(rf"[(\s]*{_NUMBER}(?:[\s)]*[-+*/×÷][\s(]*{_NUMBER})*[\s)]*")
_EQUALS = re.compile(r"(?<![=<>!≤≥≠≈])=(?!=)")
_LATEX = (
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("−", "-"),
    ("×", "*"),
    ("÷", "/"),
    ("\\(", ""),
    ("\\)", ""),
)


def sums_hold(text: str) -> bool | None:
    """Returns whether all of the text's equations of plain numbers are right; None if it has none.

    ``3 + 4 = 7``, chains of them, and LaTeX's signs are understood; anything with letters in it is skipped, and so is
    what only repeats itself.
    """
    for mark, plain in _LATEX:
        text = text.replace(mark, plain)
    text = re.sub(r"\\boxed\{([^{}]*)\}", r"\1", text).replace("**", "")
    verdicts: list[bool] = []
    for line in text.splitlines():
        sides = _EQUALS.split(line)
        for place, (left, right) in enumerate(pairwise(sides)):
            one = _beside(left, at_end=True)
            other = _beside(right, at_end=False)
            if one is None or other is None or one == other:
                continue
            # A sum somewhere: ``x = 7``, ``7 = 7`` and what only repeats itself state nothing.
            if place or not (one.isdigit() and other.isdigit()):
                values = _calculated(one), _calculated(other)
                if None not in values:
                    verdicts.append(values[0] == values[1])
    return all(verdicts) if verdicts else None


def _beside(side: str, *, at_end: bool) -> str | None:
    """Returns the expression next to the equals sign, without blanks; None if letters touch it."""
    side = side.rstrip(" $") if at_end else side.lstrip(" $")
    if at_end:
        found = next((m for m in _EXPRESSION.finditer(side) if m.end() == len(side)), None)
        before = side[: found.start()].rstrip() if found else ""
        if before and before[-1] not in ".:,;>`$" and not before[-1].isspace() and not _ends_a_word(before):
            return None
    else:
        found = _EXPRESSION.match(side)
        after = side[found.end() :] if found else ""
        if after and ((after[0].isalpha() and not side[: found.end()].endswith(" ")) or after[0] in "%^_\\{(*/"):  # type: ignore[union-attr]
            return None
    if not found:
        return None
    return re.sub(r"[\s$,]", "", found.group()).replace("×", "*").replace("÷", "/")


def _calculated(expression: str) -> Any:
    """Returns the value of numbers with + - * / and brackets; None if it is no such expression."""
    try:
        value = formulas.read(expression)
    except formula_marks.Unknown:
        return None
    return value if value.is_Rational else None


def _ends_a_word(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]{2,}$", text))
