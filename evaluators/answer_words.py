"""Tells the value of an answer from the words around it."""

from __future__ import annotations

import re

from speclrm.evaluators.answer_parts import (
    TEXTS,
    closing,
    cut,
    relations_in,
)

JOINT = re.compile(rf"{TEXTS}\s*\{{\s*,?\s*(and|or)\s*,?\s*\}}")
_LEAD_WORDS = re.compile(
    rf"^(?:{TEXTS}\s*\{{)?\s*(?:(?:so|thus|hence)\s+)?(?:(?:the|a|an)\s+)?(?:(?:(?:final|correct)\s+)?answer\s*(?::|is\b|=)|approximately\b|approx\b\.?|about\b|roughly\b|"
    rf"exactly\b|only\b|equal\s+to\b|a\s+total\s+of\b|total\s+of\b|(?:一共|总共|共)?(?:[有是为约]|需要?)|等于|一共|总共|共)\s*:?\s*(?P<close>\}})?",
    re.IGNORECASE,
)
_QUALIFIER = re.compile(
    rf"[\s,;~]*(?:{TEXTS}\s*\{{[\s,~]*|(?<=[\s,])\(?)(?=(?:for\s+(?:all|any|every|each|some|arbitrary|integers?|real|positive|natural)\b|for\s*\}}\s*\w"
    r"|where\b|with\s+[a-zA-Z]\b|with\s*\}))",
    re.IGNORECASE,
)
_REMARK = re.compile(
    rf"\s*(?:{TEXTS}\s*\{{\s*\(([^(){{}}]*)\)\s*\}}|\((?={TEXTS}|[a-zA-Z]{{3,}}\s?[a-zA-Z]*|[\u4e00-\u9fff])([^()]*)\))\s*$"
)
_COMMA_IN_TEXT = re.compile(rf"({TEXTS}\s*\{{[^{{}},]*[^{{}},\s])\s*,\s*\}}")
_DOMAIN_BEHIND = re.compile(
    r"(?:\s|\\[,;:! ]|\\q?quad|[,~])*\(\s*([a-zA-Z]\s*\\in\s*\\(?:mathbb|mathbf)\s*\{?\s*[ZNRQ]\s*\}?"
    r"(?:\s*[_^]\s*\{?\s*[+*]\s*\}?)?)\s*\)$"
)
_ONLY = re.compile(rf"(?<=[\d}})a-zA-Z])\s*(?:{TEXTS}\s*\{{\s*only\s*\}}|\bonly)$")
_ABOUT_THAT = re.compile(
    r"(?:\s|\\[,;:! ]|\\quad|~)*\(\s*(?:\\approx|\\text\{\s*approximately\s*\}|approximately|about)\s*([-\d.]+)\s*\)$"
)
_ALSO = re.compile(r"\s*\((?:or|i\.e\.,?|that is,?|=)\s*([^()]*)\)\s*$")
"""Another form of the answer in brackets behind it."""
_PLAIN_BUILT = re.compile(r"\{\s*[a-zA-Z]\s*(?:\\in[^|:]*)?(?:\||\\mid|:)")
_CONDITION = re.compile(
    r"\b(?:if|when|unless|only|mod|or|otherwise|and)\b|[=<>]|\\(?:ne|le|ge|in|equiv)\b", re.IGNORECASE
)
_ARTICLES = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)


def bare(text: str) -> str:
    """Removes brackets, words and remarks around the whole."""
    before = None
    while before != text:
        before = text
        text = re.sub(r"^\s*(?:=|\\approx|\\simeq)\s*(?=[^=])", "", text)
        text = JOINT.sub(r" \1 ", text).strip() if "\\" in text else text.strip()
        text = (
            text.strip("~").removesuffix("\\\\").removesuffix("\\").strip().rstrip(".;,").strip()
            if not text.endswith("\\,")
            else text[:-2]
        )
        text = _COMMA_IN_TEXT.sub(r"\1}, ", text)
        text = _ALSO.sub(r" or \1", text)
        text = _ABOUT_THAT.sub(r" \\approx \1", _DOMAIN_BEHIND.sub(r", \1", _ONLY.sub("", text)))
        if _PLAIN_BUILT.match(text) and text.endswith("}") and closing(text, 0) == len(text) - 1:
            text = f"\\{{{text[1:-1]}\\}}"
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            elements = len(cut(text[1:-1], {","})) > 1 and not relations_in(text[1:-1]).signs
            text = f"\\{{{text[1:-1]}\\}}" if elements else text[1:-1]
        if match := re.fullmatch(rf"{TEXTS}\s*\{{([^{{}}]*)\}}", text):
            inside = match[1].strip()
            if not re.fullmatch(r"[a-zA-Z]", inside):
                text = inside
        if (match := _LEAD_WORDS.match(text)) and match.end() < len(text):
            rest = text[match.end() :]
            text = rest if match["close"] or not text.startswith("\\") else re.sub(r"\}", "", rest, count=1)
        text = _without_remark(text)
    return text


def _without_remark(text: str) -> str:
    """Removes words in brackets behind a value: 5 (five), 8 (approximately)."""
    match = _REMARK.search(text)
    if match is None or match.start() == 0 or _CONDITION.search(match[1] or match[2] or ""):
        return text
    value = text[: match.start()]
    apart = match[1] is not None or match[0][:1].isspace() or value[-1].isdigit() or not match[0].isascii()
    return value if apart and re.search(r"[\d)}\]a-zA-Z]\s*$", value) else text


def split_qualifier(text: str) -> tuple[str, str]:
    text = text.replace("\\forall", "\\text{for all }")
    for match in _QUALIFIER.finditer(text):
        if match.start() > 0 and text[: match.start()].count("{") == text[: match.start()].count("}"):
            return text[: match.start()].strip(), text[match.start() :].strip()
    return text, ""


_WORDY = re.compile(r"[^\W\d_][^\W\d_'’.\-]*(?:[\s\-][^\W\d_]+[.']?)*")


def names_of(text: str) -> list[str] | None:
    """Returns the names or words that the text is, one or several, in small letters; None where it is no text."""
    plain = re.sub(
        rf"{TEXTS}\s*\{{([^{{}}]*)\}}|\\text\w+\s*\{{([^{{}}]*)\}}", lambda match: match[1] or match[2] or "", text
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


ORDINAL = re.compile(rf"\d+\s*(?:{TEXTS}\s*\{{\s*)?(?:st|nd|rd|th)\s*\}}?")
"""No product of letters: 2nd."""


def is_word(text: str) -> bool:
    """Returns whether letters make a word rather than a product: several, with a vowel among them and nothing else around."""
    vowel = re.search("[aeiouAEIOU]", text) is not None
    return (len(text) > 2 and text.isalpha() and text.isascii() and vowel) or text.lower() in ("no", "on")
