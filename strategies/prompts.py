"""What the models are told. Short on purpose: the judge's text is read by the target once for every step."""

from __future__ import annotations

from speclrm.runtime.protocols import Message, StepPrompts

INSTRUCTION = (
    "Solve the problem step by step. Separate the steps by blank lines, and keep each step short. "
    r"Put the final answer inside \boxed{}."
)

STEP_PROMPTS = StepPrompts(
    # The question is that of SpecReason (Pan et al. 2025, arXiv 2504.07891): is the last step right and useful; style
    # does not count. Only the step's own track and its own method stand before it.
    judge=(
        "Judge only the last reasoning step above: is it factually correct and logically valid, and does it bring the "
        "solution forward? Ignore style and length. Reply with one digit from 0 (useless or wrong) to 9 (flawless)."
    ),
    judge_reply="I think the quality score is: ",
    closing="**Final answer**\n\\boxed{",
)


def conversation(problem: str, hint: str) -> tuple[Message, ...]:
    """The turns before the first step: one user turn with the instruction, the method's hint, and the problem."""
    parts = [INSTRUCTION, f"Method to try: {hint}" if hint else "", f"Problem: {problem}"]
    return ({"role": "user", "content": "\n\n".join(part for part in parts if part)},)
