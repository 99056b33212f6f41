"""Judges answers in a grader's worker process. Imported there alone, so that sympy never enters the main process."""

from __future__ import annotations

import contextlib
import re
from typing import Any, cast

from speclrm.evaluators import notation

_OPTIONS = "ABCDEFGHJ"
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
    """Returns the verdict by a rule: ``math``, or that of a task."""
    return same(gold, answer) if rule == "math" else by_task(rule, gold, answer)


def same(gold: str, answer: str) -> bool:
    """Returns whether the answer equals the gold answer as mathematics."""
    from speclrm.evaluators import comparing

    gold, answer = (notation.numbers(notation.plain_names(notation.in_latex(text))) for text in (gold, answer))
    if gold == answer:
        return True
    gold, answer = notation.one_greek(notation.repeating(gold), notation.repeating(answer))
    gold, answer = notation.one_binomial(gold, answer)
    dots = notation.with_dots(gold), notation.with_dots(answer)
    if any(dots):
        return dots[0] == dots[1]  # what the dots stand for is no expression: a parser drops them
    if notation.is_letter(gold) and (named := notation.choice(answer)) is not None:
        letter = notation.words(gold).strip("()[]. ")
        # Options are named in either case; a letter of mathematics is another where it is large.
        return named == letter.upper() and (named in _OPTIONS or letter in notation.words(answer))
    if (read := notation.optioned(gold, answer)) is not None:
        gold, answer = read
    if notation.several_options(gold, answer):
        return True
    bases = notation.in_base(gold), notation.in_base(answer)
    if any(bases):
        return bases[0] == bases[1]
    return comparing.same(gold, answer)


def by_choice(letter: str, options: str, answer: str) -> bool:
    """Returns whether the answer is the option's letter, or the words of the option itself.

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
    """Returns the verdict of a reasoning-gym task on an answer, as written or stripped of LaTeX. Partial credit is none.

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
    # is no number either, and does not end in one behind an equals sign, says the problem again (4 - 1 - 7) rather than solve it.
    wanted, said = str(entry["answer"]), notation.clean(answer).rpartition("=")[2]
    return notation.is_number(wanted) and notation.is_number(said) and same(wanted, answer)


def _plain(text: str) -> str:
    """Returns an answer without LaTeX around it: what a task that compares texts expects."""
    text = notation.words(text.strip().strip("$"))
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = (
        text.replace("\\%", "%").replace("\\$", "").replace("\\cdot", "*").replace("\\times", "*").replace("\\ ", " ")
    )
    return notation.DIGIT_GROUPS.sub("", text).strip().rstrip(".")
