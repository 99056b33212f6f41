"""Tells what is the same answer written in other words or letters: numbers in words, chemical formulas, bound letters."""

from __future__ import annotations

import re


def word_list(text: str) -> list[str]:
    return text.split()


_IN_SIGNS = {
    **dict.fromkeys(
        ("all real numbers", "all reals", "the set of all real numbers", "any real number", "every real number"),
        "\\mathbb{R}",
    ),
    **dict.fromkeys(
        ("no solution", "no solutions", "no real solution", "no real solutions", "the empty set", "empty set"),
        "\\emptyset",
    ),
    **dict.fromkeys(("dne", "the limit does not exist"), "does not exist"),
}
_REALS_BUT = re.compile(
    r"(?:\\text\s*\{\s*all real numbers except(?:\s+for)?\s*\}\s*|all real numbers except(?:\s+for)?\s+)(?:[a-z]\s*=\s*)?(.+)"
)


def in_signs(text: str) -> str:
    """Returns the sign for a set that is named in words."""
    if but := _REALS_BUT.fullmatch(text):
        return f"\\mathbb{{R}} \\setminus \\{{{but[1]}\\}}"
    return _IN_SIGNS.get(text.casefold(), text)


_CONSTANT = re.compile(
    r"(?P<rest>.+)\+\s*(?P<name>[CcK](?:_\{?\d\}?)?|\\(?:text|mathrm)\s*\{\s*const(?:ant|\.)?\s*\})\s*", re.DOTALL
)


def without_constants(gold: str, answer: str) -> tuple[str, str]:
    """Returns two formulas, of which each ends with a constant that it holds nowhere else, with one name for it."""
    found = [_CONSTANT.fullmatch(text) for text in (gold, answer)]
    if any(match is None or match["name"][:1] in {run[0] for run in _RUN.finditer(match["rest"])} for match in found):
        return gold, answer
    return gold, f"{found[1]['rest']}+{found[0]['name']}" if found[0] and found[1] else answer


_ONES = word_list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = word_list("twenty thirty forty fifty sixty seventy eighty ninety")
_VALUES = {word: at for at, word in enumerate(_ONES)} | {word: 20 + 10 * at for at, word in enumerate(_TENS)}
_SHARES = {
    name: at for at, name in enumerate(word_list("half third quarter fifth sixth seventh eighth ninth tenth"), 2)
} | {"fourth": 4}
_SCALES = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_NEGATIVE = re.compile(r"(?:minus|negative)\s+", re.IGNORECASE)

_WRITTEN_UPRIGHT = re.compile(r"\\(?:text|mathrm|ce|mbox|rm|textrm|operatorname)(?![a-zA-Z])")
_ELEMENT = (
    "A[cglmrstu]|B[aehikr]?|C[adelmnorsu]?|D[y]|E[rsu]|F[elmr]?|G[ade]|H[efgos]?|I[nr]?|K[r]?|L[aiuvr]|M[gnot]|N[abdeiop]?|O[gs]?"
    "|P[abdmortu]?|R[abefghnu]|S[bcegimnr]?|T[abcehilm]|U|V|W|Xe|Yb?|Z[nr]"
)
_ISOTOPE = re.compile(r"(?:\^\s*\{?(\d+)\}?\s*_\s*\{?(-?\d+)\}?|_\s*\{?(-?\d+)\}?\s*\^\s*\{?(\d+)\}?)(?=\s*[\\A-Z])")
_PIECE = rf"(?:\^\d+(?:;-?\d+)?|\d*)(?:(?:{_ELEMENT})\d*|[(\[]|[)\]]\d*)+(?:\^\d*[-+])?(?:\((?:aq|s|l|g)\))?"
_SPECIES = re.compile(rf"{_PIECE}(?:(?:\+|->){_PIECE})*")
"""One, or those of a reaction. Each piece can be read in one way alone, so that no text takes long."""
_SHELLS = re.compile(r"(?:\[(?:He|Ne|Ar|Kr|Xe|Rn)\])?(?:\d[spdf]\^\d+)+|sp(?:\^\d)?(?:d(?:\^\d)?)?")
"""The electrons of an atom, or how its shells are mixed. These are told from products by their letters."""
_RUN = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+")


def in_digits(text: str) -> str:
    """Returns the text with the number that it is in words (twelve hundred, minus seven) in digits."""
    sign = _NEGATIVE.match(text)
    rest = text[sign.end() :] if sign else text
    words = re.findall(r"[a-z]+", rest.lower())
    if len(words) > 1 and words[0] == "a":
        words[0] = "one"
    if re.fullmatch(r"[A-Za-z][A-Za-z\s-]*", rest):
        share = _share(words[-1])
        if (value := _value(words[:-1] if share else words)) is not None:
            if share and (value > 1) != words[-1].endswith("s"):
                return text  # twenty-third
            rest = f"\\frac{{{value}}}{{{share}}}" if share else str(value)
    return f"-{rest}" if sign and re.match(r"[\d.\\]", rest) else rest if not sign else text


def _share(word: str) -> int:
    """Returns the denominator that the last word of a fraction is (three quarters), or 0."""
    return _SHARES.get(word, _SHARES.get(word.removesuffix("s"), 2 if word == "halves" else 0))


def _value(words: list[str]) -> int | None:
    """Returns the number that English words are, or None. No two words of one kind may stand side by side."""
    total, part, last = 0, 0, ""
    for word in words:
        if word == "and" and last in ("hundred", *_SCALES):
            continue
        if word in _VALUES:
            joins = last in ("", "hundred", *_SCALES) or (last in _TENS and 0 < _VALUES[word] < 10)
            if not joins:
                return None
            part += _VALUES[word]
        elif word in ("hundred", "dozen") and 0 < part < 100:
            part *= 100 if word == "hundred" else 12
        elif word in _SCALES and part:
            total, part = total + part * _SCALES[word], 0
        else:
            return None
        last = word
    return total + part if last else None


def same_species(gold: str, answer: str) -> bool:
    """Returns whether both are one chemical formula. One of them is written upright, as such formulas are; else its letters
    may be those of a product.
    """
    one, other = _plain_species(gold), _plain_species(answer)
    if one == other and _SHELLS.fullmatch(one):
        return True
    if not (_WRITTEN_UPRIGHT.search(gold) or _WRITTEN_UPRIGHT.search(answer)):
        return False
    return one == other and _SPECIES.fullmatch(one) is not None


def _plain_species(text: str) -> str:
    text = _ISOTOPE.sub(lambda match: f"^{match[1] or match[4]};{match[2] or match[3]}", text)
    text = re.sub(r"\\(?:to|rightarrow|longrightarrow)(?![a-zA-Z])", "->", _WRITTEN_UPRIGHT.sub("", text))
    return re.sub(r"[\s{}_~]|\\[,;:! ]", "", text)


def with_domain(parts: list[str], old: str, new: str) -> list[str]:
    r"""Returns answers in the letter that another domain names (``k \in Z`` for ``n \in Z``), or nothing where the domains differ
    in more.
    """
    made = [renamed(part, old[0], new[0]) for part in parts]
    return [part for part in made if part is not None] if old[1:] == new[1:] and None not in made else []


def renamed(text: str, old: str, new: str) -> str | None:
    """Returns a formula with another letter for one of its own, or None where the new one is already there."""
    runs = [run[0] for run in _RUN.finditer(text) if not run[0].startswith("\\")]
    if any(new in run for run in runs):
        return None
    return _RUN.sub(lambda run: run[0] if run[0].startswith("\\") else run[0].replace(old, new), text)


_DEFINED = re.compile(r"\s*([a-zA-Z](?:_\w)?)\s*\(\s*([a-zA-Z])\s*\)\s*")


def defined_alike(gold: str, answer: str, body: str) -> str | None:
    """Returns what an answer defines, in the letter of the gold definition: of ``f(x)`` and ``f(t)``, with x for t in the body.

    None where they are not two such heads of one function, nothing where its letter cannot be changed.
    """
    one, other = _DEFINED.fullmatch(gold), _DEFINED.fullmatch(answer)
    if not one or not other or one[1] != other[1] or one[2] == other[2]:
        return None
    changed = renamed(body, other[2], one[2])
    return changed if changed not in (None, body) else ""
