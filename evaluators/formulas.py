"""Reads one formula, in LaTeX or in plain notation, into sympy: all of it or nothing.

The library's own parser leaves out what it does not know (a prime, a transposition), reads ``(2)(3)`` as a mixed number and
makes small letters of capitals, by which different answers become equal. So this one knows less, and refuses the rest.
It makes nothing but numbers, letters, sums, products, powers and named functions; sizes are checked before
(``sizes``). Used in a grader's worker alone.
"""

from __future__ import annotations

import re
from typing import Any

import sympy as _sympy

from speclrm.evaluators.formula_marks import END, LETTERS_MAX, Marks, Unknown
from speclrm.evaluators.formula_names import (
    ACCENTS,
    APPLIED,
    APPLIED_TO_NUMBERS,
    FUNCTIONS,
    GREEK,
    LOGARITHMS,
    MANY,
    NAMED,
    OPENING,
    OVER,
    TEXTS,
    TIMES,
)

sympy: Any = _sympy  # its stubs know little of what it does
Formula = Any
"""A sympy expression or matrix."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_DECIMALS_EXACT = 12
"""A decimal with no more places than these is what it says; one with more may be a float that was printed."""


def read(
    text: str, *, imaginary: bool = True, real: bool | None = True, factors: frozenset[str] = frozenset()
) -> Formula:
    """Returns the formula that the text is. Raises Unknown.

    ``imaginary``: i is the square root of -1. ``factors``: letters that are no functions, whatever stands behind them.
    """
    reader = _Reader(text, imaginary=imaginary, real=real, factors=factors)
    try:
        formula = reader.all()
    except (Unknown, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise Unknown(repr(error)[:100]) from error
    if _undefined(formula):
        raise Unknown("undefined")
    return formula


def _undefined(formula: Formula) -> bool:
    return bool(formula.has(sympy.nan, sympy.zoo))


def _is_vector(formula: Formula) -> bool:
    return any(letter.name.startswith(("vec{", "mathbf{")) for letter in formula.free_symbols)


class _Reader(Marks):
    def __init__(self, text: str, *, imaginary: bool, real: bool | None, factors: frozenset[str]) -> None:
        super().__init__(text)
        self._bars = 0
        self._imaginary = imaginary
        self._real = real
        self._factors = factors
        self._in_function = False

    def all(self) -> Formula:
        formula = self._sum()
        if self._mark != END:
            raise Unknown(self._mark)
        return formula

    def _sum(self) -> Formula:
        with self._deeper():
            total = self._term()
            while self._mark in ("+", "-"):
                sign = self._take()
                term = self._term()
                total = total + term if sign == "+" else total - term
            if self._mark == "\\choose":
                self._take()
                total = sympy.binomial(total, self._sum())
            return total

    def _term(self) -> Formula:
        sign = 1
        while self._mark in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        product = self._power()
        while True:
            mark = self._mark
            if mark in TIMES:
                self._take()
                factor = self._signed()
                if mark == "\\times" and _is_vector(product) and _is_vector(factor):
                    raise Unknown("a product of vectors")
                product = product * factor
            elif mark in OVER:
                self._take()
                product = product / self._signed()
            elif mark == "\\bmod":
                self._take()
                product = sympy.Mod(product, self._signed())
            elif self._begins_factor():
                if _NUMBER.match(mark) and self._marks[self._at - 1].text not in (")", "]", "}", "!"):
                    raise Unknown("numbers side by side")
                product = product * self._power()
            else:
                return product if sign > 0 else -product

    def _signed(self) -> Formula:
        sign = 1
        while self._mark in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        factor = self._power()
        return factor if sign > 0 else -factor

    def _begins_factor(self) -> bool:
        mark = self._mark
        if mark == END or mark in (
            "+",
            "-",
            ")",
            "]",
            "}",
            ",",
            ";",
            "=",
            "<",
            ">",
            "!",
            "^",
            "_",
            "'",
            "&",
            ":",
            "\\\\",
            "**",
            "°",
            "%",
            "\\%",
            ".",
        ):
            return False
        if mark == "|":
            return not self._bars
        return mark not in (
            "\\rvert", "\\rfloor", "\\rceil", "\\end", "\\choose", "\\rbrace", "\\rparen", "\\}", "\\|" if self._bars else END
        )  # fmt: skip

    def _power(self) -> Formula:
        """Reads one thing with all that stands behind it as its power, factorial or degrees."""
        begin = self._at
        base = self._one()
        while True:
            mark = self._mark
            if mark == "!":
                self._take()
                if self._mark in ("!", "="):
                    raise Unknown("!!")
                base = sympy.factorial(base)
            elif mark in ("%", "\\%"):
                self._take()
                base = base / 100
            elif mark == "°":
                self._take()
                base = base * sympy.pi / 180 if self._in_function else base
            elif mark in ("^", "**"):
                self._take()
                if self._degrees():
                    base = base * sympy.pi / 180 if self._in_function else base
                    continue
                base = self._raised(base, begin)
            elif mark in ("'", "_"):
                raise Unknown(mark)
            else:
                return base

    def _degrees(self) -> bool:
        for marks in (("{", "\\circ", "}"), ("\\circ",), ("{", "\\degree", "}"), ("\\degree",)):
            if tuple(mark.text for mark in self._marks[self._at : self._at + len(marks)]) == marks:
                self._at += len(marks)
                return True
        return False

    def _raised(self, base: Formula, begin: int) -> Formula:
        at = self._at
        mark = self._mark
        text = "".join(mark.text for mark in self._marks[at : at + 3])
        if mark in ("*", "+", "-", "\\ast", "\\dagger", "\\prime", "\\perp", "\\complement") and not re.match(
            r"[-+][\d(a-zA-Z\\]", text
        ):
            self._take()
            return self._marked(base, mark)
        if match := re.match(r"\{(\*|\+|-|\\ast|\\dagger|\\prime|\\perp|\\top|\\complement)\}", text):
            self._at += 3
            return self._marked(base, match[1])
        if mark == "\\top":
            self._take()
            return self._marked(base, "T")
        exponent = self._exponent()
        if base == sympy.E:
            return sympy.exp(exponent)
        if isinstance(base, sympy.MatrixBase) and not exponent.is_Integer:
            raise Unknown("power of a matrix")
        return base**exponent

    def _exponent(self) -> Formula:
        sign = 1
        while self._mark in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        outer, self._in_function = self._in_function, False
        with self._deeper():
            exponent = self._one(short=True)
            if self._mark in ("^", "**"):
                self._take()
                exponent = self._raised(exponent, self._at)
        self._in_function = outer
        return exponent if sign > 0 else -exponent

    def _marked(self, base: Formula, mark: str) -> Formula:
        """Makes another letter of one with a star or the like."""
        if not base.is_Symbol:
            raise Unknown(mark)
        return self._symbol(f"{base.name}^{mark}")

    def _one(self, *, short: bool = False) -> Formula:
        """Reads a number, a letter, a bracket or a command with what belongs to it. ``short``: of several letters the first."""
        here = self._marks[self._at]
        mark = here.text
        if _NUMBER.match(mark):
            return self._number()
        if mark in OPENING:
            return self._group()
        if mark == "|" or mark == "\\lvert":
            self._take()
            self._bars += mark == "|"
            inside = self._sum()
            self._bars -= mark == "|"
            self._take("|" if mark == "|" else "\\rvert")
            return inside.det() if isinstance(inside, sympy.MatrixBase) else sympy.Abs(inside)
        if mark == "\\|":
            self._take()
            self._bars += 1
            inside = self._sum()
            self._bars -= 1
            self._take("\\|")
            return sympy.Function("norm")(inside)
        if mark in ("\\lfloor", "\\lceil"):
            self._take()
            inside = self._sum()
            self._take(mark.replace("\\l", "\\r"))
            return sympy.floor(inside) if mark == "\\lfloor" else sympy.ceiling(inside)
        if mark.isalpha() and mark.isascii():
            return self._letters(short=short)
        if mark.startswith("\\"):
            return self._command()
        raise Unknown(mark)

    def _number(self) -> Formula:
        mark = self._take()
        if "." in mark or "e" in mark.lower():
            places = len(mark.lower().partition("e")[0].partition(".")[2])
            return (
                sympy.Rational(mark.rstrip(".")) if places <= _DECIMALS_EXACT else sympy.Float(mark, max(15, len(mark)))
            )
        whole = sympy.Integer(mark)
        following = [mark.text for mark in self._marks[self._at : self._at + 7]]
        # 7 5/6 and 7 \frac{5}{6}: a mixed number.
        if (
            self._marks[self._at].apart
            and len(following) > 2
            and following[0].isdecimal()
            and following[1] == "/"
            and following[2].isdecimal()
        ):
            part = sympy.Rational(int(following[0]), int(following[2]))
            taken = 3
        elif following[0] == "\\frac" and (
            match := re.match(r"\\frac(?:\{(\d+)\}|(\d))(?:\{(\d+)\}|(\d))", "".join(following))
        ):
            part = sympy.Rational(int(match[1] or match[2]), int(match[3] or match[4]))
            taken = 1 + (3 if match[1] else 1) + (3 if match[3] else 1)
            if not (match[1] and match[3]):
                return self._mixed_short(whole)
        else:
            return whole
        if not 0 < part < 1:
            raise Unknown("no proper mixed number")
        self._at += taken
        return whole + part

    def _mixed_short(self, whole: Formula) -> Formula:
        r"""Reads ``2\frac12``: digits without braces."""
        part = self._command()
        if not (part.is_Rational and 0 < part < 1):
            raise Unknown("no proper mixed number")
        return whole + part

    def _group(self) -> Formula:
        opening = self._take()
        outer, self._bars = self._bars, 0
        inside = self._sum()
        self._bars = outer
        self._take(OPENING[opening])
        return inside

    def _argument(self) -> Formula:
        """Returns what a command takes: a group in braces, one digit, one letter, or one command."""
        if self._mark == "{":
            return self._group()
        mark = self._mark
        if _NUMBER.fullmatch(mark) and len(mark) > 1 and mark.isdecimal():
            self._split()
            return sympy.Integer(self._take())
        if mark.isalpha() and len(mark) > 1:
            self._split()
        if mark in ("+", "-"):
            raise Unknown(mark)
        return self._one()

    # ---------------------------------------------------------------------------------------------------- names

    def _symbol(self, name: str) -> Formula:
        return sympy.Symbol(name, real=self._real)

    def _letters(self, *, short: bool) -> Formula:
        mark = self._mark
        if len(mark) > 1:
            if len(mark) > LETTERS_MAX:
                raise Unknown(mark)
            self._split(apart=True)
        letter = self._take()
        return self._named(letter)

    def _named(self, name: str) -> Formula:
        """Returns a letter with its index and primes, and its arguments where it is a function."""
        full = name + self._behind_name()
        if self._mark == "(" and (arguments := self._arguments(full)) is not None:
            return sympy.Function(full)(*arguments)
        if full in APPLIED and full not in self._factors and self._mark == "^":
            return self._applied_power(full)
        if full == "i" and self._imaginary:
            return sympy.I
        return sympy.E if full == "e" else sympy.pi if full == "pi" else self._symbol(full)

    def _applied_power(self, name: str) -> Formula:
        """Refuses ``f^2(x)``, which may be a power of a value or of the function itself."""
        symbol = self._symbol(name)
        self._take("^")
        power = self._raised(symbol, self._at)
        if self._mark == "(":
            raise Unknown("a power of a function")
        return power

    def _behind_name(self) -> str:
        behind = ""
        while True:
            if self._mark == "_":
                self._take()
                behind += "_" + self._plain_argument()
            elif self._mark == "'":
                self._take()
                behind += "'"
            elif self._mark == "^" and self._marks[self._at + 1].text in ("\\prime", "'"):
                self._at += 2
                behind += "'"
            elif self._mark == "^" and [mark.text for mark in self._marks[self._at + 1 : self._at + 4]] in (
                ["{", "\\prime", "}"],
                ["{", "'", "}"],
            ):
                self._at += 4
                behind += "'"
            else:
                return behind

    def _plain_argument(self) -> str:
        r"""Returns the text of an index: x_{max}, x_{\max} and x_\text{max} are the same."""
        if self._mark == "{":
            text = self._text_of_group()
        elif self._mark in TEXTS:
            self._take()
            text = self._text_of_group()
        else:
            text = self._take()  # of x_max, written plainly, all letters
        text = re.sub(r"\\(?:text|textrm|mathrm|mathit|operatorname|mbox|rm|,)(?![a-zA-Z])|[{}\s]", "", text)
        return re.sub(r"\\(?=[a-zA-Z])", "", text)

    def _text_of_group(self) -> str:
        self._take("{")
        depth, parts = 1, list[str]()
        while True:
            mark = self._take()
            depth += {"{": 1, "}": -1}.get(mark, 0)
            if not depth:
                return "".join(parts)
            parts.append((" " if self._marks[self._at - 1].apart else "") + mark)

    def _arguments(self, name: str) -> list[Formula] | None:
        """Returns the arguments in the bracket behind a name, or None where that is a factor."""
        depth, at, commas = 0, self._at, False
        while True:
            mark = self._marks[at].text
            if mark == END:
                raise Unknown("bracket")
            depth += (mark in "([{") - (mark in ")]}") if len(mark) == 1 else 0
            if depth == 0:
                break
            commas |= mark == "," and depth == 1
            at += 1
        inside = [mark.text for mark in self._marks[self._at + 1 : at]]
        lone = len(inside) == 1
        letter = lone and ((inside[0].isalpha() and len(inside[0]) == 1) or inside[0][1:] in GREEK)
        number = lone and bool(_NUMBER.match(inside[0]))
        first = name[0]
        if name in self._factors and not commas:
            return None
        if not (
            commas
            or (first in APPLIED and len(name.rstrip("'")) <= 3)
            or letter
            or (number and first in APPLIED_TO_NUMBERS)
            or "'" in name
        ):
            return None
        self._take("(")
        arguments = [self._sum()]
        while self._mark == ",":
            self._take()
            arguments.append(self._sum())
        self._take(")")
        return arguments

    # -------------------------------------------------------------------------------------------------- commands

    def _command(self) -> Formula:
        mark = self._take()
        name = mark[1:]
        if name == "frac":
            return self._fraction()
        if name == "sqrt":
            root = None
            if self._mark == "[":
                self._take()
                root = self._sum()
                self._take("]")
            of = self._group() if self._mark == "(" else self._argument()
            return sympy.sqrt(of) if root is None else of ** (1 / root)
        if name == "cbrt":
            return self._group() ** sympy.Rational(1, 3)
        if name in ("binom", "tbinom", "dbinom"):
            above = self._argument()
            return sympy.binomial(above, self._argument())
        if name == "pi" and self._mark != "_":
            return sympy.pi
        if name == "infty":
            return sympy.oo
        if name in ("imath", "jmath"):
            return sympy.I
        if name == "Gamma" and self._mark == "(":
            return sympy.gamma(self._group())
        if name == "zeta" and self._mark == "(" and _NUMBER.match(self._marks[self._at + 1].text):
            return sympy.zeta(self._group())
        if name in GREEK or name == "pi":
            return self._named(name)
        if mark in TEXTS:
            return self._in_words()
        if name in FUNCTIONS or name in LOGARITHMS:
            return self._function(name)
        if name in MANY:
            return self._of_many(name)
        if name in ("sum", "prod"):
            return self._over_range(name)
        if name in ("int", "lim"):
            raise Unknown(name)
        if name in ACCENTS:
            inside = self._plain_argument()
            if name == "overset" or name == "stackrel":
                raise Unknown(name)
            name = {
                "overline": "bar",
                "widehat": "hat",
                "widetilde": "tilde",
                "overrightarrow": "vec",
                "boldsymbol": "mathbf",
                "bm": "mathbf",
            }.get(name, name)
            return self._named(f"{name}{{{inside}}}")
        if name in NAMED:
            return self._operand_of(name)
        if name == "begin":
            return self._matrix()
        raise Unknown(mark)

    def _in_words(self) -> Formula:
        text = self._text_of_group().strip() if self._mark == "{" else ""
        if text in ("i", "e"):
            return self._named(text)
        if re.fullmatch(r"\d+(?:\.\d+)?", text):
            return sympy.Rational(text)
        plain = text.removeprefix("\\").strip()
        if plain in FUNCTIONS or plain in LOGARITHMS:
            return self._function(plain)
        if plain in MANY:
            return self._of_many(plain)
        if plain in NAMED:
            return self._operand_of(plain)
        if not re.fullmatch(r"[A-Za-z]+", text):
            raise Unknown(text)
        return self._named(text)

    def _fraction(self) -> Formula:
        above = self._peek_argument()
        if re.match(r"\{?\s*(?:\\mathrm\{d\}|d|\\partial)(?![a-zA-Z]{2})", above) and re.search(
            r"\{\s*(?:\\mathrm\{d\}|d|\\partial)\s*\\?[a-zA-Z]+", above[1:]
        ):
            raise Unknown("a derivative")
        top = self._argument()
        below = self._argument()
        return top / below if not isinstance(below, sympy.MatrixBase) else self._refuse()

    def _refuse(self) -> Formula:
        raise Unknown("")

    def _peek_argument(self) -> str:
        return "".join(mark.text for mark in self._marks[self._at : self._at + 24])

    def _function(self, name: str) -> Formula:
        base: Formula = None
        power: Formula = None
        while self._mark in ("^", "_", "**"):
            mark = self._take()
            if mark == "_":
                if name != "log":
                    raise Unknown("index of a function")
                base = self._argument() if not _NUMBER.fullmatch(self._mark) else self._base()
            else:
                power = self._exponent()
        outer, self._in_function = (
            self._in_function,
            name not in LOGARITHMS and name not in ("exp", "abs", "floor", "ceil"),
        )
        of = self._operand(divided=name in FUNCTIONS and name not in ("exp",))
        self._in_function = outer
        if name in LOGARITHMS:
            made = sympy.log(of) if name == "ln" else sympy.log(of) / sympy.log(10 if base is None else base)
        else:
            function = FUNCTIONS[name]
            if power == -1 and not function.startswith("a") and hasattr(sympy, "a" + function):
                function, power = "a" + function, None
            made = sympy.exp(sympy.I * of) if function == "cis" else getattr(sympy, function)(of)
        return made if power is None else made**power

    def _base(self) -> Formula:
        r"""Returns the base of ``\log_2 3`` or ``\log_{2}``; of ``\log_28`` the first digit."""
        mark = self._mark
        if (
            len(mark) > 1
            and not self._marks[self._at + 1].apart
            and self._marks[self._at + 1].text in (END, ")", "}", "+", "-", ",")
        ):
            return self._argument()
        return sympy.Integer(self._take())

    def _operand(self, *, divided: bool) -> Formula:
        """Returns what a function is taken of: a bracket, or the factors up to the next sign or function."""
        if self._mark in ("(", "[", "{", "|", "\\lvert", "\\lfloor", "\\lceil"):
            return self._one()
        with self._deeper():
            sign = 1
            while self._mark in ("+", "-"):
                sign = -sign if self._take() == "-" else sign
            product = self._power()
            while self._begins_factor() or (divided and self._mark == "/"):
                if self._mark == "/":
                    behind = self._marks[self._at + 1].text[1:]
                    if not divided or behind in FUNCTIONS or behind in LOGARITHMS:
                        break
                    self._take()
                    product = product / self._power()
                    continue
                if (
                    self._mark in ("(", "[")
                    or self._mark[1:] in FUNCTIONS
                    or self._mark[1:] in LOGARITHMS
                    or self._mark in TIMES | OVER
                ):
                    break
                product = product * self._power()
            return product if sign > 0 else -product

    def _of_many(self, name: str) -> Formula:
        opening = self._take()
        if opening == "{" and self._mark == "\\{":
            opening = self._take()
        closing = {"(": ")", "\\{": "\\}", "[": "]", "{": "}"}.get(opening)
        if closing is None:
            raise Unknown(name)
        numbers = [self._sum()]
        while self._mark == ",":
            self._take()
            numbers.append(self._sum())
        self._take(closing)
        if name in ("gcd", "lcm"):
            if not all(number.is_Integer for number in numbers):
                return sympy.Function(name)(*sorted(numbers, key=str))
            made = numbers[0]
            for number in numbers[1:]:
                made = getattr(sympy, name)(made, number)
            return made
        return getattr(sympy, MANY[name])(*numbers)

    def _over_range(self, name: str) -> Formula:
        self._take("_")
        self._take("{")
        index = self._sum()
        self._take("=")
        begin = self._sum()
        self._take("}")
        self._take("^")
        end = self._exponent()
        if index == sympy.I or not index.is_Symbol:
            raise Unknown("index of a sum")
        of = self._term()
        return (sympy.Sum if name == "sum" else sympy.Product)(of, (index, begin, end))

    def _operand_of(self, name: str) -> Formula:
        begin = self._at
        if self._mark.isalpha() and len(self._mark) > 1:
            text = self._take()
        else:
            self._power()
            text = "".join(mark.text for mark in self._marks[begin : self._at])
        text = re.sub(r"[{}()]|\\(?:text|mathrm)(?![a-zA-Z])", "", text)
        return self._symbol(f"{name} {text}")

    def _matrix(self) -> Formula:
        kind = self._text_of_group()
        if kind == "array":
            self._text_of_group()
        elif kind not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "smallmatrix", "Bmatrix"):
            raise Unknown(kind)
        rows: list[list[Formula]] = [[]]
        while self._mark != "\\end":
            if self._mark == "&":
                self._take()
            elif self._mark == "\\\\":
                self._take()
                rows.append([])
            else:
                rows[-1].append(self._sum())
        self._take()
        if self._text_of_group() != kind:
            raise Unknown(kind)
        matrix = sympy.ImmutableMatrix([row for row in rows if row])
        return matrix.det() if kind == "vmatrix" else matrix
