r"""Estimates how large an answer becomes when it is worked out, by value and before that: pure text work.

An algebra system that is given ``9^{9^9}``, ``(x+1)^{999}`` or ``\binom{x}{9999}`` begins to compute it and does not come
back. Here such a text is read by a small tolerant reader of its own, from which each part gets upper bounds: the digits
of its numbers, the terms that it has when it is multiplied out. None of these numbers is ever made, and the time is
linear. What the bounds let through may still be slow; that is what the grader's limits are for.

The seconds behind the bounds were measured with sympy 1.14 on one busy core.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from math import exp, inf, lgamma, log, log10
from typing import TYPE_CHECKING, NamedTuple

from speclrm.evaluators import notation

if TYPE_CHECKING:
    from collections.abc import Generator

LENGTH_MAX = 1_000
NESTING_MAX = 12
"""Brackets within brackets: the parser of LaTeX takes longer for each (0.8 s at ten, 3 s at twelve, 6 s at sixteen)."""
DIGITS_MAX = 20_000
"""Digits of all numbers together: 2025^2025 has 6,696. Comparing two such numbers takes 0.05 s."""
ROOT_DIGITS_MAX = 1_000
"""Digits under a root, or of the base of a power that is no whole number: factors are looked for (0.6 s; no end at 2,000)."""
TERMS_MAX = 256
"""Terms of a polynomial that is multiplied out: (x+1)^255 against (x+2)^255 takes 1.2 s, with 400 terms 3.7 s."""
NUMBER_TERMS_MAX = 1_000
r"""The same of roots alone: (1+\sqrt2)^1000 takes 1.7 s."""
FACTORS_MAX = 100
r"""Factors that a binomial coefficient or a factorial of letters has: \binom{x}{100} takes 5 s."""
QUOTIENT_DEGREE_MAX = 2_500
"""The degree of what is divided by a sum of letters: (x^2024-1)/(x-1) takes 4 s."""
RANGE_MAX = 10_000
"""Terms that a sum or a product runs over."""
EXACT_MAX = 2.0**53
"""Whole numbers below it are exact as floats."""

_GROWS = re.compile(r"[\^!*({\[\\√]|\d[eE]")
"""Without any of these a text is no larger than it looks."""
_ENDLESS = re.compile(r"\\(?:sum|prod|int)\b")
r"""A sum, product or integral without bounds: in ``\sum_{k=1}^n`` there is no end of a word behind the name."""
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
"""A doubled backslash before a command, which the parser takes for one."""
_MARK = re.compile(
    r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
    r"|\\(?:begin|end|operatorname\*?)\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.|\*\*|\S",
    re.DOTALL,
)
_NOTHING = re.compile(
    r"\\(?:m?left|m?right|[bB]igg?[lrm]?|displaystyle|limits|mathrm|mathbf|mathit|text\w*|mbox|boxed|phantom|[,;:! $])|[~$]"
)
_APART = re.compile(
    r"[,;:=<>&|≤≥≠≈∈∪∩→]|\\(?:leq?|geq?|neq?|lt|gt|approx|equiv|sim|in|notin|cup|cap|setminus|to|implies|iff|[lrLR]\w*arrow"
    r"|mid|q?quad|and|or|vert|[\\|])"
)
"""What stands between answers or between sides, rather than in them."""
_OPENING = {"(", "[", "{", "\\{", "\\(", "\\[", "\\lbrace", "\\lbrack", "\\lgroup", "\\langle", "\\lfloor", "\\lceil"}
_CLOSING = {")", "]", "}", "\\}", "\\)", "\\]", "\\rbrace", "\\rbrack", "\\rgroup", "\\rangle", "\\rfloor", "\\rceil"}
_SIGNS = {"+": 1.0, "-": -1.0, "−": -1.0, "±": 0.0, "\\pm": 0.0, "\\mp": 0.0}
_TIMES = {"*", "×", "·", "⋅", "\\cdot", "\\times", "\\ast", "\\bmod", "\\mod"}
_OVER = {"/", "÷", "\\div"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}
_BINOMIALS = {"\\binom", "\\dbinom", "\\tbinom"}
_POWERS = {"^", "**"}
_VALUES = {"e": 3.0, "\\pi": 4.0, "π": 4.0}
_END = ""


def too_much(text: str, nesting_max: int = NESTING_MAX) -> bool:
    """Returns whether an algebra system may take for ever over it."""
    return weight(text, nesting_max) == inf


def weight(text: str, nesting_max: int = NESTING_MAX) -> float:
    """Estimates how much there is to compute; infinite where it is too much."""
    if len(text) > LENGTH_MAX or "\x00" in text or _ENDLESS.search(text):
        return inf
    text = notation.DIGIT_GROUPS.sub("", notation.clean(text))
    if not _GROWS.search(text):
        return len(text)
    try:
        size = _Reader(text, nesting_max).read()
    except _TooMuch:
        return inf
    return len(text) + size.terms + size.degree + size.digits


class _TooMuch(Exception):
    """The text is beyond one of the bounds."""


class _Size(NamedTuple):
    """Upper bounds of a part of the text.

    ``digits``: of the numbers that come up in it, as a decimal logarithm. ``value``: its own, or the sum of its
    coefficients. ``terms``, ``degree``: when it is multiplied out. ``letters``: what its terms are made of, roots
    included. ``symbolic``: whether these are more than roots. ``exact``: its value with its sign, where it is known.
    """

    digits: float
    value: float
    terms: float = 1.0
    degree: float = 0.0
    letters: frozenset[str] = frozenset()
    symbolic: bool = False
    exact: float | None = None


def _checked(
    digits: float,
    value: float,
    terms: float,
    degree: float,
    letters: frozenset[str],
    symbolic: bool,
    exact: float | None,
) -> _Size:
    """Returns the size of these bounds, made tighter where one follows from another. Raises _TooMuch where one is too much."""
    if digits > DIGITS_MAX:
        raise _TooMuch
    if terms > 1:
        terms = min(terms, _monomials(degree, len(letters)))
        if terms > (TERMS_MAX if symbolic else NUMBER_TERMS_MAX):
            raise _TooMuch
    if exact is not None:
        if abs(exact) < EXACT_MAX:
            value = abs(exact)
        else:
            exact = None
    return _Size(digits, value, terms, degree, letters, symbolic, exact)


_NONE = _Size(0.0, 0.0, exact=0.0)
_ONE = _Size(0.0, 1.0, exact=1.0)


def _letter(name: str) -> _Size:
    value = _VALUES.get(name, 1.0)
    return _Size(log10(value), value, 1.0, 1.0, frozenset((name,)), True)


def _number(text: str) -> _Size:
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    shift = abs(float(exponent or 0))
    short = len(whole) < 16 and shift < 16
    value = float(text)
    digits = log10(max(float(whole or 0), 1.0)) if len(whole) < 16 else len(whole)
    return _checked(digits + len(decimals) + shift, value, 1.0, 0.0, frozenset(), False, value if short else None)


def _plus(one: _Size, other: _Size, sign: float = 1.0) -> _Size:
    """Adds two sizes. ``sign``: 1, -1, or 0 where it is unknown, or the two only stand side by side."""
    known = sign and one.exact is not None and other.exact is not None
    return _checked(
        one.digits + other.digits,
        one.value + other.value,
        one.terms + other.terms,
        max(one.degree, other.degree),
        one.letters | other.letters,
        one.symbolic or other.symbolic,
        (one.exact or 0.0) + sign * (other.exact or 0.0) if known else None,
    )


def _times(one: _Size, other: _Size) -> _Size:
    known = one.exact is not None and other.exact is not None
    return _checked(
        one.digits + other.digits,
        one.value * other.value if one.value and other.value else 0.0,
        one.terms * other.terms,
        one.degree + other.degree,
        one.letters | other.letters,
        one.symbolic or other.symbolic,
        (one.exact or 0.0) * (other.exact or 0.0) if known else None,
    )


def _over(one: _Size, other: _Size) -> _Size:
    if other.symbolic and other.terms > 1 and one.degree > QUOTIENT_DEGREE_MAX:
        raise _TooMuch  # to divide by a sum fills all the gaps between the terms
    if other.exact:
        return _times(one, other._replace(value=1 / abs(other.exact), exact=1 / other.exact))
    return _times(one, other._replace(value=_ten_to(other.digits), exact=None))


def _power(base: _Size, exponent: _Size) -> _Size:
    times = max(exponent.value, 1.0)
    whole = exponent.exact is not None and exponent.exact.is_integer()
    if not whole and base.digits > ROOT_DIGITS_MAX:
        raise _TooMuch
    digits = max(base.digits, log10(base.value) if base.value > 1 else 0.0)
    digits = digits * times if digits else 0.0
    exact: float | None = None
    if base.exact is not None and exponent.exact is not None and whole and digits < 16:
        exact = base.exact**exponent.exact if base.exact or exponent.exact >= 0 else None
    return _checked(
        digits + exponent.digits,
        _ten_to(digits),
        _combinations(times + base.terms - 1, base.terms - 1) if base.terms > 1 else 1.0,
        max(base.degree * times if base.degree else 0.0, exponent.degree),
        base.letters | exponent.letters,
        base.symbolic or exponent.symbolic,
        exact,
    )


def _factorial(of: _Size) -> _Size:
    if of.symbolic:
        if of.value > FACTORS_MAX:
            raise _TooMuch
        return of._replace(terms=1.0, degree=1.0, exact=None)
    digits = lgamma(of.value + 1) / log(10) if of.value < EXACT_MAX else inf
    return _checked(of.digits + digits, _ten_to(digits), 1.0, of.degree, of.letters, False, None)


def _binomial(above: _Size, below: _Size) -> _Size:
    both = _times(above, below)
    if both.symbolic:
        factors = 1.0 if below.symbolic else below.value
        if factors > FACTORS_MAX:
            raise _TooMuch
        return both._replace(terms=factors + 1, degree=max(factors * above.degree, 1.0), exact=None)
    # As it is computed: a product of so many factors.
    factors = below.value
    if above.exact is not None and below.exact is not None:
        factors = max(0.0, min(below.exact, above.exact - below.exact))
    digits = min(above.value * log10(2), factors * (above.digits + 1))
    return _checked(both.digits + digits, _ten_to(digits), 1.0, both.degree, both.letters, False, None)


def _root(of: _Size, name: str) -> _Size:
    if of.digits > ROOT_DIGITS_MAX:
        raise _TooMuch
    return _Size(of.digits, max(of.value, 1.0), 1.0, 1.0, frozenset((name,)), of.symbolic)


def _ten_to(digits: float) -> float:
    return 10.0**digits if digits < 300 else inf


def _combinations(n: float, k: float) -> float:
    """Returns how many ways there are to take k of n; infinite where they are beyond counting."""
    if n > 1e6:
        return n if k == 1 else inf
    logarithm = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return round(exp(logarithm), 3) if logarithm < 100 else inf


def _monomials(degree: float, letters: int) -> float:
    """Returns how many products of so many letters have at most that degree."""
    return _combinations(degree + letters, letters) if letters else 1.0


class _Reader:
    """Reads a text from left to right and forgives everything: what it does not know is a letter."""

    def __init__(self, text: str, nesting_max: int) -> None:
        marks: list[str] = _MARK.findall(_DOUBLED.sub(r"\\", text))
        self._marks = [mark for mark in marks if len(mark) == 1 or not _NOTHING.fullmatch(mark)]
        self._marks.append(_END)
        self._at = 0
        self._depth = 0
        self._nesting_max = nesting_max

    def read(self) -> _Size:
        size = self._all()
        while self._marks[self._at]:  # a bracket that nothing had opened
            self._at += 1
            size = self._all(size)
        return size

    def _all(self, total: _Size = _NONE) -> _Size:
        """Reads what stands up to the next closing bracket; ``total``: what stands before it."""
        product: _Size | None = None
        sign, over = 1.0, False
        while not _closes(mark := self._marks[self._at]):
            if mark in _SIGNS or _stands_between(mark):
                self._at += 1
                if product is not None:
                    total, product, sign = _plus(total, product, sign), None, 1.0
                sign *= _SIGNS.get(mark, 0.0)
                over = False
            elif mark in _TIMES or mark in _OVER:
                self._at += 1
                over = mark in _OVER
            elif mark == "\\choose":
                self._at += 1
                above = total if product is None else _plus(total, product, sign)
                total, product = _binomial(above, self._all()), None
            else:
                if product is None and (mark in _POWERS or mark == "!"):
                    # A power of something between bars, or behind a bracket too many: of all that stands before it.
                    factor, total = self._behind(total), _NONE
                else:
                    factor = self._factor()
                product = factor if product is None else (_over if over else _times)(product, factor)
                over = False
        return total if product is None else _plus(total, product, sign)

    def _factor(self) -> _Size:
        """Reads one thing with its powers and factorials."""
        return self._behind(self._one())

    def _behind(self, size: _Size) -> _Size:
        while (mark := self._marks[self._at]) in _BEHIND:
            self._at += 1
            if mark in _POWERS:
                size = _power(size, self._exponent())
            elif mark == "!":
                size = _factorial(size)
            elif mark == "_":
                # (n)_{k} is read as a quotient of factorials; all other indices are part of a name.
                quotient = self._at >= 2 and self._marks[self._at - 2] == ")" and self._marks[self._at] == "{"
                below = self._one()
                size = _times(_factorial(size), below) if quotient else size
        return size

    def _exponent(self) -> _Size:
        sign = 1.0
        while self._marks[self._at] in _SIGNS:
            sign *= _SIGNS[self._marks[self._at]]
            self._at += 1
        with self._deeper():
            size = self._one()
            if self._marks[self._at] in _POWERS:
                self._at += 1
                size = _power(size, self._exponent())
        return size._replace(exact=sign * size.exact if sign and size.exact is not None else None)

    def _one(self) -> _Size:
        """Reads a number, a letter, a bracket with all that is in it, or a command with what belongs to it."""
        begin = self._at
        mark = self._marks[begin]
        if _closes(mark):
            return _ONE
        self._at += 1
        if mark[0].isdecimal() or (mark[0] == "." and len(mark) > 1):
            return _number(mark)
        if mark in _OPENING or mark.startswith("\\begin"):
            return self._group()
        if mark in _FRACTIONS:
            return _over(self._operand(), self._operand())
        if mark in _BINOMIALS:
            return _binomial(self._operand(), self._operand())
        if mark in ("\\sqrt", "√"):
            if self._marks[self._at] == "[":
                self._operand()
            of = self._operand()
            return _root(of, "".join(self._marks[begin : self._at]))
        if mark == "\\exp":
            return _power(_letter("e"), self._operand())
        if mark in ("\\Gamma", "\\gamma") and self._marks[self._at] in _OPENING:
            return _factorial(self._operand())
        if mark in ("\\sum", "\\prod"):
            return self._range()
        return _letter(mark)

    def _operand(self) -> _Size:
        """Returns what a command takes: a bracket alone, or one thing with its powers."""
        if self._marks[self._at] in _OPENING:
            self._at += 1
            return self._group()
        with self._deeper():
            return self._factor()

    def _group(self) -> _Size:
        with self._deeper():
            size = self._all()
        if self._marks[self._at]:
            self._at += 1  # its closing bracket, of whatever kind
        return size

    def _range(self) -> _Size:
        """Returns the bounds of a sum or a product. What is summed stands behind it."""
        while self._marks[self._at] in ("_", "^"):
            self._at += 1
            if self._one().value > RANGE_MAX:
                raise _TooMuch
        return _ONE

    @contextmanager
    def _deeper(self) -> Generator[None]:
        self._depth += 1
        if self._depth > self._nesting_max:
            raise _TooMuch
        yield
        self._depth -= 1


_BEHIND = {*_POWERS, "!", "_", "'"}


def _closes(mark: str) -> bool:
    return mark in _CLOSING or mark.startswith("\\end") or not mark


def _stands_between(mark: str) -> bool:
    return not mark.isalnum() and _APART.fullmatch(mark) is not None
