"""Whether two answers mean the same: part by part where they have parts, as formulas where they are one.

What is not understood is compared as it is written, and never left out. Used in a grader's worker alone.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple, cast

import sympy as _sympy
from sympy.core.function import AppliedUndef as _AppliedUndef

from speclrm.evaluators import formulas, units
from speclrm.evaluators.formulas import Unknown
from speclrm.evaluators.notation import word_set

sympy: Any = _sympy
AppliedUndef: Any = _AppliedUndef

FLOAT_DIGITS = 12
"""Decimals that count: 0.33333333 is not 1/3, and the last digits of a float are nobody's."""
TINY = 1e-3
"""Under it numbers are compared by their leading digits instead."""
EXACT_BITS = 53
"""What sympy must be sure of in a number, for its digits to count against it."""
PARTS_MAX = 60
DEPTH_MAX = 8

_TEXTS = r"\\(?:text|textrm|textnormal|mbox|mathrm|textit|rm|operatorname)"
_JOINT = re.compile(rf"{_TEXTS}\s*\{{\s*,?\s*(and|or)\s*,?\s*\}}")
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[A-Za-z]+|.", re.DOTALL)
_SPACE = re.compile(r"(?<!\d)(?:\s|\\[,;:! ]|~|\\q?quad(?![a-zA-Z]))+|(?:\s|\\[,;:! ]|~|\\q?quad(?![a-zA-Z]))+(?!\d)")
_ONE_IN_BRACES = re.compile(r"\{(\w|\\[a-zA-Z]+)\}")
_OPENS, _CLOSES = (
    {"(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle"},
    {")", "]", "}", "\\}", "\\rfloor", "\\rceil", "\\rangle"},
)
_RELATIONS = {
    "=": "=", ":=": "=", "==": "=", "\\approx": "~", "\\simeq": "~", "\\doteq": "~",
    "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=",
    "<=": "<=",
    ">=": ">=", "\\ne": "!=", "!=": "!=", "\\in": "in", "\\equiv": "mod",
}  # fmt: skip
_OTHER_RELATIONS = re.compile(
    r"\\(?:not|n?mid|n?parallel|perp|sim|cong|propto|to|iff|implies|impliedby|mapsto|n?subset\w*|n?supset\w*|notin|ni|nleq?|ngeq?|nless"
    r"|prec\w*|succ\w*|(?:long|Long|left|Left|right|Right)\w*arrow|land|lor|wedge|vee|models|vdash|ll|gg|asymp)(?![a-zA-Z])"
)
_LEAD_WORDS = re.compile(
    rf"^(?:{_TEXTS}\s*\{{)?\s*(?:(?:so|thus|hence)\s+)?(?:(?:the|a|an)\s+)?(?:(?:(?:final|correct)\s+)?answer\s*(?::|is\b|=)|approximately\b|approx\b\.?|about\b|roughly\b|"
    rf"exactly\b|equal\s+to\b|a\s+total\s+of\b|total\s+of\b|(?:一共|总共|共)?[有是为约]|等于|一共|总共|共)\s*:?\s*(?P<close>\}})?",
    re.IGNORECASE,
)
_QUALIFIER = re.compile(
    rf"[\s,;~]*(?:{_TEXTS}\s*\{{[\s,~]*|(?<=[\s,])\(?)(?=(?:for\s+(?:all|any|every|each|some|arbitrary|integers?|real|positive|natural)\b|for\s*\}}\s*\w"
    r"|where\b|with\s+[a-zA-Z]\b|with\s*\}))",
    re.IGNORECASE,
)
_REMARK = re.compile(
    rf"\s*(?:{_TEXTS}\s*\{{\s*\(([^(){{}}]*)\)\s*\}}|\((?={_TEXTS}|[a-zA-Z]{{3,}}\s?[a-zA-Z]*)([^()]*)\))\s*$"
)
_COMMA_IN_TEXT = re.compile(rf"({_TEXTS}\s*\{{[^{{}},]*[^{{}},\s])\s*,\s*\}}")
_ALSO = re.compile(r"\s*\((?:or|i\.e\.,?|that is,?|=)\s*([^()]*)\)\s*$")
"""Another form of the answer in brackets behind it."""
_PLAIN_BUILT = re.compile(r"\{\s*[a-zA-Z]\s*(?:\\in[^|:]*)?(?:\||\\mid|:)")
_CONDITION = re.compile(
    r"\b(?:if|when|unless|only|mod|or|otherwise|and)\b|[=<>]|\\(?:ne|le|ge|in|equiv)\b", re.IGNORECASE
)
_DOMAIN = re.compile(r"\s*([a-zA-Z](?:\s*,\s*[a-zA-Z])*)\s*\\in\s*(\\(?:mathbb|mathbf)\s*\{?\s*[A-Z]\}?.*)")
_UNIT_TAIL = re.compile(
    rf"(?:(?:{_TEXTS}\s*\{{[^{{}}]*\}}|\\(?:mu|Omega|AA|degree)(?![a-zA-Z])|\^\s*\{{?\s*\\circ\s*\}}?|°|\\%|%|(?<![a-zA-Z\d])[A-Za-zΩÅ]{{1,3}}(?=\s*(?:/|\\cdot|$)))"
    rf"(?:\s*\^\s*(?:\{{\s*[-+]?\d\s*\}}|-?\d))?|[\s~/*()]|1(?=\s*/)|\\[,;:! ]|\\cdot(?![a-zA-Z])"
    rf"|\\times(?![a-zA-Z])|-(?=\\text))+$"
)
_FRACTION_UNIT = re.compile(
    rf"\\frac\s*\{{\s*({_TEXTS}\s*\{{[^{{}}]*\}})\s*\}}\s*\{{\s*({_TEXTS}\s*\{{[^{{}}]*\}}(?:\s*\^\s*\{{?\d\}}?)?)\s*\}}\s*$"
)
_NUMERIC = re.compile(
    r"[-+±\s]*(?:\\pm\s*)?(?:\d[\d.,]*(?:[eE][-+]?\d+)?|\.\d+|\\frac\s*(?:\{[-+\d.\s]*\}|\d)\s*(?:\{[\d.\s]*\}|\d)|\\sqrt\s*(?:\{[\d.\s]*\}|\d)|\\pi(?![a-zA-Z])"
    r"|\\(?:times|cdot)(?![a-zA-Z])|\^\s*(?:\{[-+\d\s]*\}|-?\d+)|[-+/*]|\([-+\d.,\s/]*\)|\s|\\[,;:! ]|~|\{[-\d.,]*\})+"
)
_PLAIN_TAIL = re.compile(r"[\u4e00-\u9fff]{1,4}|[A-Za-zµΩÅ°][A-Za-zµΩÅ°\s./*^{}()·'-]*(?:\d[A-Za-z\s./*^{}-]*)*")
_MONEY = re.compile(r"^\s*(?P<sign>-?)\s*(?:\\text\s*\{\s*)?(?P<money>\\\$|[$€£¥₹])\s*\}?\s*")
_NO_UNIT = word_set(
    "or more less fewer least most not no none than up over under at but and if only unless to between except minus "
    "plus times nor above below greater smaller larger bigger either neither both half quarter third double twice mod "
    "for when squared cubed factorial choose is are without from isn't"
)
"""Words that say more of a number than what is counted."""
_COMPOUND = re.compile(r"([-+]?[\d.,]+(?:\s+\d+/\d+)?)\s*([A-Za-z]+)\s*(?:,|\band\b|,\s*and\b)?\s*")
_OPAQUE_UNITS = word_set("mg ms nm pm ml dm cd as ps ns pg ng cl dl hl mN mV mA mW mJ kN kV kA kW kJ mT mH in at h")
"""Signs that are products of letters where they stand plainly behind a number."""
_SPEED = re.compile(r"m\s*/\s*s(?:\s*\^\s*\{?2\}?)?")
_ARTICLES = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)


class Side(NamedTuple):
    """A part of an answer without what stands around its value.

    ``unit``: of it, if it has one that is known. ``words``: what else stands behind the number. ``lone``: the unit is a sign that
    may be a letter.
    """

    value: str
    unit: units.Unit | None = None
    words: str = ""
    lone: bool = False


class Comparison:
    """Of one pair: how ``i`` is read, and whether letters are real, depends on both."""

    def __init__(self, gold: str, answer: str) -> None:
        alone = formulas.letters(gold) | formulas.letters(answer)
        both = gold + answer
        indexed = re.search(r"\\(?:sum|prod)\s*_\s*\{?\s*i\b", both)
        self._imaginary = not indexed and "j" not in alone
        complex_ = self._imaginary and (
            "i" in alone or "\\imath" in both or re.search(r"\d\s*i\b|\\sqrt\s*\{\s*-", both)
        )
        self._real: bool | None = None if complex_ else True
        self._factors = formulas.factors(gold, answer)
        self._unknowns: set[Any] = set()
        """The letters whose bounds make the set that is read."""
        self._told: dict[tuple[str, str], bool] = {}
        self._parsed: dict[str, Any] = {}

    # ----------------------------------------------------------------------------------------------------- any text

    def same(self, gold: str, answer: str, depth: int = 0) -> bool:
        if depth > DEPTH_MAX:
            return False
        if (gold, answer) not in self._told:
            self._told[gold, answer] = self._same(gold, answer, depth)
        return self._told[gold, answer]

    def _same(self, gold: str, answer: str, depth: int) -> bool:
        gold, answer = _bare(gold), _bare(answer)
        if squeezed(gold) == squeezed(answer):
            return squeezed(gold) != ""
        if not gold or not answer:
            return False
        if (found := self._qualified(gold, answer, depth)) is not None:
            return found
        texts = _names(gold), _names(answer)
        if all(texts):
            return sorted(cast("list[str]", texts[0])) == sorted(cast("list[str]", texts[1]))
        if (
            len(gold) > 2
            and gold.isalpha()
            and answer.isalpha()
            and gold.capitalize() == answer.capitalize()
            and (gold.islower() or gold.istitle())
        ):
            return True
        if (_is_word(gold) and _is_word(answer)) or _ORDINAL.fullmatch(gold) or _ORDINAL.fullmatch(answer):
            return False
        if _compound(gold) or _compound(answer):
            return bool(self._measures(gold, answer, depth))
        rules = (
            self._spread,
            self._congruence,
            self._sets,
            self._lists,
            self._relations,
            self._ratio,
            self._measures,
            self._brackets,
        )
        for rule in rules:
            if (found := rule(gold, answer, depth)) is not None:
                return found
        return self._formulas(gold, answer)

    def _qualified(self, gold: str, answer: str, depth: int) -> bool | None:
        """Answers with words that say for what they hold, which may be left out but not differ in their numbers."""
        sides, said = zip(*(_split_qualifier(text) for text in (gold, answer)), strict=True)
        if not any(said):
            return None
        if all(said) and squeezed(said[0]) != squeezed(said[1]):
            numbers = [re.findall(r"\d+|[<>]|\\(?:le|ge|ne)|odd|even|\\mathbb\{?\s*[A-Z]", text) for text in said]
            if numbers[0] != numbers[1]:
                return False
        return self.same(sides[0], sides[1], depth + 1)

    def _spread(self, gold: str, answer: str, depth: int) -> bool | None:
        """Plus or minus as the two answers that it stands for."""
        if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", gold + " " + answer):
            return None
        sides = [_both_signs(text) for text in (gold, answer)]
        if None in sides:
            return False
        return self.same(str(sides[0]), str(sides[1]), depth + 1)

    # ------------------------------------------------------------------------------------------------------- lists

    def _lists(self, gold: str, answer: str, depth: int) -> bool | None:
        """Several answers in any order; those with names, or without a set's braces, beside a tuple in its order."""
        ours, theirs = _listed(gold), _listed(answer)
        if max(len(ours.parts), len(theirs.parts)) > PARTS_MAX or not ours.parts or not theirs.parts:
            return False
        if not ours.several and not theirs.several:
            if not ours.braces and not theirs.braces:
                return None
            if ours.braces != theirs.braces and depth:
                return False  # a set's element is no set
            return self.same(ours.parts[0], theirs.parts[0], depth + 1)
        (golds, domain), (answers, other) = _without_domain(ours.parts), _without_domain(theirs.parts)
        if domain and other and squeezed(domain) != squeezed(other):
            return False
        golds, answers = self._once(golds, gold), self._once(answers, answer)
        if len(golds) == len(answers) == 1:
            return self.same(golds[0], answers[0], depth + 1)
        if len(golds) == 1:
            return not theirs.braces and self._coordinates(answers, golds[0], depth)
        if len(answers) == 1:
            return not ours.braces and self._coordinates(golds, answers[0], depth)
        if len(golds) != len(answers) and not ours.braces and not theirs.braces:
            return False
        golds, answers = _shared_name(golds), _shared_name(answers)
        return self._each_in(golds, answers, depth) and self._each_in(answers, golds, depth)

    def _once(self, parts: list[str], text: str) -> list[str]:
        """One answer said in two ways is one: 3/4 or 0.75."""
        if len(parts) == 2 and re.search(r"\bor\b", text) and self.same(parts[0], parts[1], 1):
            return parts[:1]
        return parts

    def _coordinates(self, parts: list[str], single: str, depth: int) -> bool:
        inside = _in_brackets(_right_side(single))
        if inside is None or (inside[0], inside[2]) != ("(", ")") or len(inside[1]) != len(parts):
            return False
        return all(self.same(one, other, depth + 1) for one, other in zip(inside[1], _by_name(parts), strict=True))

    def _each_in(self, ones: list[str], others: list[str], depth: int) -> bool:
        return all(any(self.same(one, other, depth + 1) for other in others) for one in ones)

    def _brackets(self, gold: str, answer: str, depth: int) -> bool | None:
        """Tuples, points and intervals: in order, with the same brackets."""
        ours, theirs = _in_brackets(gold), _in_brackets(answer)
        if ours is None or theirs is None:
            return None if ours is theirs else False
        if ours[0] + ours[2] != theirs[0] + theirs[2] or len(ours[1]) != len(theirs[1]):
            return False
        return all(self.same(one, other, depth + 1) for one, other in zip(ours[1], theirs[1], strict=True))

    def _ratio(self, gold: str, answer: str, depth: int) -> bool | None:
        """Ratios in order; one of two numbers is a fraction beside a fraction."""
        sides = _split(gold, {":"}), _split(answer, {":"})
        if len(sides[0]) == len(sides[1]) == 1:
            return None
        if len(sides[0]) == len(sides[1]):
            return all(self.same(one, other, depth + 1) for one, other in zip(*sides, strict=True))
        if {len(sides[0]), len(sides[1])} != {1, 2} or not ("/" in gold + answer or "\\frac" in gold + answer):
            return False
        texts = [f"\\frac{{{parts[0]}}}{{{parts[1]}}}" if len(parts) == 2 else parts[0] for parts in sides]
        return self._formulas(texts[0], texts[1])

    # --------------------------------------------------------------------------------------------------- relations

    def _congruence(self, gold: str, answer: str, depth: int) -> bool | None:
        if "\\equiv" not in gold + answer:
            return None
        ours, theirs = _congruent(gold), _congruent(answer)
        if ours is None or theirs is None:
            return False
        if squeezed(ours.left) != squeezed(theirs.left) or not self._formulas(ours.modulus, theirs.modulus):
            return False
        try:
            modulus = int(ours.modulus)
            first, second = ({int(one) % modulus for one in side.residues} for side in (ours, theirs))
        except (ValueError, ZeroDivisionError):
            return self._each_in(ours.residues, theirs.residues, depth) and self._each_in(
                theirs.residues, ours.residues, depth
            )
        return first == second

    def _relations(self, gold: str, answer: str, depth: int) -> bool | None:
        ours, theirs = _related(gold), _related(answer)
        if not ours.signs and not theirs.signs:
            return None
        if ours.unknown or theirs.unknown:
            return False
        equations = [set(side.signs) <= {"=", "~"} for side in (ours, theirs)]
        if all(equations):
            return self._equations(ours, theirs, depth)
        if "" in (ours.sides[0], theirs.sides[0]):  # a bound of nothing named: its sign and its value
            same = ours.signs == theirs.signs and ours.sides[0] == theirs.sides[0]
            return same and self.same(ours.sides[-1], theirs.sides[-1], depth + 1)
        if "in" in ours.signs + theirs.signs:
            return self._elements(ours, theirs, depth)
        return False if any(equations) else self._inequalities(ours, theirs)

    def _elements(self, ours: Related, theirs: Related, depth: int) -> bool:
        """What is said to be in a set, beside another such or beside the set."""
        if ours.signs == theirs.signs == ["in"] and squeezed(ours.sides[0]) != squeezed(theirs.sides[0]):
            return False
        sets = [side.sides[1] if side.signs == ["in"] else side.whole for side in (ours, theirs)]
        if any(side.signs not in ([], ["in"]) for side in (ours, theirs)):
            return False
        return self.same(sets[0], sets[1], depth + 1)

    def _equations(self, ours: Related, theirs: Related, depth: int) -> bool:
        if ours.signs and theirs.signs:
            left, right = ours.sides[0], theirs.sides[0]
            if squeezed(left).casefold() == squeezed(right).casefold() or self.same(left, right, depth + 1):
                return self.same(ours.sides[-1], theirs.sides[-1], depth + 1)
            return self._as_equations(ours, theirs)
        chain, plain = (ours, theirs.whole) if ours.signs else (theirs, ours.whole)
        first = chain.sides[0]
        if not (_is_name(first) or _is_plain_sum(first) or self._consistent(chain)):
            return False
        return self.same(chain.sides[-1], plain, depth + 1)

    def _consistent(self, chain: Related) -> bool:
        """4 + 5 = 9 gives 9, where it is true."""
        try:
            sides = [self._read(side) for side in chain.sides]
        except Unknown:
            return False
        return all(side.is_number for side in sides) and all(same_formulas(sides[0], side) for side in sides[1:])

    def _as_equations(self, ours: Related, theirs: Related) -> bool:
        """Equations of which one is a multiple of the other, or that have the same solutions, of which there are some."""
        if len(ours.sides) != 2 or len(theirs.sides) != 2:
            return False
        try:
            sides = [[self._read(text) for text in side.sides] for side in (ours, theirs)]
            one, other = (left - right for left, right in sides)
            letters = one.free_symbols
            if not letters or letters != other.free_symbols or one.has(AppliedUndef) or other.has(AppliedUndef):
                return False
            if (ratio := sympy.simplify(one / other)).is_number and ratio.is_finite and ratio != 0:
                return True
            equations = [sympy.Eq(left, right, evaluate=False) for left, right in sides]
            return all(map(sympy.solve, equations)) and _verified(*equations)
        except (Unknown, *NO_ANSWER):
            return False

    def _inequalities(self, ours: Related, theirs: Related) -> bool:
        try:
            one, other = self._conditions(ours), self._conditions(theirs)
        except (Unknown, TypeError, AttributeError):
            return False
        if len(one) == len(other) == 1:
            return _verified(one[0], other[0])
        forward = all(any(_verified(a, b) for b in other) for a in one)
        return forward and all(any(_verified(a, b) for a in one) for b in other)

    def _conditions(self, related: Related) -> list[Any]:
        kinds = {
            "<": sympy.StrictLessThan,
            ">": sympy.StrictGreaterThan,
            "<=": sympy.LessThan,
            ">=": sympy.GreaterThan,
            "!=": sympy.Ne,
            "=": sympy.Eq,
        }
        sides = [self._read(side) for side in related.sides]
        return [
            kinds[sign](left, right, evaluate=False)
            for sign, left, right in zip(related.signs, sides, sides[1:], strict=False)
        ]

    # -------------------------------------------------------------------------------------------------------- sets

    def _sets(self, gold: str, answer: str, depth: int) -> bool | None:
        if (
            not (_SET_SIGNS.search(gold) or _SET_SIGNS.search(answer))
            or "=" in _related(gold).signs + _related(answer).signs
        ):
            return None
        if _DOMAIN.search(gold + answer) and (_listed(gold).several or _listed(answer).several):
            return None
        self._unknowns.clear()
        try:
            one = self._set(gold)
            ours = self._unknowns.copy()
            self._unknowns.clear()
            other = self._set(answer)
            if ours and self._unknowns and ours != self._unknowns:
                return False  # bounds of different letters
        except (Unknown, TypeError, NotImplementedError, AttributeError, ValueError):
            return (
                None
                if not ("\\cup" in gold + answer or "\\cap" in gold + answer or "\\setminus" in gold + answer)
                else False
            )
        if one == other:
            return True
        try:
            return bool((one - other).is_empty and (other - one).is_empty) or bool(
                sympy.SymmetricDifference(one, other).is_empty
            )
        except (TypeError, NotImplementedError, ValueError, AttributeError):
            return False

    def _set(self, text: str) -> Any:
        """A set of numbers by any of the ways in which one is written. Raises Unknown."""
        text = _bare(text)
        ored = _split(text, {"or"})
        if len(ored) > 1:
            return sympy.Union(*(self._inequality_set(part) for part in ored))
        anded = _split(text, {"and"})
        if len(anded) > 1 and _related(text).signs:
            return sympy.Intersection(*(self._inequality_set(part) for part in anded))
        for sign, made in (("\\cup", sympy.Union), ("\\cap", sympy.Intersection)):
            parts = _split(text, {sign})
            if len(parts) > 1:
                return made(*(self._set(part) for part in parts))
        parts = _split(text, {"\\setminus", "\\backslash"})
        if len(parts) == 1 and re.search(r"\\mathbb\s*\{?\s*[A-Z]\}?\s*(?:\\|-)\s*\\\{", text):
            parts = re.split(r"(?<=[A-Z}])\s*-\s*(?=\\\{)", text)
        if len(parts) == 2:
            return self._set(parts[0]) - self._set(parts[1])
        if match := re.fullmatch(r"\\mathbb\s*\{?\s*([RQZNC])\s*\}?", text):
            return {
                "R": sympy.Reals,
                "Q": sympy.Rationals,
                "Z": sympy.Integers,
                "N": sympy.Naturals,
                "C": sympy.Complexes,
            }[match[1]]
        if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
            return sympy.EmptySet
        if match := re.fullmatch(r"[a-zA-Z]\s*\\in\b(.*)", text, re.DOTALL):
            return self._set(match[1])
        if text.startswith("\\{") and text.endswith("\\}"):
            inside = text[2:-2].strip()
            if len(built := re.split(r"\\mid(?![a-zA-Z])|\||:", inside, maxsplit=1)) == 2 and re.match(
                r"\s*[a-zA-Z]\s*(?:\\in.*)?$", built[0]
            ):
                domain = built[0].partition("\\in")[2]
                found = (
                    self._set(built[1])
                    if re.search(r"\bor\b|\band\b", _JOINT.sub(r" \1 ", built[1]))
                    else self._inequality_set(built[1])
                )
                return sympy.Intersection(found, self._set(domain)) if domain.strip() else found
            return sympy.FiniteSet(*(self._read(part) for part in _split(inside, {",", ";"})))
        if (brackets := _in_brackets(text)) is not None and len(brackets[1]) == 2:
            begin, end = (self._read(part) for part in brackets[1])
            if not (begin.is_extended_real and end.is_extended_real) or (begin - end).is_positive:
                raise Unknown("interval")
            return sympy.Interval(begin, end, brackets[0] == "(", brackets[2] == ")")
        return self._inequality_set(text)

    def _inequality_set(self, text: str) -> Any:
        parts = _split(text, {","})
        if len(parts) > 1:
            return sympy.Intersection(*(self._inequality_set(part) for part in parts))
        related = _related(_bare(text))
        if (
            not related.signs
            or related.unknown
            or set(related.signs) - {"<", ">", "<=", ">=", "!=", "="}
            or "" in related.sides
        ):
            raise Unknown("no inequality")
        if related.signs == ["="]:
            raise Unknown("an equation")
        conditions = self._conditions(related)
        letters = set[Any]().union(*(condition.free_symbols for condition in conditions))
        if len(letters) != 1:
            raise Unknown("several letters")
        letter = letters.pop()
        self._unknowns.add(letter)
        plain = sympy.Symbol("x", real=True)
        return sympy.Intersection(
            *(
                condition.subs(letter, plain).as_set()
                if condition.subs(letter, plain) not in (True, False)
                else self._raise()
                for condition in conditions
            )
        )

    def _raise(self) -> Any:
        raise Unknown("")

    # ------------------------------------------------------------------------------------------- numbers with units

    def _measures(self, gold: str, answer: str, depth: int) -> bool | None:
        ours, theirs = _measured(gold), _measured(answer)
        # A sign that may be a letter is a unit only beside the same written out.
        if ours.lone and not (theirs.unit and not theirs.lone):
            ours = Side(gold)
        if theirs.lone and not (ours.unit and not ours.lone):
            theirs = Side(answer)
        if ours.unit is None and theirs.unit is None and not ours.words and not theirs.words:
            return None
        if (ours.unit and theirs.words) or (theirs.unit and ours.words):
            return False
        if ours.words or theirs.words:
            if ours.words and theirs.words and not _alike(ours.words, theirs.words):
                return False
            return self.same(ours.value, theirs.value, depth + 1)
        one, other = ours.unit or units.NONE, theirs.unit or units.NONE
        percents = [unit.dimensions == _PERCENT for unit in (one, other)]
        scale = [one.times, other.times]
        if any(percents) and not all(percents):
            plain = other if percents[0] else one
            if plain.dimensions:
                return False
            hundredth = [Fraction(1, 100) if percent else Fraction(1) for percent in percents]
            return self._scaled(ours.value, theirs.value, scale, depth) or self._scaled(
                ours.value, theirs.value, [a * b for a, b in zip(scale, hundredth, strict=True)], depth
            )
        if one.dimensions and other.dimensions:
            degrees = {unit.dimensions for unit in (one, other)}
            if one.dimensions != other.dimensions and not (_DEGREE in degrees and degrees <= _DEGREES):
                return False
            scale = [scale[0] * one.factor, scale[1] * other.factor]
        return self._scaled(ours.value, theirs.value, scale, depth)

    def _scaled(self, gold: str, answer: str, scale: list[Fraction], depth: int) -> bool:
        if scale[0] == scale[1]:
            return self.same(gold, answer, depth + 1)
        try:
            one, other = self._read(gold), self._read(answer)
        except Unknown:
            return False
        return same_formulas(
            *(
                formula * sympy.Rational(of.numerator, of.denominator)
                for formula, of in zip((one, other), scale, strict=True)
            )
        )

    # ----------------------------------------------------------------------------------------------------- formulas

    def _read(self, text: str) -> Any:
        if text not in self._parsed:
            try:
                self._parsed[text] = formulas.read(
                    text, imaginary=self._imaginary, real=self._real, factors=self._factors
                )
            except Unknown as unknown:
                self._parsed[text] = unknown
        if isinstance(found := self._parsed[text], Unknown):
            raise found
        return found

    def _formulas(self, gold: str, answer: str) -> bool:
        try:
            one, other = self._read(gold), self._read(answer)
        except Unknown:
            return _by_library(gold, answer) if re.search(r"\\(?:int|lim)(?![a-zA-Z])", gold + answer) else False
        return same_formulas(one, other)


_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_BOLD_LETTER = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s*\{\s*((?![ijke]\s*\})[A-Za-z])\s*\}")
_PERCENT = (("%", 1),)
_DEGREE = (("°", 1),)
_DEGREES = {_DEGREE, (("°C", 1),), (("°F", 1),)}
_SET_SIGNS = re.compile(
    r"\\(?:cup|cap|setminus|emptyset)(?![a-zA-Z])|\\mathbb|\\mid|\\\{[^}]*[|:]|\\(?:le|ge|ne|in)(?![a-zA-Z])|[<>]"
)


def same(gold: str, answer: str) -> bool:
    """Returns whether two answers, in the notation of ``notation.in_latex``, mean the same."""
    bold = [_BOLD_LETTER.search(text) is not None for text in (gold, answer)]
    if bold[0] != bold[1]:  # a bold letter is dress where the other has none
        gold, answer = (_BOLD_LETTER.sub(r"\1", text) for text in (gold, answer))
    return Comparison(gold, answer).same(gold, answer)


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
    if _verified(one, other):
        return True
    if one.has(*_HYPERBOLIC) or other.has(*_HYPERBOLIC):
        apart = one - other
        return bool(sympy.simplify(apart.rewrite(sympy.exp)) == 0 or sympy.simplify(apart.rewrite(sympy.log)) == 0)
    return False


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


def _verified(one: Any, other: Any) -> bool:
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


def _by_library(gold: str, answer: str) -> bool:
    """Integrals and limits, which are the library's to read."""
    import latex2sympy2_extended
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    library = cast("Any", latex2sympy2_extended)

    try:
        one, other = (
            library.latex2sympy(
                text.replace("\\\\", "\\"),
                is_real=True,
                normalization_config=None,
                conversion_config=ConversionConfig(lowercase_symbols=False),
            )
            for text in (gold, answer)
        )
    except Exception:  # noqa: BLE001  # a parser's refusal has no type of its own
        return False
    return _verified(one, other)


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


# -------------------------------------------------------------------------------------------------- pieces of texts


def squeezed(text: str) -> str:
    """Without what means nothing in any text: space (but for that between digits) and braces around one thing."""
    return _ONE_IN_BRACES.sub(r"\1", _SPACE.sub("", text))


def _bare(text: str) -> str:
    """Without brackets, words and remarks around the whole."""
    before = None
    while before != text:
        before = text
        text = re.sub(r"^\s*(?:=|\\approx|\\simeq)\s*(?=[^=])", "", text)
        text = _JOINT.sub(r" \1 ", text).strip() if "\\" in text else text.strip()
        text = (
            text.strip("~").removesuffix("\\\\").removesuffix("\\").strip().rstrip(".;,").strip()
            if not text.endswith("\\,")
            else text[:-2]
        )
        text = _COMMA_IN_TEXT.sub(r"\1}, ", text)
        text = _ALSO.sub(r" or \1", text)
        if _PLAIN_BUILT.match(text) and text.endswith("}") and _closing(text, 0) == len(text) - 1:
            text = f"\\{{{text[1:-1]}\\}}"
        if text.startswith("{") and _closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if match := re.fullmatch(rf"{_TEXTS}\s*\{{([^{{}}]*)\}}", text):
            inside = match[1].strip()
            if not re.fullmatch(r"[a-zA-Z]", inside):
                text = inside
        if (match := _LEAD_WORDS.match(text)) and match.end() < len(text):
            rest = text[match.end() :]
            text = rest if match["close"] or not text.startswith("\\") else re.sub(r"\}", "", rest, count=1)
        text = _without_remark(text)
    return text


def _without_remark(text: str) -> str:
    """Without words in brackets behind a value: 5 (five), 8 (approximately)."""
    match = _REMARK.search(text)
    if match is None or match.start() == 0 or _CONDITION.search(match[1] or match[2]):
        return text
    value = text[: match.start()]
    apart = match[1] is not None or match[0][:1].isspace() or value[-1].isdigit()
    return value if apart and re.search(r"[\d)}\]a-zA-Z]\s*$", value) else text


def _balanced(text: str) -> bool:
    marks = [token[0] for token in _TOKEN.finditer(text)]
    return sum(mark in _OPENS for mark in marks) == sum(mark in _CLOSES for mark in marks)


def _closing(text: str, begin: int) -> int:
    """Where the bracket that opens at ``begin`` closes, or -1."""
    depth = 0
    for token in _TOKEN.finditer(text, begin):
        mark = token[0]
        depth += (mark in _OPENS) - (mark in _CLOSES)
        if depth == 0:
            return token.end() - 1
    return -1


def _split(text: str, separators: set[str]) -> list[str]:
    """The text cut at separators that stand in no bracket. Words are separators only as such."""
    parts: list[str] = []
    begin, depth = 0, 0
    bars = False
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark == "|":
            bars = not bars
        depth += (mark in _OPENS) - (mark in _CLOSES)
        if depth <= 0 and mark in separators:
            parts.append(text[begin : token.start()])
            begin = token.end()
    parts.append(text[begin:])
    return [part.strip() for part in parts]


class Listed(NamedTuple):
    """``braces``: a set's stand around it."""

    parts: list[str]
    braces: bool

    @property
    def several(self) -> bool:
        return len(self.parts) > 1


def _listed(text: str) -> Listed:
    braces = text.startswith("\\{") and text.endswith("\\}") and _closing(text, 0) == len(text) - 1
    if braces:
        text = text[2:-2]
    elif text.startswith("{") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1]
    return Listed([part for part in _split(text, {",", ";", "and", "or"}) if part], braces)


def _without_domain(parts: list[str]) -> tuple[list[str], str]:
    for at, part in enumerate(parts):
        if at and _DOMAIN.fullmatch(part):
            return parts[:at] + parts[at + 1 :], part
    return parts, ""


def _right_side(text: str) -> str:
    related = _related(text)
    return related.sides[-1] if related.signs and set(related.signs) <= {"="} else text


def _by_name(parts: list[str]) -> list[str]:
    """The values of ``x = 3, y = 4`` by the order of their names; others as they stand."""
    related = [_related(part) for part in parts]
    if all(one.signs == ["="] and _is_name(one.sides[0]) for one in related):
        names = [squeezed(one.sides[0]) for one in related]
        if len(set(names)) == len(names):
            return [one.sides[-1] for _, one in sorted(zip(names, related, strict=True), key=lambda pair: pair[0])]
    return parts


def _shared_name(parts: list[str]) -> list[str]:
    """``x = 1, 2`` and ``x = 1, x = 2`` are the same: each part with its name."""
    related = [_related(part) for part in parts]
    first = related[0]
    if first.signs == ["="] and _is_name(first.sides[0]) and not any(one.signs for one in related[1:]):
        return [parts[0], *(f"{first.sides[0]}={part}" for part in parts[1:])]
    return parts


def _in_brackets(text: str) -> tuple[str, list[str], str] | None:
    """Both brackets and the parts of a tuple or an interval."""
    text = text.strip()
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or _closing(text, 0) != len(text) - 1:
        return None
    parts = _split(text[1:-1], {",", ";"})
    return (text[0], parts, text[-1]) if len(parts) > 1 and all(parts) else None


def _both_signs(text: str) -> str | None:
    parts: list[str] = []
    listed = _listed(text)
    for part in listed.parts:
        count = len(re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", part))
        if count > 1 and "\\mp" not in part:
            return None
        if count:
            parts += [
                re.sub(r"\\pm(?![a-zA-Z])", a, re.sub(r"\\mp(?![a-zA-Z])", b, part))
                for a, b in (("+", "-"), ("-", "+"))
            ]
        else:
            parts.append(part)
    joined = ", ".join(part.strip().removeprefix("+") for part in parts)
    return f"\\{{{joined}\\}}" if listed.braces else joined


class Related(NamedTuple):
    """``sides``: with a relation's sign between each two. ``unknown``: there is one that is none of ours."""

    sides: list[str]
    signs: list[str]
    unknown: bool
    whole: str


def _related(text: str) -> Related:
    sides: list[str] = []
    signs: list[str] = []
    begin, depth = 0, 0
    tokens = list(_TOKEN.finditer(text))
    at = 0
    while at < len(tokens):
        token = tokens[at]
        mark = token[0]
        depth += (mark in _OPENS) - (mark in _CLOSES)
        pair = text[token.start() : token.start() + 2]
        if depth <= 0 and pair in ("<=", ">=", "!=", ":=", "=="):
            mark, at = pair, at + 1
        if depth <= 0 and mark in _RELATIONS:
            sides.append(text[begin : token.start()].strip())
            signs.append(_RELATIONS[mark])
            begin = tokens[at].end()
        at += 1
    sides.append(text[begin:].strip())
    return Related(sides, signs, bool(_OTHER_RELATIONS.search(text)), text)


_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:\s*_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?\w+))?(?:'|\^\s*\{?\\prime\}?|\^\s*\{?[*+]\}?)*(?:\s*\(\s*[^()=]*\s*\))?"
)


def _is_name(text: str) -> bool:
    """Returns whether it is what a value is given to: a letter with its index, f(x), a tuple of such, a word."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        return all(_is_name(part) for part in text[1:-1].split(","))
    words = re.fullmatch(rf"{_TEXTS}\s*\{{[^{{}}\d]*\}}(?:\s*_\s*\{{?\w+\}}?)?", text)
    if words or re.fullmatch(r"[A-Za-z][A-Za-z ]{2,40}", text):
        return True
    command = re.match(r"\\([a-zA-Z]+)\s*", text)
    if command and command[1] in (
        "Delta",
        "delta",
        "vec",
        "mathbf",
        "bar",
        "hat",
        "overline",
        "angle",
        "mathrm",
        "mathcal",
    ):
        rest = text[command.end() :].strip().removeprefix("{")
        return bool(_NAME.fullmatch(rest.replace("}", "", 1) if "{" in text[command.end() :][:1] else rest))
    return bool(_NAME.fullmatch(text)) and not re.match(
        r"\\(?:pi|infty|frac|sqrt|sin|cos|tan|log|ln|exp)(?![a-zA-Z])", text
    )


def _is_plain_sum(text: str) -> bool:
    """Letters alone, put together: a+b+c, AB, V/n."""
    return (
        bool(re.fullmatch(r"[\sA-Za-z_{}+*/\-\\|()]*", text))
        and bool(re.search("[A-Za-z]", text))
        and not re.search(r"\\(?!cdot|frac|angle|triangle)", text)
    )


class Congruence(NamedTuple):
    left: str
    residues: list[str]
    modulus: str


def _congruent(text: str) -> Congruence | None:
    if "\\not" in text:
        return None
    match = re.fullmatch(
        r"(.+?)\\equiv\s*(.+?)\s*(?:\\[,;: ]|\\q?quad|[\s,])*(?:\\pmod|\(\s*\\bmod|\(\s*\\mod"
        r"|\\bmod|\\mod|\(\s*(?:\\(?:text|mathrm|operatorname)\s*\{\s*mod\s*\}|mod))"
        r"\s*(?:\{\s*([^{}]+)\s*\}|([^\s{}()]+))\s*\)?\s*",
        text,
    )
    if match is None:
        return None
    return Congruence(match[1].strip(), _listed(match[2]).parts, (match[3] or match[4]).strip())


def _split_qualifier(text: str) -> tuple[str, str]:
    for match in _QUALIFIER.finditer(text):
        if match.start() > 0 and text[: match.start()].count("{") == text[: match.start()].count("}"):
            return text[: match.start()].strip(), text[match.start() :].strip()
    return text, ""


_WORDY = re.compile(r"[^\W\d_][^\W\d_'’.\-]*(?:[\s\-][^\W\d_]+[.']?)*")


def _names(text: str) -> list[str] | None:
    """The names or words that the text is, one or several, in small letters; None where it is no text."""
    plain = re.sub(
        rf"{_TEXTS}\s*\{{([^{{}}]*)\}}|\\text\w+\s*\{{([^{{}}]*)\}}", lambda match: match[1] or match[2] or "", text
    )
    plain = re.sub(r"\\[ ,;]|~", " ", plain)
    parts = [part.strip() for part in re.split(r",|;|\band\b|&", plain) if part.strip()]
    wordy = [
        re.sub(r"\s+", " ", _ARTICLES.sub("", part)).casefold().rstrip(".") for part in parts if _WORDY.fullmatch(part)
    ]
    if not parts or len(wordy) < len(parts):
        return None
    long = any(len(word) > 3 or (" " in word and re.search(r"\w{3}", word)) for word in wordy)
    return wordy if long or (text.startswith("\\text") and any(len(word) > 1 for word in wordy)) else None


_ORDINAL = re.compile(rf"\d+\s*(?:{_TEXTS}\s*\{{\s*)?(?:st|nd|rd|th)\s*\}}?")
"""No product of letters: 2nd."""


def _is_word(text: str) -> bool:
    """Returns whether letters make a word rather than a product: several, with a vowel among them and nothing else around."""
    vowel = re.search("[aeiouAEIOU]", text) is not None
    return (len(text) > 2 and text.isalpha() and text.isascii() and vowel) or text.lower() in ("no", "on")


def _measured(text: str) -> Side:
    """A number or formula and its unit, by the ways in which one is written."""
    sign: units.Unit | None = None
    if (match := _MONEY.match(text)) and match.end() < len(text):
        sign = units.named({"\\$": "dollar"}.get(match["money"], match["money"])) or units.read("dollar")
        text = match["sign"] + text[match.end() :]
        if sign is not None and not re.search("[A-Za-z]{2}|\\\\text", text):
            return Side(text, sign)
    if (total := _compound(text)) is not None:
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
            if "°" in _unit_text(tail) and _TRIGONOMETRIC.search(value):
                return Side(text)
            if value.strip() and _balanced(value) and not re.search(r"[-+*/^=_(]\s*$|\\cdot\s*$", value):
                found = _tail(value, _unit_text(tail), written=True)
                if found is not None:
                    return (
                        found
                        if sign is None
                        else found._replace(unit=sign * found.unit if found.unit and found.unit != sign else sign)
                    )
    if (match := _NUMERIC.match(text)) and match.end() < len(text) and re.search(r"\d|\\pi", match[0]):
        tail = re.sub(rf"{_TEXTS}\s*\{{([^{{}}]*)\}}", r"\1", text[match.end() :]).strip()
        if _PLAIN_TAIL.fullmatch(tail) and not re.search(r"[*^/+\-]\s*$|\\(?:times|cdot)\s*$", match[0]):
            found = _tail(match[0].strip(), tail, written=False)
            if found is not None:
                return found if sign is None else found._replace(unit=sign * found.unit if found.unit else sign)
    return Side(text) if sign is None else Side(text, sign)


def _tail(value: str, tail: str, *, written: bool) -> Side | None:
    """``written``: as words or upright, rather than as letters of a formula are."""
    tail = re.sub(r"\s+", " ", tail).strip()
    if not tail:
        return None
    unit = units.read(tail)
    if unit is not None:
        signs = re.findall(r"[A-Za-zµΩÅ°%]+", tail)
        lone = all((len(sign) == 1 and sign.isascii() and sign.isalpha()) or sign in _OPAQUE_UNITS for sign in signs)
        return Side(
            value, unit, lone=not written and lone and not _SPEED.fullmatch(tail) and not re.search(r"\d[eE]", value)
        )
    words = re.findall(r"[^\W\d_]+(?:'[a-z]+)?", tail)
    if not re.fullmatch(r"[^\W\d_][^\d=<>\\^_]*(?:\^[23])?", tail) or any(word.lower() in _NO_UNIT for word in words):
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
    """A unit without LaTeX."""
    tail = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", "°", tail)
    tail = re.sub(r"\\mu(?![a-zA-Z])\s*", "µ", tail)
    tail = re.sub(r"\\Omega(?![a-zA-Z])", "Ω", tail).replace("\\AA", "Å").replace("\\%", "%")
    tail = re.sub(r"\\circ(?![a-zA-Z])", "°", tail)
    tail = re.sub(rf"(?<=µ){_TEXTS}\s*\{{\s*", "{", tail)
    tail = re.sub(rf"{_TEXTS}\s*\{{([^{{}}]*)\}}", r" \1 ", tail)
    tail = re.sub(r"µ\{\s*([A-Za-z]+)\s*\}", r"µ\1", tail)
    tail = re.sub(r"\\[,;:! ]|~", " ", tail)
    tail = re.sub(r"\b([kMGm])\s+Ω", r"\1Ω", tail)
    tail = re.sub(r"µ\s+(?=[A-Za-z])", "µ", tail)
    return re.sub(r"\s*\^\s*\{?\s*([-+]?\d)\s*\}?", r"^\1", tail).replace("^°", "°")


def _compound(text: str) -> Side | None:
    """18 dollars and 50 cents: in the first unit, where all are of one kind."""
    plain = re.sub(rf"{_TEXTS}\s*\{{([^{{}}]*)\}}", r" \1 ", text)
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


def _alike(one: str, other: str) -> bool:
    """Returns whether words name the same things: alike but for an end, or one begins as the other."""
    first, second = ([word.removesuffix("s") for word in re.findall(r"\w+", text)] for text in (one, other))
    short = min(len(first), len(second))
    return first[:short] == second[:short]
