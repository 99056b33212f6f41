"""What the models are told. Short on purpose: the judge's text is read by the target once for every step."""

from __future__ import annotations

from speclrm.runtime.protocols import Message, StepPrompts

INSTRUCTION = (
    "Solve the problem step by step. Separate the steps by blank lines, and keep each step short. "
    r"Put the final answer inside \boxed{}."
)

STEP_PROMPTS = StepPrompts(
    # One digit for the last step, as in SpecReason (Pan et al. 2025, arXiv 2504.07891). Asked as a grader of somebody
    # else's work: small models praise what stands in their own turn (measured: docs/scoring.md). Only the step's own
    # track and its own method stand before it.
    judge="A student wrote the solution above. Grade its last step from 0 (nonsense) to 9 (correct). Be strict.",
    judge_reply="Grade: ",
    closing="\n\n**Final answer**\n\\boxed{",
)


def conversation(problem: str, hint: str) -> tuple[Message, ...]:
    """The turns before the first step: one user turn with the instruction, the method's hint, and the problem."""
    parts = [INSTRUCTION, f"Method to try: {hint}" if hint else "", f"Problem: {problem}"]
    return ({"role": "user", "content": "\n\n".join(part for part in parts if part)},)
