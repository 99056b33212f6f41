"""SpecLRM: step-level speculative reasoning with a draft and a target model, on one event loop.

    async with speclrm.Runtime(target="qwen2.5-coder-0.5b-instruct", draft="smollm2-135m-instruct") as runtime:
        sample = await runtime.solve(speclrm.Problem("p1", "What is 12 * 13?"), speclrm.strategy("speculative"))

Names are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speclrm.api import RunOptions, RunReport, Runtime, resume, run, solve, strategy
    from speclrm.evaluators.answers import find_answer, finished_answer
    from speclrm.runtime.clock import run_virtual
    from speclrm.runtime.engine import Engine
    from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
    from speclrm.runtime.errors import SpecLRMError
    from speclrm.runtime.events import Event, FinishReason
    from speclrm.runtime.protocols import Equivalence, Problem, Role, Sink, Strategy, Track
    from speclrm.strategies.family import Family
    from speclrm.strategies.recipe import Recipe

_HOMES = {
    "Engine": "runtime.engine",
    "Equivalence": "runtime.protocols",
    "Event": "runtime.events",
    "Family": "strategies.family",
    "FinishReason": "runtime.events",
    "Problem": "runtime.protocols",
    "Recipe": "strategies.recipe",
    "Role": "runtime.protocols",
    "RunOptions": "api",
    "RunReport": "api",
    "Runtime": "api",
    "ScriptedEngine": "runtime.engines.scripted",
    "Sink": "runtime.protocols",
    "SpecLRMError": "runtime.errors",
    "Strategy": "runtime.protocols",
    "Track": "runtime.protocols",
    "by_step": "runtime.engines.scripted",
    "find_answer": "evaluators.answers",
    "finished_answer": "evaluators.answers",
    "resume": "api",
    "run": "api",
    "run_virtual": "runtime.clock",
    "solve": "api",
    "strategy": "api",
}

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "Equivalence",
    "Event",
    "Family",
    "FinishReason",
    "Problem",
    "Recipe",
    "Role",
    "RunOptions",
    "RunReport",
    "Runtime",
    "ScriptedEngine",
    "Sink",
    "SpecLRMError",
    "Strategy",
    "Track",
    "by_step",
    "find_answer",
    "finished_answer",
    "resume",
    "run",
    "run_virtual",
    "solve",
    "strategy",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
