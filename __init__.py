"""SpecLRM: step-level speculative reasoning with a draft and a target model, on one event loop.

    async with speclrm.Runtime(target="qwen2.5-coder-0.5b-instruct", draft="smollm2-135m-instruct") as runtime:
        sample = await runtime.solve(speclrm.Problem("p1", "What is 12 * 13?"), speclrm.strategy("speculative"))

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speclrm.api import RunOptions, RunReport, Runtime, run, solve, strategy
    from speclrm.runtime.engines.scripted import ScriptedEngine
    from speclrm.runtime.errors import SpecLRMError
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Engine, Equivalence, Problem, Role, Sink, Strategy, Track

_HOMES = {
    "Engine": "runtime.protocols",
    "Equivalence": "runtime.protocols",
    "Event": "runtime.events",
    "Problem": "runtime.protocols",
    "Role": "runtime.protocols",
    "RunOptions": "api",
    "RunReport": "api",
    "Runtime": "api",
    "ScriptedEngine": "runtime.engines.scripted",
    "Sink": "runtime.protocols",
    "SpecLRMError": "runtime.errors",
    "Strategy": "runtime.protocols",
    "Track": "runtime.protocols",
    "run": "api",
    "solve": "api",
    "strategy": "api",
}

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "Equivalence",
    "Event",
    "Problem",
    "Role",
    "RunOptions",
    "RunReport",
    "Runtime",
    "ScriptedEngine",
    "Sink",
    "SpecLRMError",
    "Strategy",
    "Track",
    "run",
    "solve",
    "strategy",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
