"""Holds the prompts. They are short on purpose: the target reads the judge's text once for every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from speclrm.runtime.protocols import StepPrompts

if TYPE_CHECKING:
    from speclrm.runtime.engine import Message
    from speclrm.runtime.protocols import Problem

INSTRUCTION = (
    "Solve the problem step by step. Separate the steps by blank lines, and keep each step short. "
    r"Put the final answer inside \boxed{}."
)
CHOICE_INSTRUCTION = (
    "Answer the question step by step. Separate the steps by blank lines, and keep each step short. "
    r"Put the letter of the right choice, and nothing else, inside \boxed{}."
)

_CLOSING = "\n\n**Final answer**\n\\boxed{"

STEP_PROMPTS = StepPrompts(
    # One digit for the last step, as in SpecReason (Pan et al. 2025, arXiv 2504.07891). The judge grades somebody
    # else's work: small models praise their own turn (measured: docs/scoring.md). Only the step's own
    # track and its own method come before it.
    judge="A student wrote the solution above. Grade its last step from 0 (nonsense) to 9 (correct). Be strict.",
    judge_reply="Grade: ",
    closing=_CLOSING,
)

JudgeLayout = Literal["auto", "turn", "inline"]
"""``turn``: the judge is asked in a turn of the conversation. ``inline``: a note in the open reasoning, directly after
the step. ``auto``: the better of the two (docs/scoring.md); with raw prompts the layout that belongs to them."""

AUTO_LAYOUT: Literal["turn", "inline"] = "turn"
INLINE_IDS_MAX = 16
"""The most ids of a note: a longer one costs as much as a turn."""
INLINE_PROMPTS = StepPrompts(
    judge="[Is the step above right? Grade 0-9]",  # the best of four notes: docs/scoring.md
    judge_reply=": ",
    closing=_CLOSING,
    raw=True,
    judge_ids_max=INLINE_IDS_MAX,
)

RAW_OPENING = "\n<think>"
"""Text between the prompt and the first step in SSR's layout."""
RAW_PROMPTS = StepPrompts(
    # The layout of SSR's code: the judge's request and an opened thought follow the step in the text itself.
    judge="\nJudge the last step alone: is it true, and does it follow from the steps before it? Style does not count. "
    "Give it a score from 0 to 9.\n<think>",
    judge_reply="I think the quality score is: ",
    closing=_CLOSING,
    raw=True,
)


def step_prompts(layout: JudgeLayout, *, raw: bool) -> StepPrompts:
    """Returns the texts around steps. ``raw``: whether the prompts are plain text in SSR's layout."""
    if raw:
        return RAW_PROMPTS
    return INLINE_PROMPTS if (AUTO_LAYOUT if layout == "auto" else layout) == "inline" else STEP_PROMPTS


def conversation(problem: Problem, hint: str, *, role: bool = False) -> tuple[Message, ...]:
    """Returns the turns before the first step: one user turn with the instruction, the method's hint or role, the problem."""
    label = "" if role else "Method to try: "
    parts = [_instruction(problem), f"{label}{hint}" if hint else "", f"Problem: {problem.text}"]
    if role:
        parts[:2] = [hint, _instruction(problem)]
    return ({"role": "user", "content": "\n\n".join(part for part in parts if part)},)


def raw_conversation(problem: Problem, hint: str, *, role: bool = False) -> tuple[Message, ...]:
    """Returns the same as plain text in SSR's layout: instruction, tips, problem. A missing hint is written as ``None`` there."""
    head = f"{hint}\n\n{_instruction(problem)}" if role else f"{_instruction(problem)}\n\nTips: {hint or None}"
    return ({"role": "user", "content": f"\n{head}\n\nProblem: {problem.text}\n"},)


def _instruction(problem: Problem) -> str:
    return CHOICE_INSTRUCTION if problem.grader == "choice" else INSTRUCTION
