"""Cuts an answer into parts at its top level: lists, tuples, relations, congruences."""

from __future__ import annotations

import re
from typing import NamedTuple

from speclrm.evaluators.notation import AXIS

TEXTS = r"\\(?:text|textrm|textnormal|mbox|mathrm|textit|rm|operatorname)"
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[A-Za-z]+|.", re.DOTALL)
_SPACE = re.compile(r"(?<!\d)(?:\s|\\[,;:! ]|~|\\q?quad(?![a-zA-Z]))+|(?:\s|\\[,;:! ]|~|\\q?quad(?![a-zA-Z]))+(?!\d)")
_ONE_IN_BRACES = re.compile(r"\{(\w|\\[a-zA-Z]+)\}")
_SPACE_AROUND = re.compile(
    r"^(?:\s|\\[,;:! ]|~|\\q?quad(?![a-zA-Z]))+|(?<!\\)\s+$|(?:\\[,;:! ]|~|\\q?quad(?![a-zA-Z]))(?:\s|\\[,;:! ]|~)*$"
)
_OPENS = {"(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle"}
_CLOSES = {")", "]", "}", "\\}", "\\rfloor", "\\rceil", "\\rangle"}
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
DOMAIN = re.compile(r"\s*([a-zA-Z](?:\s*,\s*[a-zA-Z])*)\s*\\in\s*(\\(?:mathbb|mathbf)\s*\{?\s*[A-Z]\}?.*)")


def squeezed(text: str) -> str:
    """Removes what means nothing in any text: space, except between digits, and braces around one thing."""
    return _ONE_IN_BRACES.sub(r"\1", _SPACE.sub("", text))


def balanced(text: str) -> bool:
    marks = [token[0] for token in _TOKEN.finditer(text)]
    return sum(mark in _OPENS for mark in marks) == sum(mark in _CLOSES for mark in marks)


def closing(text: str, begin: int) -> int:
    """Returns the index at which the bracket that opens at ``begin`` closes, or -1."""
    depth = 0
    for token in _TOKEN.finditer(text, begin):
        mark = token[0]
        depth += (mark in _OPENS) - (mark in _CLOSES)
        if depth == 0:
            return token.end() - 1
    return -1


def cut(text: str, separators: set[str]) -> list[str]:
    """Returns the text cut at separators that stand in no bracket. Words are separators only as such."""
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
    return [_SPACE_AROUND.sub("", part) for part in parts]


class Listed(NamedTuple):
    """``braces``: a set's stand around it."""

    parts: list[str]
    braces: bool

    @property
    def several(self) -> bool:
        return len(self.parts) > 1


def list_in(text: str) -> Listed:
    braces = text.startswith("\\{") and text.endswith("\\}") and closing(text, 0) == len(text) - 1
    if braces:
        text = text[2:-2]
    elif text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1]
    return Listed([part for part in cut(text, {",", ";", "and", "or"}) if part], braces)


def without_domain(parts: list[str]) -> tuple[list[str], str]:
    for at, part in enumerate(parts):
        if at and DOMAIN.fullmatch(part):
            return parts[:at] + parts[at + 1 :], part
    return parts, ""


def names_in_order(text: str) -> list[str]:
    """Returns the names of ``(q, p) = (7, 3)``, or nothing."""
    related = relations_in(text)
    left = in_brackets(related.sides[0]) if related.signs == ["="] and in_brackets(related.sides[1]) else None
    names = [squeezed(name) for name in left[1]] if left else []
    return names if len(set(names)) == len(names) and all(map(is_name, names)) else []


def right_side(text: str) -> str:
    related = relations_in(text)
    return related.sides[-1] if related.signs and set(related.signs) <= {"="} else text


def by_name(parts: list[str]) -> list[str]:
    """Orders the values of ``x = 3, y = 4`` by their names; leaves other parts as they stand."""
    related = [relations_in(part) for part in parts]
    if all(one.signs == ["="] and is_name(one.sides[0]) for one in related):
        names = [squeezed(one.sides[0]) for one in related]
        if len(set(names)) == len(names):
            return [one.sides[-1] for _, one in sorted(zip(names, related, strict=True), key=lambda pair: pair[0])]
    return parts


def with_shared_name(parts: list[str]) -> list[str]:
    """Gives each part the name of the first: ``x = 1, 2`` is ``x = 1, x = 2``."""
    related = [relations_in(part) for part in parts]
    first = related[0]
    if first.signs == ["="] and is_name(first.sides[0]) and not any(one.signs for one in related[1:]):
        return [parts[0], *(f"{first.sides[0]}={part}" for part in parts[1:])]
    return parts


_COLUMN = re.compile(r"\\begin\s*\{([pb]?matrix)\}(?P<inside>[^&]*?)(?:\\\\\s*)?\\end\s*\{\1\}")
_TURNED = re.compile(
    r"([(\[])([^][()&]*,[^][()&]*)[)\]]\s*\^\s*\{?\s*(?:T|\\top|\\mathrm\s*\{?T\}?|\\mathsf\s*\{?T\}?|\\text\s*\{T\})\s*\}?"
)


def in_line(text: str, other: str) -> str:
    r"""Returns a column as a tuple, beside a tuple or another way to write a column: ``(1, 2)^T``."""
    if turned := _TURNED.fullmatch(text.strip()):
        return f"({turned[2]})"
    column = _COLUMN.fullmatch(text.strip())
    if (
        column
        and "\\\\" in column["inside"]
        and (_TURNED.fullmatch(other.strip()) or in_brackets(other) or AXIS.search(other))
    ):
        return "(" + ",".join(column["inside"].split("\\\\")) + ")"
    return text


_ELEMENTS = re.compile(r"\s*(?:[a-zA-Z]|\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\))\s*\\in\s*(\\\{.*\\\})\s*", re.DOTALL)


def elements(text: str) -> str:
    r"""Returns the set alone of ``(x, y) \in \{(1, 2), (2, 1)\}``."""
    match = _ELEMENTS.fullmatch(text)
    return match[1] if match and closing(match[1], 0) == len(match[1]) - 1 else text


def in_brackets(text: str) -> tuple[str, list[str], str] | None:
    """Returns both brackets and the parts of a tuple or an interval."""
    text = text.strip()
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or closing(text, 0) != len(text) - 1:
        return None
    parts = cut(text[1:-1], {",", ";"})
    return (text[0], parts, text[-1]) if len(parts) > 1 and all(parts) else None


def both_signs(text: str) -> str | None:
    parts: list[str] = []
    listed = list_in(text)
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


def relations_in(text: str) -> Related:
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
    r"\\?[a-zA-Z]+(?:\s*_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?\w+))?(?:'|\^\s*\{?\\prime\}?|\^\s*\{?(?:[*+]|\\(?:circ|ominus)(?![a-zA-Z]))\}?)*(?:\s*\(\s*[^()=]*\s*\))?"
)


def is_name(text: str) -> bool:
    """Returns whether it is what a value is given to: a letter with its index, f(x), a tuple of such, a word."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        return all(is_name(part) for part in text[1:-1].split(","))
    words = re.fullmatch(rf"{TEXTS}\s*\{{[^{{}}\d]*\}}(?:\s*_\s*\{{?\w+\}}?)?(?:\s*\([^()=]*\))?", text)
    words = words or re.fullmatch(r"\\(?:dim|det|deg|ker|Pr|arg|gcd|lcm)(?![a-zA-Z])\s*(?:[a-zA-Z]|\([^()=]*\))", text)
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


def is_plain_sum(text: str) -> bool:
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


def congruent(text: str) -> Congruence | None:
    if "\\not" in text:
        return None
    match = re.fullmatch(
        r"(?:(.+?)\\equiv)?\s*(.+?)\s*(?:\\[,;: ]|\\q?quad|[\s,])*(?:\\pmod|\(\s*\\bmod|\(\s*\\mod"
        r"|\\bmod|\\mod|\(\s*(?:\\(?:text|mathrm|operatorname)\s*\{\s*mod\s*\}|mod))"
        r"\s*(?:\{\s*([^{}]+)\s*\}|([^\s{}()]+))\s*\)?\s*",
        text,
    )
    if match is None:
        return None
    return Congruence((match[1] or "").strip(), list_in(match[2]).parts, (match[3] or match[4]).strip())
