"""Decides whether two answers mean the same: part by part where they have parts, as formulas where they are one.

What is not understood is compared as it is written, and never left out. Used in a grader's worker alone.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, cast

import sympy as _sympy
from sympy.core.function import AppliedUndef as _AppliedUndef

from speclrm.evaluators import answer_sets, formula_marks, formulas, units
from speclrm.evaluators.answer_forms import (
    defined_alike,
    in_digits,
    in_signs,
    same_species,
    with_domain,
    without_constants,
)
from speclrm.evaluators.answer_parts import (
    Related,
    both_signs,
    by_name,
    congruent,
    cut,
    elements,
    in_brackets,
    in_line,
    is_name,
    is_plain_sum,
    list_in,
    names_in_order,
    relations_in,
    right_side,
    squeezed,
    with_shared_name,
    without_domain,
)
from speclrm.evaluators.answer_words import (
    ORDINAL,
    bare,
    is_word,
    names_of,
    split_qualifier,
)
from speclrm.evaluators.equality import NO_ANSWER, same_by_library, same_formulas, verified
from speclrm.evaluators.formula_marks import Unknown
from speclrm.evaluators.measures import (
    Side,
    alike,
    compound,
    measured,
)

sympy: Any = _sympy
AppliedUndef: Any = _AppliedUndef

PARTS_MAX = 60
DEPTH_MAX = 8


class Comparison:
    """Compares one pair: how ``i`` is read, and whether letters are real, depends on both."""

    def __init__(self, gold: str, answer: str) -> None:
        alone = formula_marks.letters(gold) | formula_marks.letters(answer)
        both = gold + answer
        indexed = re.search(r"\\(?:sum|prod)\s*_\s*\{?\s*i\b", both)
        self._imaginary = not indexed and "j" not in alone
        complex_ = self._imaginary and (
            "i" in alone or "\\imath" in both or re.search(r"\d\s*i\b|\\sqrt\s*\{\s*-", both)
        )
        complex_ = complex_ or re.search(r"\|\s*(?:z|w|\\[Pp]si(?![a-zA-Z]))[^|]*\|", both)
        self._real: bool | None = None if complex_ else True
        self._factors = formula_marks.factors(gold, answer)
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
        if same_species(gold, answer):
            return True
        gold, answer = (in_signs(in_digits(bare(text))) for text in (gold, answer))
        if squeezed(gold) == squeezed(answer):
            return squeezed(gold) != ""
        if not gold or not answer:
            return False
        if (found := self._qualified(gold, answer, depth)) is not None:
            return found
        texts = names_of(gold), names_of(answer)
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
        if (is_word(gold) and is_word(answer)) or ORDINAL.fullmatch(gold) or ORDINAL.fullmatch(answer):
            return False
        if compound(gold) or compound(answer):
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
        sides, said = zip(*(split_qualifier(text) for text in (gold, answer)), strict=True)
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
        sides = [both_signs(text) for text in (gold, answer)]
        if None in sides:
            return False
        return self.same(str(sides[0]), str(sides[1]), depth + 1)

    # ------------------------------------------------------------------------------------------------------- lists

    def _lists(self, gold: str, answer: str, depth: int) -> bool | None:
        """Compares several answers in any order; those with names, or without a set's braces, with a tuple in its order."""
        if (gold.count("\\in ") + answer.count("\\in ")) == 1:
            gold, answer = elements(gold), elements(answer)
        ours, theirs = list_in(gold), list_in(answer)
        if max(len(ours.parts), len(theirs.parts)) > PARTS_MAX or not ours.parts or not theirs.parts:
            return False
        if not ours.several and not theirs.several:
            if not ours.braces and not theirs.braces:
                return None
            if ours.braces != theirs.braces and depth:
                return False  # a set's element is no set
            return self.same(ours.parts[0], theirs.parts[0], depth + 1)
        (golds, domain), (answers, other) = without_domain(ours.parts), without_domain(theirs.parts)
        if domain and other and squeezed(domain) != squeezed(other):
            answers = with_domain(answers, squeezed(other), squeezed(domain))
            if not answers:
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
        golds, answers = with_shared_name(golds), with_shared_name(answers)
        return self._each_in(golds, answers, depth) and self._each_in(answers, golds, depth)

    def _once(self, parts: list[str], text: str) -> list[str]:
        """Makes one answer of one that is said in two ways: 3/4 or 0.75."""
        if len(parts) == 2 and re.search(r"\bor\b", text) and self.same(parts[0], parts[1], 1):
            return parts[:1]
        return parts

    def _coordinates(self, parts: list[str], single: str, depth: int) -> bool:
        named = names_in_order(single)
        inside = in_brackets(right_side(single))
        if any((one := relations_in(part)).signs and not is_name(one.sides[0]) for part in parts):
            return False  # equations, and no values
        if named and sorted(named) == sorted(squeezed(relations_in(part).sides[0]) for part in parts):
            parts = sorted(parts, key=lambda part: named.index(squeezed(relations_in(part).sides[0])))
            return all(
                self.same(one, right_side(other), depth + 1)
                for one, other in zip(inside[1] if inside else (), parts, strict=True)
            )
        if inside is None or (inside[0], inside[2]) != ("(", ")") or len(inside[1]) != len(parts):
            return False
        return all(self.same(one, other, depth + 1) for one, other in zip(inside[1], by_name(parts), strict=True))

    def _each_in(self, ones: list[str], others: list[str], depth: int) -> bool:
        return all(any(self.same(one, other, depth + 1) for other in others) for one in ones)

    def _brackets(self, gold: str, answer: str, depth: int) -> bool | None:
        """Compares tuples, points and intervals: in order, with the same brackets."""
        gold, answer = in_line(gold, answer), in_line(answer, gold)
        ours, theirs = in_brackets(gold), in_brackets(answer)
        if ours is None or theirs is None:
            if ours is theirs:
                return None
            return self._components(*((ours, answer) if ours else (theirs, gold)))
        if ours[0] + ours[2] != theirs[0] + theirs[2] or len(ours[1]) != len(theirs[1]):
            return False
        return all(self.same(one, other, depth + 1) for one, other in zip(ours[1], theirs[1], strict=True))

    def _components(self, vector: tuple[str, list[str], str] | None, text: str) -> bool:
        """Compares a vector in brackets with a sum of unit vectors: (2, 3), 2i + 3j."""
        if vector is None or (vector[0], vector[2]) != ("(", ")") or not 2 <= len(vector[1]) <= 3:
            return False
        try:
            left = sympy.expand(self._read(text))
            letters = {letter.name: letter for letter in left.free_symbols}
            names = (
                [f"mathbf{{{name}}}" for name in "ijk"] if any(map(_UNIT_VECTOR.fullmatch, letters)) else list("ijk")
            )
            parts = [left.coeff(letters[name]) if name in letters else sympy.Integer(0) for name in names]
            left -= sum(part * letters[name] for part, name in zip(parts, names, strict=True) if name in letters)
            if not letters.keys() & set(names) or sympy.simplify(left) != 0 or any(parts[len(vector[1]) :]):
                return False
            return all(same_formulas(self._read(one), part) for one, part in zip(vector[1], parts, strict=False))
        except (Unknown, *NO_ANSWER):
            return False

    def _ratio(self, gold: str, answer: str, depth: int) -> bool | None:
        """Ratios in order; one of two numbers is a fraction beside a fraction."""
        sides = cut(gold, {":"}), cut(answer, {":"})
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
        if "\\equiv" not in gold + answer and not all(_MODULUS.search(text) for text in (gold, answer)):
            return None
        ours, theirs = congruent(gold), congruent(answer)
        if ours is None or theirs is None:
            return False
        lefts = squeezed(ours.left), squeezed(theirs.left)
        if (all(lefts) and lefts[0] != lefts[1]) or not self._formulas(ours.modulus, theirs.modulus):
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
        ours, theirs = relations_in(gold), relations_in(answer)
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
        """Compares what is said to be in a set with another such statement or with the set."""
        if ours.signs == theirs.signs == ["in"] and squeezed(ours.sides[0]) != squeezed(theirs.sides[0]):
            return False
        sets = [side.sides[1] if side.signs == ["in"] else side.whole for side in (ours, theirs)]
        if any(side.signs not in ([], ["in"]) for side in (ours, theirs)):
            return False
        return self.same(sets[0], sets[1], depth + 1)

    def _equations(self, ours: Related, theirs: Related, depth: int) -> bool:
        one, other = self._rounded(ours), self._rounded(theirs)
        if one and other:
            return self.same(one[0], other[0], depth + 1)
        if one or other:
            return any(self.same(text, (theirs if one else ours).whole, depth + 1) for text in (one or other or ()))
        if ours.signs and theirs.signs:
            left, right = ours.sides[0], theirs.sides[0]
            if (found := self._functions(ours, theirs)) is not None:
                return found
            named = is_name(left) and is_name(right) and squeezed(left).casefold() == squeezed(right).casefold()
            if named or squeezed(left) == squeezed(right) or self.same(left, right, depth + 1):
                return self.same(ours.sides[-1], theirs.sides[-1], depth + 1)
            return self._as_equations(ours, theirs)
        chain, plain = (ours, theirs.whole) if ours.signs else (theirs, ours.whole)
        first = chain.sides[0]
        if not (is_name(first) or is_plain_sum(first) or self._consistent(chain)):
            return False
        return self.same(chain.sides[-1], plain, depth + 1)

    def _functions(self, ours: Related, theirs: Related) -> bool | None:
        """Compares two definitions of one function by other letters: f(x) = x + 1, f(t) = t + 1."""
        body = defined_alike(ours.sides[0], theirs.sides[0], theirs.sides[-1])
        return None if body is None else body != "" and self.same(ours.sides[-1], body, 1)

    def _rounded(self, chain: Related) -> tuple[str, str] | None:
        """Returns a value as it is exactly and as it is rounded, where a chain ends with both: x = 7/9, about 0.778."""
        if len(chain.sides) < 2 or chain.signs[-1] != "~":
            return None
        try:
            exact, decimal = (self._read(measured(side).value) for side in chain.sides[-2:])
        except Unknown:
            return None
        places = re.fullmatch(r"-?\d+(?:\.(\d+))?", measured(chain.sides[-1]).value.strip())
        if places is None or not getattr(exact, "is_number", False) or not exact.is_real:
            return None
        last = sympy.Rational(1, 10 ** len(places[1] or ""))
        cut_off = abs(exact) >= abs(decimal) and abs(exact - decimal) < last
        if not cut_off and abs(exact - decimal) > last / 2:
            return None
        return " = ".join(chain.sides[:-1]), " = ".join((*chain.sides[:-2], chain.sides[-1]))

    def _consistent(self, chain: Related) -> bool:
        """Returns whether a chain of formulas is true whatever their letters are: 4 + 5 = 9."""
        try:
            sides = [self._read(side) for side in chain.sides]
        except Unknown:
            return False
        return not any(side.has(AppliedUndef) for side in sides) and all(
            same_formulas(sides[0], side) for side in sides[1:]
        )

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
            return all(map(sympy.solve, equations)) and verified(*equations)
        except (Unknown, *NO_ANSWER):
            return False

    def _inequalities(self, ours: Related, theirs: Related) -> bool:
        try:
            one, other = (answer_sets.conditions(side, self._read) for side in (ours, theirs))
        except (Unknown, TypeError, AttributeError):
            return False
        if len(one) == len(other) == 1:
            return verified(one[0], other[0])
        forward = all(any(verified(a, b) for b in other) for a in one)
        return forward and all(any(verified(a, b) for a in one) for b in other)

    # -------------------------------------------------------------------------------------------------------- sets

    def _sets(self, gold: str, answer: str, depth: int) -> bool | None:
        return answer_sets.same_sets(gold, answer, self._read)

    # ------------------------------------------------------------------------------------------- numbers with units

    def _measures(self, gold: str, answer: str, depth: int) -> bool | None:
        ours, theirs = measured(gold), measured(answer)
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
            if ours.words and theirs.words and not alike(ours.words, theirs.words):
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
        gold, answer = without_constants(gold, answer)
        try:
            one, other = self._read(gold), self._read(answer)
        except Unknown:
            left_out = re.search(r"'|\\prime|\\not(?![a-zA-Z])|\^\s*\{?\s*[*+]", gold + answer)
            library = re.search(r"\\(?:int|lim)(?![a-zA-Z])", gold + answer) and not left_out
            return bool(library) and same_by_library(gold, answer)
        return same_formulas(one, other)


_BOLD_LETTER = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s*\{\s*((?![ijke]\s*\})[A-Za-z])\s*\}")
_MODULUS = re.compile(r"\\(?:pmod|bmod|mod)(?![a-zA-Z])")
_UNIT_VECTOR = re.compile(r"mathbf\{[ijk]\}")
_PERCENT = (("%", 1),)
_DEGREE = (("°", 1),)
_DEGREES = {_DEGREE, (("°C", 1),), (("°F", 1),)}


def same(gold: str, answer: str) -> bool:
    """Returns whether two answers, in the notation of ``notation.in_latex``, mean the same."""
    bold = [_BOLD_LETTER.search(text) is not None for text in (gold, answer)]
    if bold[0] != bold[1]:  # a bold letter is dress where the other has none
        gold, answer = (_BOLD_LETTER.sub(r"\1", text) for text in (gold, answer))
    return Comparison(gold, answer).same(gold, answer)


# -------------------------------------------------------------------------------------------------- pieces of texts
