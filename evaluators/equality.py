"""Decides whether two formulas or numbers of sympy are equal, as far as it can be shown."""

from __future__ import annotations

import re
from typing import Any, cast

import sympy as _sympy

sympy: Any = _sympy

FLOAT_DIGITS = 12
"""Decimals that count: 0.33333333 is not 1/3, and the last digits of a float are nobody's."""
TINY = 1e-3
"""Under it numbers are compared by their leading digits instead."""
EXACT_BITS = 53
"""What sympy must be sure of in a number, for its digits to count against it."""


def same_formulas(one: Any, other: Any) -> bool:
    """Returns whether two formulas are equal, as far as it can be shown."""
    try:
        return _same_formulas(one, other)
    except NO_ANSWER:
        return False


def _same_formulas(one: Any, other: Any) -> bool:
    matrices = [isinstance(formula, sympy.MatrixBase) for formula in (one, other)]
    if any(matrices):
        return (
            all(matrices)
            and one.shape == other.shape
            and all(same_formulas(a, b) for a, b in zip(one.flat(), other.flat(), strict=True))
        )
    if one == other:
        return True
    one, other = (formula.doit() if formula.has(sympy.Sum, sympy.Product) else formula for formula in (one, other))
    if (told := _same_by_digits(one, other)) is not None:
        return told
    if one.has(sympy.oo, -sympy.oo) or other.has(sympy.oo, -sympy.oo):
        return False
    if _apart_at_a_point(one, other):
        return False
    if verified(one, other):
        return True
    if one.has(*_HYPERBOLIC) or other.has(*_HYPERBOLIC):
        apart = one - other
        return bool(sympy.simplify(apart.rewrite(sympy.exp)) == 0 or sympy.simplify(apart.rewrite(sympy.log)) == 0)
    if one.has(sympy.log) and other.has(sympy.log) and one.free_symbols:
        return _same_logarithms(one, other)
    return False


def _same_logarithms(one: Any, other: Any) -> bool:
    """Returns whether formulas are equal where all logarithms of theirs are of positive numbers, as people read them. Those of
    absolute values stay what they are.
    """
    apart = (one - other).rewrite(sympy.sec, sympy.cos).rewrite(sympy.csc, sympy.sin)
    apart = apart.replace(sympy.Abs, _quotient_of_absolutes)
    apart = sympy.expand_log(sympy.factor(apart, deep=True), force=True)
    return bool(apart == 0 or sympy.simplify(apart) == 0)


def _quotient_of_absolutes(of: Any) -> Any:
    above, below = sympy.fraction(sympy.together(of))
    return sympy.Abs(above) / sympy.Abs(below)


NO_ANSWER = (TypeError, ValueError, NotImplementedError, ArithmeticError, AttributeError)
"""What sympy raises where it has no answer."""
_POINTS = (1.37, 2.19)
_APART = 1e-6
"""By which share values must differ at a point for the formulas to differ; rounding is far below it."""


def _apart_at_a_point(one: Any, other: Any) -> bool:
    """Returns whether two formulas with letters have clearly different values somewhere. Most that differ are told apart by that,
    at once. Letters stand for positive numbers there, for which roots and logarithms are what people mean by them.
    """
    letters = sorted(one.free_symbols | other.free_symbols, key=str)
    if not letters:
        return False
    for point in _POINTS:
        values = {letter: sympy.Float(point + 0.113 * at) for at, letter in enumerate(letters)}
        try:
            first, second = (complex(formula.evalf(15, subs=values)) for formula in (one, other))
        except (*NO_ANSWER, RecursionError):
            return False
        larger = max(abs(first), abs(second))
        if larger < float("inf") and abs(first - second) > _APART * max(larger, TINY):
            return True
    return False


_HYPERBOLIC = tuple(
    getattr(sympy, name) for name in ["sinh", "cosh", "tanh", "coth", "sech", "csch", "asinh", "acosh", "atanh"]
)


def verified(one: Any, other: Any) -> bool:
    import math_verify

    return bool(
        cast("Any", math_verify).verify(
            [one],
            [other],
            float_rounding=FLOAT_DIGITS,
            allow_set_relation_comp=True,
            timeout_seconds=None,
            raise_on_error=False,
        )
    )


_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")


def same_by_library(gold: str, answer: str) -> bool:
    """Integrals and limits, which are the library's to read."""
    import latex2sympy2_extended
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    library = cast("Any", latex2sympy2_extended)

    try:
        one, other = (
            library.latex2sympy(
                _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text.replace("\\\\", "\\")),
                is_real=True,
                normalization_config=None,
                conversion_config=ConversionConfig(lowercase_symbols=False),
            )
            for text in (gold, answer)
        )
    except Exception:  # noqa: BLE001  # a parser's refusal has no type of its own
        return False
    return verified(one, other)


def _same_by_digits(gold: Any, answer: Any) -> bool | None:
    """Returns whether two numbers are the same, where their leading digits tell; None where they do not, or are no such numbers.

    The library rounds to a number of decimals, by which all numbers next to zero are the same; and it does so on the way
    as well, by which a huge number times a tiny one is nothing.
    """
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return None
    if gold.is_Rational and answer.is_Rational:
        return bool(gold == answer)
    one, other = gold.evalf(2 * FLOAT_DIGITS), answer.evalf(2 * FLOAT_DIGITS)
    if not (one.is_Float and other.is_Float and max(abs(one), abs(other)) > 0):
        return None
    apart, larger = abs(one - other), max(abs(one), abs(other))
    if larger < TINY:
        return bool(apart <= larger * 10.0**-FLOAT_DIGITS)
    # As many decimals as count where the numbers are smallest. Nothing follows where the digits themselves are in doubt.
    sure = min(one._prec, other._prec) >= EXACT_BITS
    return False if sure and apart > larger * 10.0**-FLOAT_DIGITS / TINY else None
