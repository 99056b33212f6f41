"""Sizes and opens the engines of one invocation, real or simulated."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Protocol

from speclrm.app.known_costs import glance_at, kept_costs
from speclrm.app.progress import note
from speclrm.app.remote import probe_all, records, refuse_what_lacks, tokenizer_name
from speclrm.app.simulation import SimulatedEngines, check_target, model_names, simulated
from speclrm.evaluators.grading import Grader
from speclrm.runtime.cleanup import to_its_end
from speclrm.runtime.engines import mps
from speclrm.runtime.engines.http.address import is_remote
from speclrm.runtime.engines.restarting import restarting
from speclrm.runtime.engines.warm_up import of_each_kind
from speclrm.runtime.errors import EngineError, ModelError
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.machine.placement import Placement, by_slices, place
from speclrm.runtime.machine.sizing import check_room, engine_settings, read_facts
from speclrm.runtime.models import store
from speclrm.runtime.models.tokenizer_files import find_tokenizer, pull_tokenizer
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.tokens.prompts import judge_of, open_prompt, question_ids
from speclrm.strategies.methods import LONGEST_METHOD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.app.options import EngineOptions
    from speclrm.app.progress import Notify
    from speclrm.runtime.engine import Engine, EngineCosts, Request, Tokenizer
    from speclrm.runtime.engines.http.engine import HttpEngine
    from speclrm.runtime.machine.sizing import Work
    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.settings import EngineSettings
    from speclrm.strategies.family import Family

ENGINE_LOGS_KEPT = 20


class Engines(Protocol):
    """Engines that are not open yet. ``simulated``: they answer under virtual time."""

    @property
    def simulated(self) -> bool: ...

    @property
    def settings(self) -> Mapping[Role, EngineSettings]:
        """Settings by role, once sized; empty if engines have none."""
        ...

    @property
    def servers(self) -> Mapping[str, JsonValue]:
        """What is known of servers elsewhere, by role, once sized; for records."""
        ...

    async def size(self, strategy: Family, work: Work, problems: Sequence[Problem], notify: Notify) -> None:
        """Finds models and fits them to the work; nothing is loaded. Raises UsageError for what cannot be done."""
        ...

    async def open(self, stack: AsyncExitStack, notify: Notify) -> Components:
        """Starts the engines; the stack closes them. Raises EngineError."""
        ...

    async def tokenizers(self) -> Mapping[Role, Tokenizer]:
        """Loads tokenizers without an engine, for a replay. Raises ModelError if one is not here."""
        ...


MakeEngines = Callable[["EngineOptions", str, int], Engines]
"""Makes engines from options, the name of a dataset and a seed; the last two decide what simulated models answer."""


def make_engines(options: EngineOptions, dataset: str = "", seed: int = 0) -> Engines:
    """Returns the engines that the options name. Raises SettingsError if one is simulated and one is not."""
    if simulated(options):
        return SimulatedEngines(options, dataset, seed)
    return RealEngines(options)


def open_runtime(
    engines: Engines, strategy: Family, work: Work, problems: Sequence[Problem], notify: Notify
) -> Runtime:
    """Returns a runtime for ``async with`` on these engines. Raises on entry what ``size`` and ``open`` raise."""

    async def open_components(stack: AsyncExitStack) -> Components:
        await engines.size(strategy, work, problems, notify)
        return await engines.open(stack, notify)

    return Runtime(open_components)


class RealEngines:
    """vLLM's engines, each in processes of its own, and servers elsewhere, with graders beside them."""

    simulated = False

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._settings: dict[Role, EngineSettings] = {}
        self._tokenizers: dict[Role, Tokenizer] = {}
        self._warm_up: dict[Role, list[Request]] = {}
        self._mps = False
        self._auto = False
        self._remote: dict[Role, list[HttpEngine]] = {}

    @property
    def settings(self) -> Mapping[Role, EngineSettings]:
        return self._settings

    @property
    def servers(self) -> Mapping[str, JsonValue]:
        return records(self._remote)

    async def size(self, strategy: Family, work: Work, problems: Sequence[Problem], notify: Notify) -> None:
        options = self._options
        check_target(options)
        every = model_names(options)
        names = {role: name for role, name in every.items() if not is_remote(name)}
        self._auto = strategy.limits.speculate == "auto" and names.keys() == set(Role)
        elsewhere = {role: name for role, name in every.items() if is_remote(name)}
        machine = read_machine()
        placements = {role: placement(options, role) for role in names}
        taken = Counter(device for devices in place(machine, placements).values() for device in devices)
        both = [machine.gpus[device].id for device, engines in sorted(taken.items()) if engines > 1]
        self._mps, why = await asyncio.to_thread(mps.choose, options.share_gpu, both)
        if why:
            note(notify, why)
        extra = {Role.TARGET: options.target_args, Role.DRAFT: options.draft_args}
        weights = {role: extra[role].get("load_format") != "dummy" for role in names}
        for role, name in names.items():
            # Reports a wrong name before another model is downloaded.
            if store.find_local(name, weights=weights[role]) is None:
                check_room(machine, name, placements[role].size)
        paths = {role: await store.pull(name, notify, weights=weights[role]) for role, name in names.items()}
        folders = {role: await _tokenizer_folder(options, role, notify) for role in elsewhere}
        self._tokenizers = await _load({role: paths.get(role) or folders[role] for role in every})
        note_lost_templates(strategy, self._tokenizers, notify)
        work = with_prompts(work, strategy, problems, self._tokenizers)
        self._remote = await probe_all(options, elsewhere, self._tokenizers, notify)
        refuse_what_lacks(self._remote, strategy, work, drafts=Role.DRAFT in every)
        settings = engine_settings(
            machine,
            {role: read_facts(names[role], path) for role, path in paths.items()},
            work,
            placements=placements,
            kv_cache_bytes=None if options.kv_cache_gib is None else int(options.kv_cache_gib * (1 << 30)),
            gpu_share=options.gpu_memory_utilization,
        )
        self._settings = {role: one.model_copy(update={"extra": extra[role]}) for role, one in settings.items()}
        self._warm_up = {
            role: of_each_kind(
                role,
                strategy.limits,
                strategy.prompts,
                drafts=Role.DRAFT in every,
                seeded=getattr(options, "seed", 0) is not None,
            )
            for role in names
        }

    async def open(self, stack: AsyncExitStack, notify: Notify) -> Components:
        options = self._options
        notify("starting the graders", None, None)
        _quiet_tracker()
        grader = await stack.enter_async_context(Grader())
        engines: dict[Role, Engine | Sequence[Engine]] = dict(self._remote)
        for several in self._remote.values():
            for engine in several:
                stack.push_async_callback(engine.aclose)
        if self._settings:
            engines |= await self._start(stack, notify)
        return Components(engines, grader, slices=by_slices(self._settings), stall_limit_s=options.stall_timeout)

    async def _start(self, stack: AsyncExitStack, notify: Notify) -> dict[Role, list[Engine]]:
        """Starts the engines of this machine."""
        from speclrm.runtime.engines.vllm_nursery import Nursery
        from speclrm.runtime.engines.vllm_restart import Starter
        from speclrm.runtime.engines.vllm_start import start_engines

        options = self._options
        daemon = await self._daemon(stack, notify) if self._mps else None
        variables = daemon.environment if daemon is not None else None
        each = {
            _label(role, number): (role, settings)
            for role, one in self._settings.items()
            for number, settings in enumerate(one.each())
        }
        tokenizers = {label: self._tokenizers[role] for label, (role, _) in each.items()}
        warm_up = {label: self._warm_up.get(role, []) for label, (role, _) in each.items()}
        log_path = options.engine_log or _new_engine_log()
        nursery = Nursery()
        stack.callback(nursery.end)
        started = await start_engines(
            {label: settings for label, (_, settings) in each.items()},
            tokenizers,
            log_path=log_path,
            warm_up=warm_up,
            notify=lambda what: notify(what, None, None),
            variables=variables,
            nursery=nursery,
        )
        try:
            if daemon is not None:
                served = await self._served(daemon, {pid for one in started.values() for pid in one.processes}, notify)
                self._settings = {role: one.model_copy(update={"mps": served}) for role, one in self._settings.items()}
            kept = await self._costs({each[label][0]: one for label, one in reversed(started.items())}, notify)
        except BaseException:
            await to_its_end(asyncio.wait([asyncio.ensure_future(one.aclose()) for one in started.values()]))
            raise
        starter = Starter(log_path=log_path, notify=lambda what: None, variables=variables, nursery=nursery)
        engines: dict[Role, list[Engine]] = {}
        for label, engine in started.items():
            role, settings = each[label]
            engine.known_costs = kept.get(role)
            anew = starter.of(label, settings, tokenizers[label], warm_up[label], engine.known_costs)
            engines.setdefault(role, []).append(restarting(engine, anew, options.engine_restarts))
        several = [engine for them in engines.values() for engine in them]

        async def close() -> None:
            await asyncio.gather(*(engine.aclose() for engine in several))

        stack.push_async_callback(close)
        return engines

    async def _costs(self, engines: Mapping[Role, Engine], notify: Notify) -> dict[Role, EngineCosts]:
        """Returns what is known of the costs of these engines, one of each role; finds it out if ``auto`` will want to know."""
        target, draft, machine = self._options.target or "", self._options.draft or "", read_machine()
        settings = {role: one.each()[0] for role, one in self._settings.items()}
        kept = kept_costs(target, draft, machine, settings)
        if kept or not self._auto:
            return kept
        return await glance_at(target, draft, machine, engines, settings, notify)

    async def _daemon(self, stack: AsyncExitStack, notify: Notify) -> mps.Daemon | None:
        """Starts MPS before the engines; the stack ends it after them."""
        try:
            daemon = await asyncio.to_thread(mps.start)
        except EngineError as error:
            if self._options.share_gpu == "mps":
                raise
            note(notify, f"the engines share a GPU by time slices: {error}")
            return None
        stack.push_async_callback(asyncio.to_thread, daemon.end)
        return daemon

    async def _served(self, daemon: mps.Daemon, processes: set[int], notify: Notify) -> bool:
        """Whether MPS serves these engines, which it should."""
        try:
            await asyncio.to_thread(daemon.check, processes)
        except EngineError as error:
            if self._options.share_gpu == "mps":
                raise
            note(notify, f"the engines share a GPU by time slices: {error}")
            return False
        return True

    async def tokenizers(self) -> Mapping[Role, Tokenizer]:
        names = model_names(self._options)
        paths: dict[Role, Path] = {}
        for role, name in names.items():
            remote = is_remote(name)
            name = tokenizer_name(self._options, role) if remote else name
            path = find_tokenizer(name) if remote else store.find_local(name, weights=False)
            if path is None:
                raise ModelError(
                    f"The tokenizer of {name} is not here, and a replay needs it. `speclrm models pull {name}`."
                )
            paths[role] = path
        return await _load(paths)


def _label(role: Role, number: int) -> str:
    """Returns what a replica is called while it loads."""
    return role.value if number == 0 else f"{role.value} {number + 1}"


async def _tokenizer_folder(options: EngineOptions, role: Role, notify: Notify) -> Path:
    return await pull_tokenizer(tokenizer_name(options, role), notify, option=f"--{role.value}-tokenizer")


def placement(options: EngineOptions, role: Role) -> Placement:
    """Returns how the options place one engine. What they say of all engines counts if they say nothing of this one."""
    names = ("devices", "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "dtype", "replicas")
    one: dict[str, Any] = {name: getattr(options, f"{role.value}_{name}") for name in names}
    return Placement(
        devices=one["devices"],
        tensor_parallel=one["tensor_parallel_size"] or options.tensor_parallel_size,
        pipeline_parallel=one["pipeline_parallel_size"],
        share=one["gpu_memory_utilization"],
        dtype=one["dtype"] or options.dtype,
        replicas=one["replicas"],
    )


async def _load(paths: Mapping[Role, Path]) -> dict[Role, Tokenizer]:
    from speclrm.runtime.tokens.tokenizer import load_tokenizer

    return {role: await asyncio.to_thread(load_tokenizer, path) for role, path in paths.items()}


def note_lost_templates(strategy: Family, tokenizers: Mapping[Role, Tokenizer], notify: Notify) -> None:
    """Tells of each model without a chat template of its own: it is asked in a form that it was not trained on."""
    if strategy.recipe.prompt_style == "raw":
        return
    for role, tokenizer in tokenizers.items():
        lost = getattr(tokenizer, "lost_template", None)
        if lost is not None:
            note(notify, f"the {role.value} is spoken to in plain turns (User: ... Assistant: ...), because {lost}")


def with_prompts(
    work: Work, strategy: Family, problems: Sequence[Problem], tokenizers: Mapping[Role, Tokenizer]
) -> Work:
    """Returns the work with the longest prompt and suffix that the strategy makes of these problems."""
    target = tokenizers[Role.TARGET]
    prompts: list[int] = []
    questions: list[int] = []
    for problem in problems:
        plans = [*strategy.plan(problem, 0, 0).tracks]
        if (question := strategy.question(problem)) is not None:
            plans += strategy.plan(
                problem, 0, 0, LONGEST_METHOD
            ).tracks  # whatever the target chooses is no longer than this
            # The question stands alone: no budget of steps follows it, only the reply.
            questions.append(len(question_ids(target, question)) + question.max_tokens)
        prompts += [
            len(open_prompt(tokenizer, plan)) + len(tokenizer.encode_marked(plan.opening))
            for plan in plans
            for tokenizer in tokenizers.values()
        ]
    suffixes = [len(target.encode(strategy.prompts.closing)) + strategy.limits.closing_tokens]
    if Role.DRAFT in tokenizers and (judge := judge_of(target, strategy.prompts)) is not None:
        suffixes.append(len(judge.ids) + 1)
    fingerprints = {tokenizer.vocabulary.fingerprint for tokenizer in tokenizers.values()}
    return replace(
        work,
        prompt_tokens=max([work.prompt_tokens, *prompts]),
        suffix_tokens=max(suffixes),
        question_tokens=max([work.question_tokens, *questions]),
        same_tokenizer=len(fingerprints) == 1,
        likelihood=Role.DRAFT in tokenizers and strategy.prompts.scorer == "likelihood",
    )


def _quiet_tracker() -> None:
    """Starts Python's resource tracker in a form that cleans up without messages.

    Engines are killed if they do not end at once; the tracker then removes what they leave in shared memory, and its
    warning would appear under the results.
    """
    saved = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        if saved is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = saved


def _new_engine_log() -> Path:
    """Returns a log file of its own for each start; only the newest are kept."""
    folder = store.cache_dir() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("engines-*.log"))[: -ENGINE_LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return folder / f"engines-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"
