"""What a grader's worker process does. Imported there alone, so that sympy never enters the main process."""

from __future__ import annotations

import contextlib
import logging
import re
import resource
import signal
from typing import Any, cast

WORKER_MEMORY_BYTES = 4 << 30

_DIGIT_GROUPS = re.compile(r"(?<=\d)(?:,|\\,|\{,\}|~|\\ )(?=\d{3}(?!\d))")
_CHOICE = re.compile(r"\(?([A-Za-z])\)?\.?")
_PERCENT = re.compile(r"\\?%\s*$")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°")


def prepare_worker() -> None:
    """The owner decides when we end, and nobody's answer may eat the machine's memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off, as meant
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))


def same(gold: str, answer: str) -> bool:
    """Whether the answer equals the gold answer as mathematics."""
    gold, answer = _clean(gold), _clean(answer)
    if gold == answer:
        return True
    letters = [_CHOICE.fullmatch(_words(text)) for text in (gold, answer)]
    if letters[0] is not None:
        return letters[1] is not None and letters[0][1].upper() == letters[1][1].upper()
    return _verify(gold, answer) or _words(gold).casefold() == _words(answer).casefold() != ""


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
    # Tasks compare texts; 12.0 for 12 or 1/2 for 2/4 are theirs to refuse only where the gold is no number.
    wanted = str(entry["answer"])
    return bool(re.fullmatch(r"[-+]?[\d.,/]+", wanted)) and same(wanted, answer)


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
    return bool(library.verify(sides[0], sides[1], timeout_seconds=None, raise_on_error=False))


def _clean(text: str) -> str:
    text = text.strip().strip("$").strip()
    text = text.replace("−", "-").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\!", "").replace("\\$", "").removeprefix("$")
    text = _DEGREES.sub("", text)
    text = _DIGIT_GROUPS.sub("", text) if "(" not in text and "{" not in text.replace("{,}", "") else text
    return _PERCENT.sub("", text).strip().rstrip(".")


def _words(text: str) -> str:
    """The text inside LaTeX's text commands and parentheses, without space around."""
    return re.sub(r"\s+", " ", _WORDS.sub(r"\1", text)).strip()


def _plain(text: str) -> str:
    """An answer without LaTeX around it: what a task that compares texts expects."""
    text = _words(text.strip().strip("$"))
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = (
        text.replace("\\%", "%").replace("\\$", "").replace("\\cdot", "*").replace("\\times", "*").replace("\\ ", " ")
    )
    return _DIGIT_GROUPS.sub("", text).strip().rstrip(".")
