"""What a grader's worker process does. Imported there alone, so that sympy never enters the main process."""

from __future__ import annotations

import contextlib
import re
from typing import Any, cast

from speclrm.evaluators import notation

FLOAT_DIGITS = 12
"""Decimals that count: 0.33333333 is not 1/3, and the last digits of a float are nobody's."""
TINY = 1e-3
"""Under it numbers are compared by their leading digits instead."""
EXACT_BITS = 53
"""What sympy must be sure of in a number, for its digits to count against it."""
_KINDS = (("1/2", "0.5"), ("\\sqrt{2}", "x^2+1"), ("\\{1,2\\}", "(1,2]"))
"""Some kinds of answers: the parser learns the notation as it meets it, and workers inherit what the nursery knows."""


def prepare(*, tasks: bool) -> None:
    """Loads what judging takes, once for all workers: loading is no answer's fault."""
    for pair in _KINDS:
        same(*pair)
    if tasks:
        with contextlib.suppress(ImportError):  # then each call says so
            import reasoning_gym  # pyright: ignore[reportMissingTypeStubs, reportUnusedImport]  # noqa: F401


def judge(rule: str, gold: str, answer: str) -> bool:
    """The verdict by a rule: ``math``, or that of a task."""
    return same(gold, answer) if rule == "math" else by_task(rule, gold, answer)


def same(gold: str, answer: str) -> bool:
    """Whether the answer equals the gold answer as mathematics."""
    percents = notation.has_percent(gold), notation.has_percent(answer)
    units = notation.measure(gold), notation.measure(answer)
    gold, answer = notation.clean(gold), notation.clean(answer)
    if gold == answer:
        return True
    dots = notation.with_dots(gold), notation.with_dots(answer)
    if any(dots):
        return dots[0] == dots[1]  # what the dots stand for is no expression: a parser drops them
    if notation.is_letter(gold):
        return notation.choice(answer) == notation.choice(gold)
    bases = notation.in_base(gold), notation.in_base(answer)
    if any(bases):
        return bases[0] == bases[1]
    if units[0] and units[1] and units[0] != units[1]:
        return False
    if _verify(gold, answer) or notation.words(gold).casefold() == notation.words(answer).casefold() != "":
        return True
    # 50% is 50 where percent is asked for, and 0.5 everywhere.
    return percents[0] != percents[1] and (
        _verify(f"\\frac{{{gold}}}{{100}}", answer) if percents[0] else _verify(gold, f"\\frac{{{answer}}}{{100}}")
    )


def by_choice(letter: str, options: str, answer: str) -> bool:
    """Whether the answer is the option's letter, or the words of the option itself.

    ``options``: a JSON object of letters and options.
    """
    import json

    named = notation.choice(answer)
    texts: dict[str, str] = {name: notation.words(text) for name, text in json.loads(options).items()}
    right = texts.get(letter.upper(), "")
    if named in texts:
        return named == letter.upper() or texts[named] == right != ""  # two options may read the same
    said = notation.words(answer)
    if said in texts.values():  # MeV and meV are told apart where both are there
        return said == right
    return said.casefold() == right.casefold() != ""


def by_task(rule: str, gold: str, answer: str) -> bool:
    """The verdict of a reasoning-gym task on an answer, as written or stripped of LaTeX. Partial credit is none.

    ``rule``: ``reasoning-gym:TASK``; ``gold``: the entry that the task made, as JSON.
    """
    import json

    import reasoning_gym  # pyright: ignore[reportMissingTypeStubs]

    entry: dict[str, Any] = json.loads(gold)
    task: Any = cast("Any", reasoning_gym).create_dataset(rule.partition(":")[2], size=1, seed=0)
    tries = [answer, _plain(answer)]
    if any(float(task.score_answer(answer=text, entry=entry)) >= 1 - 1e-9 for text in tries):
        return True
    # Tasks compare texts; 12.0 for 12 or 1/2 for 2/4 are theirs to refuse only where the gold is no number. An answer that
    # is no number either says the problem again (4 - 1 - 7) rather than solve it.
    wanted = str(entry["answer"])
    return notation.is_number(wanted) and notation.is_number(answer) and same(wanted, answer)


def _verify(gold: str, answer: str) -> bool:
    import math_verify
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    library = cast("Any", math_verify)
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    sides: list[Any] = []
    for text in (gold, answer):
        # Bare LaTeX is found only between dollar signs. The time limit is the pool's: math-verify's own needs the
        # main thread's alarm.
        parsed = library.parse(f"${text}$", extraction_config=configs, parsing_timeout=None, raise_on_error=False)
        sides.append(
            parsed or library.parse(text, extraction_config=configs, parsing_timeout=None, raise_on_error=False)
        )
    if not all(sides):
        return False
    if (told := _same_by_digits(sides[0][0], sides[1][0])) is not None:
        return told
    return bool(
        library.verify(
            sides[0],
            sides[1],
            float_rounding=FLOAT_DIGITS,
            allow_set_relation_comp=True,
            timeout_seconds=None,
            raise_on_error=False,
        )
    )


def _same_by_digits(gold: Any, answer: Any) -> bool | None:
    """Whether two numbers are the same, where their leading digits tell; None where they do not, or are no such numbers.

    The library rounds to a number of decimals, by which all numbers next to zero are the same; and it does so on the way
    as well, by which a huge number times a tiny one is nothing.
    """
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return None
    one, other = gold.evalf(2 * FLOAT_DIGITS), answer.evalf(2 * FLOAT_DIGITS)
    if not (one.is_Float and other.is_Float and max(abs(one), abs(other)) > 0):
        return None
    apart, larger = abs(one - other), max(abs(one), abs(other))
    if larger < TINY:
        return bool(apart <= larger * 10.0**-FLOAT_DIGITS)
    # As many decimals as count where the numbers are smallest. Nothing follows where the digits themselves are in doubt.
    sure = min(one._prec, other._prec) >= EXACT_BITS
    return False if sure and apart > larger * 10.0**-FLOAT_DIGITS / TINY else None


def _plain(text: str) -> str:
    """An answer without LaTeX around it: what a task that compares texts expects."""
    text = notation.words(text.strip().strip("$"))
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = (
        text.replace("\\%", "%").replace("\\$", "").replace("\\cdot", "*").replace("\\times", "*").replace("\\ ", " ")
    )
    return notation.DIGIT_GROUPS.sub("", text).strip().rstrip(".")
