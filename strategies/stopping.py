"""Decides when a track ends, and when one track's end makes the others useless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

Fast = Literal[1, 2]
"""SSR's early stops: 1, the first answer ends the sample; 2, two equal answers of two tracks do."""

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.events import FinishReason
    from speclrm.runtime.state import SampleState, TrackState


def end_of_track(
    state: TrackState, *, token_budget: int, step_limit: int | None, answer: Callable[[str, str], str | None]
) -> FinishReason | None:
    """Returns why the track ends after its last step, None if it continues. ``answer``: returns the answer by which a step, given
    with the one before it, ends its track.

    The order matters if several rules hold: an answer counts even in a step that also uses up the budget.
    ``step_limit`` is off by default: a track needs about 150 steps for a hard problem, and a cap derived from the
    budget by the longest step would end it at 16.
    """
    steps, count = state.steps, len(state.steps)
    if not count:
        return None
    last = steps[count - 1]
    before = steps[count - 2].text if count > 1 else ""
    if answer(last.text, before) is not None:
        return "answer"
    if last.ended:
        return "end_of_text"
    if count > 1 and last.text.strip() == before.strip():
        return "repeated"
    if state.tokens >= token_budget:
        return "budget"
    if step_limit is not None and count >= step_limit:
        return "step_limit"
    return None


def enough(sample: SampleState, fast: Fast | None) -> bool:
    """Returns whether the answers so far end the sample. None waits for every track."""
    if fast is None:
        return False
    return any(len(set(members)) >= fast for members in sample.classes)
