"""What a run is asked to go on with, held against what it was; and what playing it again came to."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import TYPE_CHECKING, Any, NoReturn, cast

from pydantic import ValidationError

from speclrm.options import Options, RecipeOptions, RunOptions
from speclrm.runtime.errors import ResumeError, SettingsError
from speclrm.strategies.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.evaluators.metrics import SampleRow
    from speclrm.runtime.past import Past
    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.replay import Playback

HARMLESS = frozenset(
    {
        "output_dir",
        "engine_log",
        "compress_trace",
        "concurrency",
        "kv_cache_gib",
        "gpu_memory_utilization",
        "tensor_parallel_size",
    }
)
"""Settings that change when and where things are computed, not what."""
_BY_PROBLEMS = frozenset({"data_dir", "problem_ids", "sample", "limit", "problem_column", "answer_column", "id_column"})
"""Settings that say which problems: compared are the problems themselves."""

WEIGHTS = "weights"
"""Where a run's configuration has a digest of each role's weights. Older runs and built-in simulated engines have none."""

Changes = dict[str, "tuple[JsonValue, JsonValue]"]


def mark(problems: Sequence[Problem]) -> dict[str, JsonValue]:
    """What two lists of problems have in common only if they are the same."""
    state = hashlib.sha256()
    for problem in problems:
        state.update(json.dumps([problem.id, problem.text, problem.answer, problem.grader, problem.details]).encode())
    return {"count": len(problems), "digest": state.hexdigest()[:16]}


def recorded_options(config: Mapping[str, JsonValue]) -> RunOptions:
    """The options that a run was started with. Raises ResumeError where its configuration does not say."""
    known = {name: value for name, value in config.items() if name in RunOptions.model_fields}
    recipe = config.get("recipe")
    if known.get("score_threshold") == "auto" and isinstance(recipe, dict):
        known["score_threshold"] = recipe.get("score_threshold")  # what was kept then
    try:
        return RunOptions.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        raise ResumeError(
            f"The run's configuration does not say how it was started ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}): it was not made by `speclrm run`, and goes on only from the program that made it."
        ) from None


def changes(recorded: Mapping[str, JsonValue], asked: Mapping[str, JsonValue]) -> Changes:
    """The settings that differ and would make results incomparable, each with its old and new value."""
    old, new = _compared(recorded), _compared(asked)
    defaults = {
        name: cast("JsonValue", field.get_default(call_default_factory=True))
        for name, field in RunOptions.model_fields.items()
    }
    found: Changes = {}
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name, defaults.get(name)), new.get(name, defaults.get(name))
        if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
            found[name] = one, other
    return found


def _compared(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    left_out = HARMLESS | _BY_PROBLEMS | set(RecipeOptions.model_fields) | {"recipe", "continued_from", WEIGHTS}
    flat = {name: value for name, value in config.items() if name not in left_out}
    recipe = config.get("recipe")
    return flat | (recipe if isinstance(recipe, dict) else {})


def changed_weights(recorded: Mapping[str, JsonValue], asked: Mapping[str, JsonValue]) -> Changes:
    """The same for the models' weights, which their names do not pin, as far as both configurations tell of them."""
    old, new = recorded.get(WEIGHTS), asked.get(WEIGHTS)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {}
    return {f"{role}'s weights": (old[role], new[role]) for role in old if role in new and old[role] != new[role]}


def refuse(directory: Path, found: Changes, *, asked: bool) -> NoReturn:
    """Raises ResumeError. ``asked``: the settings were given anew, and not taken from what is recorded."""
    advice = (
        "Give what is recorded (`speclrm resume` does), or --override, which goes on and records the change."
        if asked
        else "Put back what was there then, or start a new run. `speclrm run ... --resume --override` with the run's settings "
        "goes on all the same and records the change."
    )
    raise ResumeError(
        f"{directory}: the run was started otherwise, and its results would not be comparable.\n{table(found)}\n{advice}"
    )


def table(found: Changes) -> str:
    """The changes as lines of three columns."""
    rows = [("setting", "recorded", "asked")]
    rows += [(name, _cell(old), _cell(new)) for name, (old, new) in found.items()]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(value: JsonValue) -> str:
    if isinstance(value, dict) and set(value) == {"count", "digest"}:
        return f"{value['count']} ({value['digest']})"
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)


def read_settings(items: Iterable[str]) -> dict[str, Any]:
    """``key=value`` pairs of a recipe; a value is JSON where it can be read so, else text. Raises SettingsError."""
    found: dict[str, Any] = {}
    for item in items:
        name, given, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not given or name not in Recipe.model_fields:
            close = difflib.get_close_matches(name, Recipe.model_fields, n=1)
            meant = f" Did you mean {close[0]}?" if close else f" There are: {', '.join(sorted(Recipe.model_fields))}."
            raise SettingsError(f"--set {item!r}: write KEY=VALUE with a key of the recipe.{meant}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


class Changed(Options):
    """One difference. ``track``, ``step``: None where it belongs to none."""

    problem: str
    repeat: int
    track: str | None
    step: int | None
    recorded: str
    now: str


class Ended(Options):
    """A track whose next request the record does not have. ``steps``: how many it had committed by then."""

    problem: str
    repeat: int
    track: str
    step: int
    operation: str
    why: str
    steps: int


class ReplayReport(Options):
    """What playing a run again came to.

    ``events``: of samples, in the record; ``repeated``: how many of them came again. ``results``: rows of finished
    samples, ``same``: how many are equal to the recorded ones byte for byte. ``votes``: of samples that did not come to
    their end, the answers so far with the tracks that gave them.
    """

    run: str
    status: str
    changed: dict[str, Any]
    events: int
    repeated: int
    recorded_results: int
    results: int
    same: int
    differences: tuple[Changed, ...]
    stops: tuple[Ended, ...]
    votes: dict[str, tuple[tuple[str, tuple[str, ...]], ...]]

    @property
    def equal(self) -> bool:
        """Whether it was the same run again. Where the record itself ends, tracks end without a difference."""
        return not self.differences and self.same == self.recorded_results == self.results


def report(
    playback: Playback, past: Past, before: Sequence[SampleRow], now: Any, changed: Mapping[str, Any]
) -> ReplayReport:
    """``before``: the recorded rows; ``now``: the fold of the events that came this time."""
    rows = {(row.problem, row.repeat): row.model_dump_json() for row in before}
    again = now.summary().samples
    unfinished = {
        f"{problem}/{repeat}": tuple((state.tracks[names[0]].answer or "", names) for names in state.classes)
        for (problem, repeat), state in now.states.items()
        if state.outcome is None and state.classes
    }
    return ReplayReport(
        run=past.run,
        status=past.status,
        changed=dict(changed),
        events=sum(len(sample.events) for sample in past.samples.values()),
        repeated=sum(len(sample.repeated) for sample in playback.samples.values()),
        recorded_results=len(before),
        results=len(again),
        same=sum(rows.get((row.problem, row.repeat)) == row.model_dump_json() for row in again),
        differences=tuple(
            Changed(
                problem=one.problem,
                repeat=one.repeat,
                track=one.track,
                step=one.step,
                recorded=one.recorded,
                now=one.now,
            )
            for one in playback.differences
        ),
        stops=tuple(
            Ended(
                problem=stop.problem,
                repeat=stop.repeat,
                track=stop.track,
                step=stop.step,
                operation=stop.operation,
                why=stop.why,
                steps=_steps(now, stop.problem, stop.repeat, stop.track),
            )
            for stop in playback.stops.values()
        ),
        votes=unfinished,
    )


def _steps(now: Any, problem: str, repeat: int, track: str) -> int:
    state = now.states.get((problem, repeat))
    return len(state.tracks[track].steps) if state is not None and track in state.tracks else 0
