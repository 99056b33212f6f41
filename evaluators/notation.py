r"""Ways of writing an answer that mean the same, brought into one: pure text work, in linear time.

What a parser of LaTeX reads wrongly or not at all is rewritten before it sees it: repeating decimals, percentages, units,
numbers in a base, degrees in a cosine.
"""

from __future__ import annotations

import re

DIGIT_GROUPS = re.compile(r"(?<=\d)(?:,|\\,|\{,\}|~|\\ )(?=\d{3}(?!\d))")
PERCENT = re.compile(r"\\?%\s*$")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_UPRIGHT = re.compile(r"\\mathrm\s*\{\s*([ei])\s*\}")
"""Euler's number and the imaginary unit, set upright as many books do."""
_DOTS = re.compile(r"\\[lcd]?dots[bcimo]?|\.\.\.|…")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°")
_REPEATING = re.compile(r"(?P<whole>\d*)\.(?P<fixed>\d*)\\overline\s*\{?(?P<period>\d+)\}?")
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z]|\{[^{}]*\}|\([^()]*\))")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})")
_ANGLE = re.compile(r"\\(sin|cos|tan|cot|sec|csc)\s*[({]?\s*(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*[)}]?")
_ONE_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+|\d+/-?\d+|\\frac\{?-?\d+\}?\{?-?\d+\}?)")
_IN_BASE = re.compile(r"([0-9a-zA-Z]+)_\{?(\d{1,2})\}?")
_CHOICE = re.compile(r"\(?([A-Za-z])\)?\.?")
_LABELLED = re.compile(r"\(?([A-Za-z])\)(?=\s|\\|$)|([A-Za-z])[.:](?=\s)")
"""A letter that labels an option, with the option's text behind it: ``(C) 12``, ``B) 12``, ``B. 12``."""
_MEASURE = re.compile(
    r"[-+]?[\d.,/]+(?:\\frac\{\d+\}\{\d+\})?(?:\s|\\[,;: ]|~)*(?P<unit>[A-Za-z]+)(?:\s*\^\s*\{?(?P<power>\d)\}?)?"
)

_UNITS = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimetre",
        "cm": "cm centimeter centimetre",
        "m": "m meter metre",
        "km": "km kilometer kilometre",
        "in": "in inch inche",
        "ft": "ft foot feet",
        "yd": "yd yard",
        "mi": "mi mile",
        "s": "s sec second",
        "min": "min minute",
        "h": "h hr hour",
        "day": "day",
        "week": "week",
        "month": "month",
        "year": "year",
        "g": "g gram",
        "kg": "kg kilogram",
        "lb": "lb pound",
        "oz": "oz ounce",
        "ml": "ml milliliter millilitre",
        "l": "l liter litre",
        "gal": "gal gallon",
        "mph": "mph",
        "cent": "cent",
        "dollar": "dollar",
    }.items()
    for name in names.split()
}
"""Units that are told apart, with their names in the singular. A word that is none of them is no unit: apples."""


def clean(text: str) -> str:
    """The answer without decoration, in the notation that the parser reads."""
    text = text.strip().strip("$").strip()
    text = text.replace("−", "-").replace("π", "\\pi ").replace("\\varnothing", "\\emptyset")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _UPRIGHT.sub(r" \1", text)
    text = text.replace("\\!", "").replace("\\$", "").removeprefix("$")
    text = _REPEATING.sub(_exact, text)
    text = _ROOT.sub(lambda match: f"\\sqrt{{{match[1].strip('(){}')}}}", text)
    text = _ANGLE.sub(r"\\\1(\\frac{\2\\pi}{180})", text)
    text = _DEGREES.sub("", text)
    if "(" not in text and "{" not in text.replace("{,}", ""):
        text = DIGIT_GROUPS.sub("", text)  # in a tuple the comma may be one between numbers
    if match := _SCIENTIFIC.fullmatch(text):
        text = f"{match[1]} \\times 10^{{{match[2]}}}"
    return PERCENT.sub("", text).strip().rstrip(".")


def _exact(match: re.Match[str]) -> str:
    """A repeating decimal as a fraction: 0.1(6) is (16 - 1) / 90."""
    fixed, period = match["fixed"], match["period"]
    whole = int((match["whole"] or "0") + fixed)
    top = int((match["whole"] or "0") + fixed + period) - whole
    return f"\\frac{{{top}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


def has_percent(text: str) -> bool:
    return PERCENT.search(text.strip().strip("$").strip()) is not None


def with_dots(text: str) -> str | None:
    """A text that leaves something to the reader (1, 2, ..., n), without space and with dots of one kind; else None."""
    return re.sub(r"\s+", "", _DOTS.sub("...", text)) if _DOTS.search(text) else None


def words(text: str) -> str:
    """The text inside LaTeX's text commands, without space around."""
    return re.sub(r"\s+", " ", _TEXT_COMMAND.sub(r"\1", text)).strip()


def choice(text: str) -> str | None:
    """The letter where the text is one, in parentheses or not, or labels an option with it."""
    plain = words(text)
    if match := _CHOICE.fullmatch(plain):
        return match[1].upper()
    return (match[1] or match[2]).upper() if (match := _LABELLED.match(plain)) else None


def is_number(text: str) -> bool:
    """Whether the answer is one number, written out, and no expression that still has to be worked out."""
    return _ONE_NUMBER.fullmatch(clean(words(text)).replace(" ", "")) is not None


def is_letter(text: str) -> bool:
    return _CHOICE.fullmatch(words(text)) is not None


def in_base(text: str) -> tuple[str, int] | None:
    """Digits and base of a number such as ``101_2``."""
    match = _IN_BASE.fullmatch(text.replace(" ", ""))
    return (match[1].lower(), int(match[2])) if match else None


def measure(text: str) -> tuple[str, int] | None:
    """The unit behind a number and its power, where it is one that we know."""
    match = _MEASURE.fullmatch(words(text).strip("$ "))
    if match is None:
        return None
    name = match["unit"].casefold()
    unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    return None if unit is None else (unit, int(match["power"] or 1))
