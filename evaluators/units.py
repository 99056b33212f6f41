"""Knows the units that answers of physics, chemistry and everyday problems have, as factors and powers of base units.

A table rather than a library: what is needed is the reading of one expression such as ``m s^{-1}``, in a worker that is to
start in milliseconds. Factors are exact, those of the SI brochure (9th edition) and of the international yard and pound.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """``dimensions``: powers of base units, sorted. ``factor``: how many of those it is. ``times``: a number word's value."""

    factor: Fraction
    dimensions: tuple[tuple[str, int], ...]
    times: Fraction = Fraction(1)

    def __mul__(self, other: object) -> Unit:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert isinstance(other, Unit)
        powers = dict(self.dimensions)
        for base, power in other.dimensions:
            powers[base] = powers.get(base, 0) + power
        left = tuple(sorted((base, power) for base, power in powers.items() if power))
        return Unit(self.factor * other.factor, left, self.times * other.times)

    def to(self, power: int) -> Unit:
        return Unit(self.factor**power, tuple((base, of * power) for base, of in self.dimensions), self.times**power)


NONE = Unit(Fraction(1), ())

_PREFIXES = {
    "T": ("tera", 12), "G": ("giga", 9), "M": ("mega", 6), "k": ("kilo", 3), "h": ("hecto", 2), "d": ("deci", -1),
    "c": ("centi", -2), "m": ("milli", -3), "u": ("micro", -6), "µ": ("micro", -6), "n": ("nano", -9), "p": ("pico", -12),
    "f": ("femto", -15),
}  # fmt: skip
_SI = {
    "m": ("meter metre", "1", "m"),
    "g": ("gram gramme", "1/1000", "kg"),
    "s": ("second", "1", "s"),
    "A": ("ampere amp", "1", "A"),
    "K": ("kelvin", "1", "K"),
    "mol": ("mole", "1", "mol"),
    "Hz": ("hertz", "1", "s^-1"),
    "N": ("newton", "1", "kg m s^-2"),
    "Pa": ("pascal", "1", "kg m^-1 s^-2"),
    "J": ("joule", "1", "kg m^2 s^-2"),
    "W": ("watt", "1", "kg m^2 s^-3"),
    "C": ("coulomb", "1", "A s"),
    "V": ("volt", "1", "kg m^2 s^-3 A^-1"),
    "F": ("farad", "1", "kg^-1 m^-2 s^4 A^2"),
    "Ω": ("ohm", "1", "kg m^2 s^-3 A^-2"),
    "S": ("siemens", "1", "kg^-1 m^-2 s^3 A^2"),
    "Wb": ("weber", "1", "kg m^2 s^-2 A^-1"),
    "T": ("tesla", "1", "kg s^-2 A^-1"),
    "H": ("henry", "1", "kg m^2 s^-2 A^-2"),
    "Bq": ("becquerel", "1", "s^-1"),
    "Gy": ("gray", "1", "m^2 s^-2"),
    "eV": ("electronvolt", "1602176634/10000000000000000000000000000", "kg m^2 s^-2"),
    "L": ("liter litre", "1/1000", "m^3"),
    "l": ("", "1/1000", "m^3"),
    "cal": ("calorie", "4184/1000", "kg m^2 s^-2"),
    "Wh": ("watthour", "3600", "kg m^2 s^-2"),
    "Ah": ("", "3600", "A s"),
    "bar": ("", "100000", "kg m^-1 s^-2"),
    "M": ("molar", "1000", "mol m^-3"),
    "B": ("byte", "8", "bit"),
}
_OTHERS = {
    "in inch": ("254/10000", "m"),
    "ft foot feet": ("3048/10000", "m"),
    "yd yard": ("9144/10000", "m"),
    "mi mile": ("1609344/1000", "m"),
    "Å angstrom": ("1/10000000000", "m"),
    "ly lightyear": ("9460730472580800", "m"),
    "au": ("149597870700", "m"),
    "min minute": ("60", "s"),
    "h hr hour": ("3600", "s"),
    "d day": ("86400", "s"),
    "week wk": ("604800", "s"),
    "month": ("1", "month"),
    "year yr": ("12", "month"),
    "lb lbs pound": ("45359237/100000000", "kg"),
    "oz ounce": ("45359237/1600000000", "kg"),
    "t ton tonne": ("1000", "kg"),
    "amu Da dalton": ("1", "Da"),
    "gal gallon": ("3785411784/1000000000000", "m^3"),
    "cup": ("1", "cup"),
    "acre": ("40468564224/10000000", "m^2"),
    "ha hectare": ("10000", "m^2"),
    "mph": ("44704/100000", "m s^-1"),
    "kmh kph": ("10/36", "m s^-1"),
    "knot": ("1852/3600", "m s^-1"),
    "atm atmosphere": ("101325", "kg m^-1 s^-2"),
    "mmHg torr Torr": ("101325/760", "kg m^-1 s^-2"),
    "psi": ("689475729/100000", "kg m^-1 s^-2"),
    "erg": ("1/10000000", "kg m^2 s^-2"),
    "dyn dyne": ("1/100000", "kg m s^-2"),
    "G gauss": ("1/10000", "kg s^-2 A^-1"),
    "rpm": ("1", "rev min^-1"),
    "rev revolution": ("1", "rev"),
    "rad radian": ("1", "rad"),
    "sr steradian": ("1", "sr"),
    "° deg degree": ("1", "°"),
    "°C celsius centigrade": ("1", "°C"),
    "°F fahrenheit": ("1", "°F"),
    "dollar buck USD": ("1", "$"),
    "cent penny pennies ¢": ("1/100", "$"),
    "€ euro": ("1", "€"),
    "£": ("1", "£"),
    "¥ yen yuan": ("1", "¥"),
    "₹ Rs rupee": ("1", "rupee"),
    "dB decibel": ("1", "dB"),
    "bit": ("1", "bit"),
    "% percent pct percentage": ("1", "%"),
}
_COUNTS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}


def _base(text: str) -> Unit:
    unit = NONE
    for part in text.split():
        name, _, power = part.partition("^")
        unit *= Unit(Fraction(1), ((name, int(power or 1)),))
    return unit


def _table() -> tuple[dict[str, Unit], dict[str, Unit]]:
    """Units by their signs, in which capitals count, and by their names, in which they do not."""
    signs: dict[str, Unit] = {}
    names: dict[str, Unit] = {}
    for words, (factor, base) in _OTHERS.items():
        unit = Unit(Fraction(factor), _base(base).dimensions)
        for word in words.split():
            (names if len(word) > 3 else signs)[word] = unit
            if word.islower() and len(word) > 1:
                names[word] = unit
    for sign, (words, factor, base) in _SI.items():
        unit = Unit(Fraction(factor), _base(base).dimensions)
        for prefix, (word, power) in {"": ("", 0), **_PREFIXES}.items():
            scaled = unit._replace(factor=unit.factor * Fraction(10) ** power)
            signs.setdefault(prefix + sign, scaled)
            for name in words.split():
                names.setdefault(word + name, scaled)
    for sign in ("m", "g", "s", "A", "K", "C", "min", "h", "ft", "in"):
        assert sign in signs
    names |= {"sec": signs["s"], "cc": signs["cm"].to(3), "fahrenheit": signs["°F"], "kmph": signs["kmh"]}
    return signs, names


_SIGNS, _NAMES = _table()
_PART = re.compile(
    r"\s*(?P<times>per\b|[/*·⋅]|\\cdot\b|\\times\b|-(?=[A-Za-z]))?\s*(?:(?P<one>1(?=\s*/))|(?P<open>\()|(?P<close>\))"
    r"|(?P<name>°\s*[CFK]?\b|°|%|[A-Za-zµΩÅ€£¥¢$]+\.?)\s*(?:(?:\^|\*\*)?\s*[{(]?\s*(?P<power>[-+−]?\d)\s*[)}]?)?)"
)

_TEMPERATURE = re.compile(r"(?:°|\bdeg(?:ree)?s?)\s*(celsius|centigrade|fahrenheit|[CF]\b)", re.IGNORECASE)


def read(text: str) -> Unit | None:
    """Returns the unit that the whole text is, or None. ``text``: without LaTeX around its words."""
    unit, at = NONE, 0
    below = False  # behind a slash all of what one bracket or one name holds is divided by
    inside = False
    pending = 1
    text = _TEMPERATURE.sub(lambda match: "°" + match[1][0].upper(), text.strip())
    if not text:
        return None
    while at < len(text):
        part = _PART.match(text, at)
        if part is None or part.end() == at:
            return None
        if part["times"] == "-" and unit == NONE:
            return None
        at = part.end()
        over = part["times"] in ("/", "per")
        if part["open"]:
            inside, below = True, over
            continue
        if part["close"]:
            if not inside:
                return None
            inside = below = False
            continue
        if part["one"]:
            continue
        name = re.sub(r"\s", "", part["name"]).removesuffix(".")
        power = int((part["power"] or "1").replace("−", "-"))
        if name.lower() in _POWERS:
            if name.lower().endswith("ed"):
                return None if unit == NONE else _with_last(unit, _POWERS[name.lower()])
            pending = _POWERS[name.lower()]
            continue
        if name.lower() in _COUNTS:
            unit *= Unit(Fraction(1), (), Fraction(_COUNTS[name.lower()]))
            continue
        one = named(name)
        if one is None:
            return None
        unit *= one.to(power * pending * (-1 if over or (inside and below) else 1))
        pending = 1
    return unit


def _with_last(unit: Unit, power: int) -> Unit | None:
    """Reads ``meters squared``: only of one unit alone is it clear what is squared."""
    return unit.to(power) if len(unit.dimensions) == 1 else None


def named(name: str) -> Unit | None:
    """Returns a unit by its sign or name, in the singular or plural."""
    if name in _SIGNS:
        return _SIGNS[name]
    lower = name.lower()
    if len(name) == 1:
        return None
    for form in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if form in _NAMES and (len(form) > 2 or name.islower()):
            return _NAMES[form]
    return None
