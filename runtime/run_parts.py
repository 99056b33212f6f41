"""Says what a run is given and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speclrm.runtime.scheduling.lanes import STALL_LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Equivalence, Problem, Role, Strategy
    from speclrm.runtime.replay.playback import Playback
    from speclrm.runtime.replay.recorded_run import Past
    from speclrm.runtime.state import SampleState


@dataclass(frozen=True, slots=True)
class Components:
    """The parts that a runtime works with. ``engines``: one of each role, or several with the same model.

    ``slices``: draft and target share a device by time slices, each at about half its speed while both work.
    ``stall_limit_s``: seconds without progress, or without any engine that works, after which requests are given up.
    """

    engines: Mapping[Role, Engine | Sequence[Engine]]
    equivalence: Equivalence
    slices: bool = False
    stall_limit_s: float = STALL_LIMIT_S


Began = Callable[[int], "tuple[Strategy, int | None]"]
"""The strategy and the seed of samples that began in an attempt."""


@dataclass(frozen=True, slots=True)
class Job:
    """A sample to run. ``playback``: its part of the trace, if it has one."""

    problem: Problem
    repeat: int
    strategy: Strategy
    seed: int | None
    playback: Playback | None = None


@dataclass(frozen=True, slots=True)
class Resumption:
    """The past of a run that continues. ``events``: the whole trace so far, from its beginning. ``overrides``: as in RunResumed.

    ``anew``: the run is a new one that begins with what the trace has.
    """

    past: Past
    began: Began
    events: Callable[[], Iterable[Event]] = tuple
    overrides: Mapping[str, tuple[JsonValue, JsonValue]] = field(
        default_factory=dict[str, "tuple[JsonValue, JsonValue]"]
    )
    anew: bool = False


@dataclass(frozen=True, slots=True)
class RunResult:
    """``samples``: in the order of problems, then repeats. ``directory``: None for a run kept in memory."""

    run: str
    samples: tuple[SampleState, ...]
    directory: Path | None
