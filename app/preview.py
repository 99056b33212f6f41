"""Shows what a run would do: its settings and first prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speclrm.app.engines import note_lost_templates, with_prompts
from speclrm.app.options import Options, RunOptions
from speclrm.app.progress import Notify, quiet
from speclrm.app.remote import tokenizer_name
from speclrm.app.resolve import resolved
from speclrm.app.runs import new_folder
from speclrm.runtime.engines.http.address import is_remote
from speclrm.runtime.engines.simulated.presets import is_simulated
from speclrm.runtime.machine.sizing import check_context, read_facts
from speclrm.runtime.models import store
from speclrm.runtime.models.tokenizer_files import find_tokenizer
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.prompts import judge_suffix, open_prompt, question_ids
from speclrm.runtime.trace import run_directory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speclrm.app.resolve import Resolved
    from speclrm.runtime.engine import Message, Tokenizer
    from speclrm.runtime.machine.sizing import ModelFacts


class Preview(Options):
    """Describes a run without doing it, for ``--dry-run``. ``problems``: how many; ``prompts``: the first ones, by purpose."""

    options: RunOptions
    recipe: dict[str, Any]
    problems: int
    prompts: dict[str, str]


def preview(options: RunOptions, notify: Notify = quiet) -> Preview:
    """Shows what a run would do, from settings, problems and tokenizers alone: nothing is loaded, downloaded or written.

    Prompts appear as the models' chat templates make them if a model is here, and as plain turns if it is not.

    Raises:
        UsageError: as ``run`` would.
    """
    with resolved(options, notify) as found:
        run_directory.check_free(found.options.output_dir or new_folder(found.options.strategy))
        local = _local(found)
        tokenizers = {role: tokenizer for role, (tokenizer, _) in local.items()}
        note_lost_templates(found.strategy, tokenizers, notify)
        if local.keys() == found.strategy.roles:
            work = with_prompts(found.work, found.strategy, found.problems, tokenizers)
            check_context({role: facts for role, (_, facts) in local.items() if facts is not None}, work)
        return Preview(
            options=found.options,
            recipe=found.strategy.recipe.model_dump(mode="json"),
            problems=len(found.problems),
            prompts=_prompts(found, tokenizers),
        )


def _local(found: Resolved) -> dict[Role, tuple[Tokenizer, ModelFacts | None]]:
    """Returns the tokenizer of each model that is here, with its facts unless a server has it."""
    from speclrm.runtime.tokens.tokenizer import load_tokenizer

    there: dict[Role, tuple[Tokenizer, ModelFacts | None]] = {}
    for role in found.strategy.roles:
        name = getattr(found.options, role.value)
        if is_remote(name):
            if (path := find_tokenizer(tokenizer_name(found.options, role))) is not None:
                there[role] = load_tokenizer(path), None
            continue
        path = None if is_simulated(name) else store.find_local(name, weights=False)
        if path is not None:
            there[role] = load_tokenizer(path), read_facts(name, path)
    return there


def _prompts(found: Resolved, tokenizers: Mapping[Role, Tokenizer]) -> dict[str, str]:
    chosen = found.strategy
    first = found.problems[0]
    question = chosen.question(first)
    plan = chosen.plan(first, 0, found.seed).tracks[0]
    prompts: dict[str, str] = {}
    for role in sorted(chosen.roles):
        tokenizer = tokenizers.get(role)
        if question is not None and role is Role.TARGET:
            prompts["target, choosing methods"] = (
                tokenizer.decode(question_ids(tokenizer, question))
                if tokenizer
                else _plain(question.messages) + question.reply
            )
        prompts[f"{role.value}, first step of track {plan.track}"] = (
            tokenizer.decode(open_prompt(tokenizer, plan)) if tokenizer else _plain(plan.messages)
        )
        if role is Role.TARGET and Role.DRAFT in chosen.roles and chosen.prompts.scorer == "judge":
            words = chosen.prompts
            prompts["target, behind each drafted step"] = (
                tokenizer.decode(judge_suffix(tokenizer, words).ids) if tokenizer else words.judge + words.judge_reply
            )
    return prompts


def _plain(messages: Sequence[Message]) -> str:
    return "\n".join(f"[{message['role']}] {message['content']}" for message in messages)
