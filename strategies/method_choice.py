"""Asks the target which methods fit a problem, and reads its reply.

After SSR's Selective Parallel Module as its code has it: the pool and the problem are shown, and one greedy reply of a
few tokens names the methods.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Question
from speclrm.strategies.methods import METHODS, NO_METHOD

if TYPE_CHECKING:
    from speclrm.runtime.protocols import Problem

_CODE = re.compile(r"(?<![A-Za-z])[A-M](?![A-Za-z])")
"""A code that stands alone: the I of "I would take B" is hard to tell from the method, that of "Invariants" is not."""
_ORIGINAL_CODE = re.compile(r"[A-M]")
_TOKENS_A_CODE = 4
"""Room for ``B, `` and a word or two before the first code."""
_EXAMPLE = "BEFAK"


def ask_for_methods(problem: Problem, count: int, *, raw: bool, original: bool) -> Question:
    """Returns the question. ``original``: room for the codes and one comma between them, 2 * count - 1 tokens, as in
    SSR's code.
    """
    pool = "\n".join(f"{code}. {hint}" for code, hint in METHODS.items())
    # Only the original shows an example: small models repeat it for every problem.
    example = f", for example {','.join((_EXAMPLE * count)[:count])}" if original else ", with commas between"
    text = (
        "Read the problem and choose the methods that promise most for solving it.\n\n"
        f"Methods:\n{pool}\n{NO_METHOD}. None of these.\n\n"
        f"Problem: {problem.text}\n\n"
        f"Name the {count} best methods by their letters alone, best first{example}."
    )
    return Question(
        ({"role": "user", "content": text},),
        f"The {count} best methods: ",
        2 * count - 1 if original else _TOKENS_A_CODE * count,
        raw,
        "\n<think></think>" if raw else "",
    )


def read_methods(reply: str, count: int, *, duplicates: bool, original: bool) -> tuple[tuple[str, ...], int]:
    """Returns the first ``count`` codes of the reply, filled up with M, and how many were filled. ``duplicates``:
    whether a method may come twice.

    ``original``: any capital letter A to M counts, anywhere.
    """
    codes = (_ORIGINAL_CODE if original else _CODE).findall(reply)
    if not duplicates:
        codes = list(dict.fromkeys(codes))
    codes = codes[:count]
    padded = count - len(codes)
    return (*codes, *[NO_METHOD] * padded), padded
