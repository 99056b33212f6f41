"""Builds a track's prompt, the question before it, and the judge's question after a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.errors import ModelError, TurnNotShownError
from speclrm.runtime.tokens.context import Context

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speclrm.runtime.engine import Tokenizer
    from speclrm.runtime.protocols import Question, Role, StepPrompts, TrackPlan


def open_prompt(tokenizer: Tokenizer, plan: TrackPlan) -> list[int]:
    """Returns what a model sees before the first step: the conversation, and an open think mark if the model has one.

    Templates of some reasoning models open the mark themselves, and some close it, too; then nothing is added. A raw
    plan is its text alone.
    """
    if plan.raw:
        return tokenizer.begin(plan.messages[0]["content"])
    ids = tokenizer.render(plan.messages)
    context = Context(tokenizer, ids)
    vocabulary = tokenizer.vocabulary
    if vocabulary.think_open is not None and vocabulary.think_close is not None and not context.thinking:
        if _closed_thinking(tokenizer, ids, plan.messages[-1]["content"]):
            return ids
        ids = [*ids, vocabulary.think_open, *tokenizer.encode("\n")]
    return ids


def _closed_thinking(tokenizer: Tokenizer, ids: Sequence[int], last: str) -> bool:
    """Returns whether the template closes a thought behind the last turn: it was written for answers without one.

    What stands before that turn's end may well speak of the marks: some templates explain them.
    """
    mark = tokenizer.vocabulary.think_close
    return mark is not None and tokenizer.decode([mark]) in tokenizer.decode(ids).rpartition(last.strip())[2]


def question_ids(tokenizer: Tokenizer, question: Question) -> list[int]:
    """Returns the question with its answer opened. A model that thinks is shown empty, closed thoughts."""
    reply = tokenizer.encode(question.reply)
    if question.raw:
        return [*tokenizer.begin(question.messages[0]["content"], question.opening), *reply]
    ids = tokenizer.render(question.messages)
    vocabulary = tokenizer.vocabulary
    if (
        vocabulary.think_open is not None
        and vocabulary.think_close is not None
        and not _closed_thinking(tokenizer, ids, question.messages[-1]["content"])
    ):
        opened = [] if Context(tokenizer, ids).thinking else [vocabulary.think_open]
        ids = [*ids, *opened, *tokenizer.encode("\n"), vocabulary.think_close, *tokenizer.encode("\n\n")]
    return [*ids, *reply]


@dataclass(frozen=True, slots=True)
class JudgeSuffix:
    """The ids that follow a step when the target is asked to score it: ``ids``, then one of the ten ``digit_ids``."""

    ids: tuple[int, ...]
    digit_ids: tuple[int, ...]


_USER = "Question"


_ASSISTANT = "Reply"


def judge_suffix(tokenizer: Tokenizer, prompts: StepPrompts) -> JudgeSuffix:
    """Returns the judge's turn: it ends the assistant's turn, asks, and opens the reply, of which a digit is next.

    A raw judge has no turn: its text follows the step.

    Raises:
        ModelError: the model's tokenizer has no single ids for the ten digits, it needs more ids for a judge of a limited
            length, or its chat template allows no user turn after one of the assistant.
    """
    turn = tokenizer.encode_marked(prompts.judge) if prompts.raw else _turn(tokenizer, prompts)
    suffix = _digits(tokenizer, turn, prompts)
    if prompts.judge_ids_max is not None and len(suffix.ids) > prompts.judge_ids_max:
        raise ModelError(
            f"The target's tokenizer writes the inline judge in {len(suffix.ids)} tokens, and it may have "
            f"{prompts.judge_ids_max}: it is there to be short. Use --judge turn with this model."
        )
    return suffix


def judge_of(tokenizer: Tokenizer, prompts: StepPrompts) -> JudgeSuffix | None:
    """Returns the judge's suffix, None if steps are scored without a judge. Raises ModelError."""
    return judge_suffix(tokenizer, prompts) if prompts.scorer == "judge" else None


def _turn(tokenizer: Tokenizer, prompts: StepPrompts) -> list[int]:
    refused = ModelError(
        "The target's chat template does not show a question after a reply, so it cannot be asked to judge "
        "steps. Choose an instruction-tuned or reasoning model as the target, or --prompt-style raw."
    )
    try:
        before = tokenizer.render(
            [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}], continue_final=True
        )
        whole = tokenizer.render(
            [
                {"role": "user", "content": _USER},
                {"role": "assistant", "content": _ASSISTANT},
                {"role": "user", "content": prompts.judge},
            ]
        )
    except TurnNotShownError:
        raise refused from None
    if whole[: len(before)] == before:
        return whole[len(before) :]
    head, found, tail = tokenizer.decode(whole).rpartition(_ASSISTANT)
    if not found or prompts.judge not in tail or _USER not in head:
        raise refused
    return tokenizer.encode_marked(tail)


def _digits(tokenizer: Tokenizer, turn: Sequence[int], prompts: StepPrompts) -> JudgeSuffix:
    for reply in (prompts.judge_reply, prompts.judge_reply.rstrip()):
        opened = tokenizer.encode(reply)
        space = prompts.judge_reply[len(reply) :]
        digits = [tokenizer.encode(f"{reply}{space}{digit}") for digit in range(10)]
        if all(ids[:-1] == opened for ids in digits):
            return JudgeSuffix((*turn, *opened), tuple(ids[-1] for ids in digits))
    raise ModelError(
        "The target's tokenizer does not write each digit 0-9 as one token after the judge's opening words, so its "
        "scores cannot be read. Choose another target model."
    )


def prompt_ids(tokenizers: Mapping[Role, Tokenizer], plan: TrackPlan) -> dict[Role, list[int]]:
    """Returns what each model sees before the first step of a track."""
    return {role: open_prompt(tokenizer, plan) for role, tokenizer in tokenizers.items()}
