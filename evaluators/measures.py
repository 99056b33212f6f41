"""Splits a number from its unit, or from the words for what it counts."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from speclrm.evaluators import units
from speclrm.evaluators.answer_parts import (
    TEXTS,
    balanced,
)
from speclrm.evaluators.notation import word_set

_UNIT_TAIL = re.compile(
    rf"(?:(?:{TEXTS}\s*\{{[^{{}}]*\}}|\\(?:mu|Omega|AA|degree)(?![a-zA-Z])|\^\s*\{{?\s*\\circ\s*\}}?|°|\\%|%|(?<![a-zA-Z\d])[A-Za-zΩÅ]{{1,3}}(?=\s*(?:/|\\cdot|$)))"
    rf"(?:\s*\^\s*(?:\{{\s*[-+]?\d\s*\}}|-?\d))?|[\s~/*()]|1(?=\s*/)|\\[,;:! ]|\\cdot(?![a-zA-Z])"
    rf"|\\times(?![a-zA-Z])|-(?=\\text))+$"
)
_FRACTION_UNIT = re.compile(
    rf"\\frac\s*\{{\s*({TEXTS}\s*\{{[^{{}}]*\}})\s*\}}\s*\{{\s*({TEXTS}\s*\{{[^{{}}]*\}}(?:\s*\^\s*\{{?\d\}}?)?)\s*\}}\s*$"
)
_NUMERIC = re.compile(
    r"[-+±\s]*(?:\\pm\s*)?(?:\d[\d.,]*(?:[eE][-+]?\d+)?|\.\d+|\\frac\s*(?:\{[-+\d.\s]*\}|\d)\s*(?:\{[\d.\s]*\}|\d)|\\sqrt\s*(?:\{[\d.\s]*\}|\d)|\\pi(?![a-zA-Z])"
    r"|\\(?:times|cdot)(?![a-zA-Z])|\^\s*(?:\{[-+\d\s]*\}|-?\d+)|[-+/*]|\([-+\d.,\s/]*\)|\s|\\[,;:! ]|~|\{[-\d.,]*\})+"
)
_PLAIN_TAIL = re.compile(r"[\u4e00-\u9fff]{1,4}|[A-Za-zµΩÅ°][A-Za-zµΩÅ°\s./*^{}()·'-]*(?:\d[A-Za-z\s./*^{}-]*)*")
_MONEY = re.compile(r"^\s*(?P<sign>-?)\s*(?:\\text\s*\{\s*)?(?P<money>\\\$|[$€£¥₹]|Rs\.?(?=\s*\d))\s*\}?\s*")
_NO_UNIT = word_set(
    "or more less fewer least most not no none than up over under at but and if only unless to between except minus "
    "plus times nor above below greater smaller larger bigger either neither both half quarter third double twice mod "
    "for when squared cubed factorial choose is are without from isn't"
)
"""Words that say more of a number than what is counted."""
_COMPOUND = re.compile(r"([-+]?[\d.,]+(?:\s+\d+/\d+)?)\s*([A-Za-z]+)\s*(?:,|\band\b|,\s*and\b)?\s*")
_OPAQUE_UNITS = word_set("mg ms nm pm ml dm cd as ps ns pg ng cl dl hl mN mV mA mW mJ kN kV kA kW kJ mT mH in at h")
"""Signs that are products of letters where they stand plainly behind a number."""
_PREFIXED = re.compile(r"(?!cm|mm|km|kg|mL|GB|MB|TB)[TGMkhdcmnpf][mgsAKNJWCVFSTHLlMB]")
"""So is a prefix with a sign of one letter: kT, GM."""
_SPEED = re.compile(r"m\s*/\s*s(?:\s*\^\s*\{?2\}?)?")


class Side(NamedTuple):
    """A part of an answer without what stands around its value.

    ``unit``: of it, if it has one that is known. ``words``: what else stands behind the number. ``lone``: the unit is a sign that
    may be a letter.
    """

    value: str
    unit: units.Unit | None = None
    words: str = ""
    lone: bool = False


TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|cis)(?![a-zA-Z])")


def measured(text: str) -> Side:
    """Returns a number or formula and its unit, by the ways in which one is written."""
    sign: units.Unit | None = None
    if (match := _MONEY.match(text)) and match.end() < len(text):
        sign = units.named({"\\$": "dollar"}.get(match["money"], match["money"])) or units.read("dollar")
        text = match["sign"] + text[match.end() :]
        if sign is not None and not re.search("[A-Za-z]{2}|\\\\text", text):
            return Side(text, sign)
    if (total := compound(text)) is not None:
        return total
    if match := _FRACTION_UNIT.search(text):
        unit = units.read(f"{_unit_text(match[1])}/({_unit_text(match[2])})")
        if unit is not None and text[: match.start()].strip():
            return Side(text[: match.start()].strip(), unit)
    match = _UNIT_TAIL.search(text)
    if (
        match
        and match.start() > 0
        and re.search(r"\\(?:text|mathrm|mbox|rm|Omega|degree|%|operatorname)|\\circ|°|%", match[0])
    ):
        tail, value = match[0], text[: match.start()].rstrip()
        closing = tail.count(")") - tail.count("(")
        if closing <= 0 or re.match(r"[\s)]*$", tail) is None:
            while tail.startswith((")", " )")):
                value, tail = value + ")", tail.lstrip()[1:]
            if "°" in _unit_text(tail) and TRIGONOMETRIC.search(value):
                return Side(text)
            if value.strip() and balanced(value) and not re.search(r"[-+*/^=_(]\s*$|\\cdot\s*$", value):
                found = _tail(value, _unit_text(tail), written=True)
                if found is not None:
                    return (
                        found
                        if sign is None
                        else found._replace(unit=sign * found.unit if found.unit and found.unit != sign else sign)
                    )
    if (match := _NUMERIC.match(text)) and match.end() < len(text) and re.search(r"\d|\\pi", match[0]):
        tail = re.sub(rf"{TEXTS}\s*\{{([^{{}}]*)\}}", r"\1", text[match.end() :]).strip()
        if _PLAIN_TAIL.fullmatch(tail) and not re.search(r"[*^/+\-]\s*$|\\(?:times|cdot)\s*$", match[0]):
            found = _tail(match[0].strip(), tail, written=False)
            if found is not None:
                return found if sign is None else found._replace(unit=sign * found.unit if found.unit else sign)
    return Side(text) if sign is None else Side(text, sign)


def _tail(value: str, tail: str, *, written: bool) -> Side | None:
    """Reads the tail of a number as its unit. ``written``: as words or upright, rather than as letters of a formula are."""
    tail = re.sub(r"\s+", " ", tail).strip()
    if not tail:
        return None
    unit = units.read(tail)
    if unit is not None:
        signs = re.findall(r"[A-Za-zµΩÅ°%]+", tail)
        lone = all(
            (len(sign) == 1 and sign.isascii() and sign.isalpha()) or sign in _OPAQUE_UNITS or _PREFIXED.fullmatch(sign)
            for sign in signs
        )
        return Side(
            value,
            unit,
            lone=not written
            and lone
            and not _SPEED.fullmatch(tail)
            and not re.search(r"\d[eE]|\\times\s*10\s*\^", value),
        )
    words = re.findall(r"[^\W\d_]+(?:'[a-z]+)?", tail)
    if not re.fullmatch(r"[^\W\d_][^\d=<>\\^_]*(?:\^[23])?", tail) or (
        words != ["times"] and any(word.lower() in _NO_UNIT for word in words)
    ):
        return None
    if (
        not written
        and tail.isascii()
        and ((len(words) == 1 and len(words[0]) < 3) or any(len(word) == 1 for word in words))
    ):
        return None  # letters of a formula
    if written and any(len(word) == 1 and word != "a" for word in words) and len(words) > 1:
        return None
    return Side(value, None, tail.lower().rstrip("."))


def _unit_text(tail: str) -> str:
    """Returns a unit without LaTeX."""
    tail = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", "°", tail)
    tail = re.sub(r"\\mu(?![a-zA-Z])\s*", "µ", tail)
    tail = re.sub(r"\\Omega(?![a-zA-Z])", "Ω", tail).replace("\\AA", "Å").replace("\\%", "%")
    tail = re.sub(r"\\circ(?![a-zA-Z])", "°", tail)
    tail = re.sub(rf"(?<=µ){TEXTS}\s*\{{\s*", "{", tail)
    tail = re.sub(rf"{TEXTS}\s*\{{([^{{}}]*)\}}", r" \1 ", tail)
    tail = re.sub(r"µ\{\s*([A-Za-z]+)\s*\}", r"µ\1", tail)
    tail = re.sub(r"\\[,;:! ]|~", " ", tail)
    tail = re.sub(r"\b([kMGm])\s+Ω", r"\1Ω", tail)
    tail = re.sub(r"µ\s+(?=[A-Za-z])", "µ", tail)
    return re.sub(r"\s*\^\s*\{?\s*([-+]?\d)\s*\}?", r"^\1", tail).replace("^°", "°")


def compound(text: str) -> Side | None:
    """Reads 18 dollars and 50 cents: in the first unit, where all are of one kind."""
    plain = re.sub(rf"{TEXTS}\s*\{{([^{{}}]*)\}}", r" \1 ", text)
    plain = re.sub(r"\\[ ,;]|~", " ", plain).strip()
    found: list[tuple[Fraction, units.Unit]] = []
    at = 0
    while at < len(plain):
        match = _COMPOUND.match(plain, at)
        if match is None or (unit := units.read(match[2])) is None:
            return None
        try:
            number = sum(Fraction(part) for part in match[1].replace(",", "").split())
        except ValueError:
            return None
        found.append((Fraction(number), unit))
        at = match.end()
    if len(found) < 2 or len({unit.dimensions for _, unit in found}) > 1 or not found[0][1].dimensions:
        return None
    if any(larger.factor <= smaller.factor for (_, larger), (_, smaller) in pairwise(found)):
        return None
    first = found[0][1]
    total = sum((number * unit.factor for number, unit in found), Fraction(0)) / first.factor
    return Side(f"\\frac{{{total.numerator}}}{{{total.denominator}}}", first)


def alike(one: str, other: str) -> bool:
    """Returns whether words name the same things: alike but for an end, or one begins as the other."""
    first, second = ([word.removesuffix("s") for word in re.findall(r"\w+", text)] for text in (one, other))
    short = min(len(first), len(second))
    return first[:short] == second[:short]
