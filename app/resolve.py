"""Resolves the options of one invocation, once: into a strategy, problems, a seed and engines."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speclrm.app import original_faults
from speclrm.app.engines import Engines, MakeEngines, make_engines, open_runtime
from speclrm.app.progress import Notify, note, quiet
from speclrm.app.settings_diff import SELECTED, UNRECORDED, digest
from speclrm.app.simulation import is_simulated_dataset, simulated_problems
from speclrm.app.thresholds import kept_threshold
from speclrm.evaluators.answers import find_answer, finished_answer
from speclrm.evaluators.benchmarks import canonical
from speclrm.evaluators.datasets import Columns, Selection, load, part_of, select
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.machine.sizing import Work
from speclrm.runtime.protocols import Role
from speclrm.runtime.trace.segments import check_compression
from speclrm.strategies import catalog

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from pydantic import JsonValue

    from speclrm.app.options import RunOptions
    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.runtime import Runtime
    from speclrm.strategies.family import Family


@dataclass(frozen=True, slots=True)
class Resolved:
    """All that an invocation comes to before anything is loaded. ``options``: with each name in its one form.

    ``selected``: the problems before ``--shard`` took its part.
    """

    options: RunOptions
    strategy: Family
    problems: Sequence[Problem]
    selected: Sequence[Problem]
    seed: int | None
    engines: Engines

    @property
    def samples(self) -> int:
        return len(self.problems) * self.options.repeats

    @property
    def work(self) -> Work:
        """What engines will be asked, but for the lengths that only tokenizers know."""
        recipe = self.strategy.recipe
        tracks = min(self.samples, self.options.concurrency) * recipe.tracks
        return Work(tracks, 0, recipe.token_budget, recipe.max_step_tokens, suffix_tokens=0)

    @property
    def config(self) -> dict[str, JsonValue]:
        """What ``run.json`` and the trace record: the options, with the whole recipe and a digest of the problems."""
        recipe: dict[str, JsonValue] = self.strategy.recipe.model_dump(mode="json")
        return {
            **self.options.model_dump(mode="json"),
            "strategy": self.strategy.name,
            "recipe": recipe,
            "problems": digest(self.problems),
            **({SELECTED: digest(self.selected)} if self.options.shard else {}),
        }

    def runtime(self, notify: Notify = quiet) -> Runtime:
        """Returns a runtime for ``async with``, its engines sized for as many samples at once as the options allow.

        Raises, on entry:
            UsageError: a model cannot be had, or the work does not fit this machine.
            EngineError: an engine did not start.
        """
        return open_runtime(self.engines, self.strategy, self.work, self.problems, notify)


@contextmanager
def resolved(
    options: RunOptions, notify: Notify = quiet, make: MakeEngines = make_engines
) -> Generator[Resolved, None, None]:
    """Returns the resolved options; inside the block the faults that they name are reproduced. Raises UsageError."""
    with original_faults.reproduced(options.reproduce_fault):
        yield resolve(options, notify, make)


def resolve(
    options: RunOptions, notify: Notify = quiet, make: MakeEngines = make_engines, *, world_seed: int | None = None
) -> Resolved:
    """Checks and resolves the options; nothing is loaded but the problems.

    ``world_seed``: of what simulated models say, where it is not the run's own.

    Raises:
        UsageError: something asked for cannot be done.
    """
    strategy = _strategy(options, notify)
    if options.compress_trace:
        check_compression()
    drawn = options.seed or 0
    selection = Selection(options.problem_ids, options.sample, options.limit)
    if is_simulated_dataset(options.dataset):
        dataset = options.dataset
        problems = select(dataset, simulated_problems(dataset, options, drawn), selection, drawn)
    else:
        dataset = canonical(options.dataset)
        problems = load(
            options.dataset,
            selection=selection,
            seed=drawn,
            data_dir=options.data_dir,
            columns=Columns(options.problem_column, options.answer_column, options.id_column),
            notify=lambda what: notify(what, None, None),
            note=lambda what: note(notify, what),
        )
    named: dict[str, Any] = {"strategy": strategy.name, "dataset": dataset}
    if Role.DRAFT not in strategy.roles:
        named["draft"] = None  # nothing would ever ask it
    options = options.model_copy(update=named)
    engines = make(options, dataset, drawn if world_seed is None else world_seed)
    part = problems if options.shard is None else part_of(problems, options.shard)
    return Resolved(options, strategy, part, problems, options.seed, engines)


def make_strategy(name: str, **options: Any) -> Family:
    """Returns a strategy by name with options of its recipe. Raises SettingsError."""
    return catalog.strategy(name, find_answer, finished_answer, **options)


def recorded_strategy(
    config: Mapping[str, JsonValue], settings: Mapping[str, Any] | None = None
) -> tuple[Family, int | None]:
    """Returns the strategy and the seed of a run's configuration, with some options of the recipe set anew."""
    recipe, seed = config.get("recipe"), config.get("seed")
    given: dict[str, Any] = {**UNRECORDED, **recipe} if isinstance(recipe, dict) else {}
    chosen = make_strategy(str(config["strategy"]), **{**given, **(settings or {})})
    return chosen, seed if isinstance(seed, int) else None


def _strategy(options: RunOptions, notify: Notify) -> Family:
    given = dict(options.recipe)
    kept = given.get("score_threshold") == "auto"
    if kept:
        del given["score_threshold"]
    chosen = make_strategy(options.strategy, **given)
    for role in (Role.TARGET, Role.DRAFT):
        if role in chosen.roles and getattr(options, role.value) is None:
            raise SettingsError(
                f"Strategy {options.strategy} needs a {role.value} model. Give --{role.value} MODEL; `speclrm models list` "
                "shows models that are known by a short name."
            )
    if not kept or Role.DRAFT not in chosen.roles:
        return chosen
    recipe = chosen.recipe
    found = kept_threshold(
        options.target or "", options.draft or "", scorer=recipe.scorer, judge=recipe.judge, method=recipe.score_method
    )
    if found.threshold is None:
        note(notify, f"no step is drafted: {found.said}. To draft all the same, give --score-threshold a number.")
        return make_strategy(options.strategy, **{**given, "speculate": "never"})
    note(notify, f"score threshold {found.threshold:.3f}: {found.said}")
    return make_strategy(options.strategy, **given, score_threshold=found.threshold)
