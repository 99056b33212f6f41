r"""Finds the answer in what a model wrote: pure text work, in linear time, for texts that nobody vouches for.

The last balanced ``\boxed{}`` counts, after the thinking where it was closed; otherwise the last line that says that it
is the answer.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\\\?(?:boxed|fbox)(?:\s*\{|\s+(?=[^\s{}$]))|\\[{}\\]|[{}]")
"""The start of a box, with or without a brace, its backslash doubled where a program wrote it so; an escaped brace or
backslash, which opens nothing; a brace."""

_LINE = re.compile(
    r"^[\s>*#_`-]*(?:(?:the|so|hence|therefore|thus|then|and)\b[\s,]*)*(?:final\s+|correct\s+)?answer\s*"
    r"(?:[*_`]*\s*(?::|\bis\b)[\s*_`:]*)\s*(?P<answer>\S.*)$",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^\s*####\s*(?P<answer>\S.*)$")
_LINE_CHARACTERS_MAX = 400
"""A line that gives an answer is short; what is longer only talks about one."""
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
THINK_CLOSE = "</think>"


def find_answer(text: str) -> str | None:
    """The answer of a whole completion as the model wrote it, or None.

    Where thinking was closed, only what follows counts: what a model weighs while it thinks is not yet its answer.
    """
    said = text.rpartition(THINK_CLOSE)[2]
    boxed = last_boxed(said)
    return boxed if boxed is not None else _answer_line(said)


def has_answer(step: str) -> bool:
    """Whether a step gives an answer; the rule that ends a track."""
    return last_boxed(step) is not None or _answer_line(step) is not None


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{}`` whose braces balance. Empty boxes do not count.

    One pass with a stack: each box remembers where it began, so a thousand unclosed ones cost no more than one.
    """
    found: str | None = None
    stack: list[int | None] = []  # the start of a box's content, or None for any other brace
    for token in _BOX.finditer(text):
        mark = token.group()
        if mark.startswith("\\") and "box" in mark:
            if mark.endswith("{"):
                stack.append(token.end())
            else:
                bare = re.compile(r"[^\s{}$.,;]+").match(text, token.end())
                found = bare.group() if bare else found
        elif mark == "{":
            stack.append(None)
        elif mark == "}" and stack:
            start = stack.pop()
            if start is not None and (content := text[start : token.start()].strip()):
                found = content
    return found


def _answer_line(text: str) -> str | None:
    for line in reversed(text.splitlines()):
        if len(line) > _LINE_CHARACTERS_MAX:
            continue
        match = _LINE.match(line) or _HASHES.match(line)
        if match and (answer := tidy(match["answer"])):
            return answer
    return None


def tidy(answer: str) -> str:
    """Without the marks around it: full stops, dollar signs, bold type."""
    before = None
    while answer != before:
        before = answer
        answer = answer.strip().rstrip(".;,")
        for left, right in _WRAPPERS:
            if len(answer) > len(left) + len(right) and answer.startswith(left) and answer.endswith(right):
                answer = answer[len(left) : -len(right)]
        for mark in ("**", "`"):
            answer = answer.removesuffix(mark).removeprefix(mark)
    return answer
