"""Says which settings make runs comparable, and compares those of two runs."""

from __future__ import annotations

import hashlib
import json
from shlex import quote
from typing import TYPE_CHECKING, Any, NoReturn, cast

from pydantic import ValidationError

from speclrm.app.options import RUN_DECLARED, RunOptions
from speclrm.runtime.errors import ResumeError
from speclrm.strategies.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.runtime.protocols import Problem
    from speclrm.strategies.option import Effect

EFFECTS: dict[str, Effect] = {
    "strategy": "method",
    "recipe": "method",
    **{name: one.option.effect for name, one in RUN_DECLARED.items() if name in RunOptions.model_fields},
}
"""What each setting of a run changes. Resuming refuses changes of all but ``place`` (the problems themselves stand for
``problems``); an evaluation takes runs together whose ``task`` and ``method`` are equal, and sets side by side those whose
``task`` is."""

WEIGHTS = "weights"
"""Where a run's configuration has a digest of each role's weights. Older runs and built-in simulated engines have none."""

MODELS = "models"
"""Where it has the facts of each role's model. Older runs have none."""

MODEL_FACTS = {"tensors": "weights", "preset": "weights", "tokenizer": "tokenizer", "chat_template": "chat template"}
"""Those of them that two comparable runs have in common, with their names for people."""

SELECTED = "selected"
"""Where the configuration of a shard has the digest of all problems of which it runs a part."""

MERGED = "merged"
"""Where the configuration of a merged run has those of its shards."""

FACTS = (
    WEIGHTS,
    MODELS,
    SELECTED,
    MERGED,
    "data",
    "engines",
    "servers",
    "devices",
    "driver",
    "reproducibility",
    "continued_from",
    "continued_otherwise",
)
"""What a configuration says beside the settings: what they came to, and on what."""

UNRECORDED: dict[str, JsonValue] = {"ties": "first"}
"""Options of a recipe that older runs do not record, with what those runs did."""

Changes = dict[str, "tuple[JsonValue, JsonValue]"]


def having(*effects: Effect) -> tuple[str, ...]:
    """Returns the settings with these effects."""
    return tuple(name for name, effect in EFFECTS.items() if effect in effects)


def key(config: Mapping[str, JsonValue], *effects: Effect) -> str:
    """Returns a key that is equal for runs whose settings with these effects are equal. A missing setting has its default."""
    defaults = _defaults()
    values: dict[str, Any] = {}
    for name in having(*effects):
        value = config.get(name)
        values[name] = defaults.get(name) if value is None else value
    if "recipe" in values:
        values["recipe"] = recipe(config)
    return json.dumps(values, sort_keys=True)


def recipe(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The options of a run's strategy, those that are not recorded as older runs had them, or at their defaults."""
    recorded = config.get("recipe")
    return _recipe_defaults() | UNRECORDED | (recorded if isinstance(recorded, dict) else {})


def differing(one: Mapping[str, JsonValue], other: Mapping[str, JsonValue], *effects: Effect) -> Changes:
    """The settings with these effects that differ, the recipe left out, each with its two values."""
    defaults = _defaults()
    found: Changes = {}
    for name in having(*effects):
        values = [config.get(name) for config in (one, other)]
        old, new = (defaults.get(name) if value is None else value for value in values)
        if name != "recipe" and json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            found[name] = old, new
    return found


def same_model(one: Mapping[str, JsonValue], other: Mapping[str, JsonValue], role: str) -> bool:
    """Whether all that is known of a role's models is equal, and something is, whatever they are called."""
    facts: list[dict[str, JsonValue]] = []
    for config in (one, other):
        known = _by_role(config, MODELS).get(role)
        facts.append({name: known[name] for name in MODEL_FACTS if name in known} if isinstance(known, dict) else {})
    return bool(facts[0]) and facts[0] == facts[1]


def digest(problems: Sequence[Problem]) -> dict[str, JsonValue]:
    """Returns a digest of the problems: equal for equal lists only."""
    state = hashlib.sha256()
    for problem in problems:
        state.update(json.dumps([problem.id, problem.text, problem.answer, problem.grader, problem.details]).encode())
    return {"count": len(problems), "digest": state.hexdigest()[:16]}


def recorded_options(config: Mapping[str, JsonValue]) -> RunOptions:
    """Returns the options that a run was started with. Raises ResumeError if its configuration does not say."""
    known = {name: value for name, value in config.items() if name in RunOptions.model_fields}
    try:
        return RunOptions.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        raise ResumeError(
            f"The run's configuration does not say how it was started ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}): it was not made by `speclrm run`, and goes on only from the program that made it."
        ) from None


def changes(recorded: Mapping[str, JsonValue], asked: Mapping[str, JsonValue]) -> Changes:
    """Returns the settings that differ and would make results incomparable, each with its old and new value."""
    old, new = _compared(recorded), _compared(asked)
    defaults = _defaults() | _recipe_defaults()
    found: Changes = {}
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name, defaults.get(name)), new.get(name, defaults.get(name))
        if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
            found[name] = one, other
    return found


def _compared(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    # Runs of earlier versions have the recipe's options a second time, as they were given.
    left_out = {*having("place", "problems"), *Recipe.model_fields, "recipe", *FACTS}
    flat = {name: value for name, value in config.items() if name not in left_out}
    recipe = config.get("recipe")
    return flat | (UNRECORDED | recipe if isinstance(recipe, dict) else {})


def _defaults() -> dict[str, JsonValue]:
    return {
        name: cast("JsonValue", field.get_default(call_default_factory=False))
        for name, field in RunOptions.model_fields.items()
        if not field.is_required()
    }


def _recipe_defaults() -> dict[str, JsonValue]:
    return Recipe().model_dump(mode="json")


def changed_models(recorded: Mapping[str, JsonValue], asked: Mapping[str, JsonValue]) -> Changes:
    """Returns the differences in what the models' names do not pin, as far as both configurations tell of it."""
    found: Changes = {}
    old, new = _by_role(recorded, MODELS), _by_role(asked, MODELS)
    for role in [role for role in old if role in new]:
        one, other = old[role], new[role]
        if not isinstance(one, dict) or not isinstance(other, dict):
            continue
        for name, called in MODEL_FACTS.items():
            if name in one and name in other and one[name] != other[name]:
                found[f"{role}'s {called}"] = _short(one[name]), _short(other[name])
    old, new = _by_role(recorded, WEIGHTS), _by_role(asked, WEIGHTS)
    for role in [role for role in old if role in new and old[role] != new[role]]:
        if not any(name.startswith(f"{role}'s ") for name in found):  # what has changed of it is told above
            found[f"{role}'s weights"] = old[role], new[role]
    return found


def _by_role(config: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _short(digest: JsonValue) -> JsonValue:
    return "none" if digest is None else digest[:16] if isinstance(digest, str) else digest


def refuse(directory: Path, found: Changes, *, asked: bool, begun: str | None = None) -> NoReturn:
    """Raises ResumeError.

    ``asked``: the settings were given anew, and not taken from what is recorded. ``begun``: what no option allows, if that
    has changed, too.
    """
    command = f"speclrm resume {quote(str(directory))}"
    advice = (
        f"Give what is recorded (`{command}` does), or --override, which goes on and records the change."
        if asked
        else f"Put back what was there then, or start a new run. `{command} --override` goes on all the same "
        "and records the change."
    )
    if begun is not None:
        advice = f"Put back what was there then, or start a new run. {begun}: no option goes on with that."
    raise ResumeError(
        f"{directory}: the run was started otherwise, and its results would not be comparable.\n{table(found)}\n{advice}"
    )


def refuse_models(directory: Path, found: Changes) -> NoReturn:
    """Raises ResumeError: a run would go on in another folder with models that its beginning is not of."""
    raise ResumeError(
        f"{directory}: the record is of other models, and the new run would be made by both.\n{table(found)}\nPut back what "
        "was there then, or add --override, which goes on and records the change."
    )


def table(found: Changes, head: tuple[str, str, str] = ("setting", "recorded", "asked")) -> str:
    """Returns the changes as lines of three columns."""
    rows = [head]
    rows += [(name, _cell(old), _cell(new)) for name, (old, new) in found.items()]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(value: JsonValue) -> str:
    if isinstance(value, dict) and set(value) == {"count", "digest"}:
        return f"{value['count']} ({value['digest']})"
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
