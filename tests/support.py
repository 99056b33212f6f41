"""What many tests need: a runtime on scripted engines under virtual time, and exact answers."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.run_parts import Components
from speclrm.runtime.runtime import Runtime
from speclrm.strategies.catalog import strategy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path
    from types import FrameType

    from pydantic import JsonValue

    from speclrm.runtime.engine import Engine, Request
    from speclrm.runtime.events import Event, Outcome
    from speclrm.runtime.protocols import Equivalence, Strategy
    from speclrm.runtime.scheduling.admission import Admission, Reservation
    from speclrm.runtime.state import SampleState

T = TypeVar("T")

PROBLEM = Problem("p", "What is two and two?", "4")


def boxed(text: str) -> str | None:
    """The last boxed answer without nested braces: enough for scripted texts."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return found[-1] if found else None


def work(call: Callable[[], object]) -> int:
    """How many lines of Python the call runs through, each as often as it does: how much it does, on any machine."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


class ExactAnswers:
    """Answers are equal when their texts are."""

    async def same(self, one: str, other: str) -> bool:
        return one == other

    async def grade(self, answer: str, problem: Problem) -> Outcome:
        return "correct" if answer == problem.answer else "wrong"


class Collector:
    """A sink that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def room(self) -> None:
        pass

    async def aclose(self) -> None:
        self.closed = True

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Played:
    """What a scripted run left behind."""

    samples: tuple[SampleState, ...] = ()
    collector: Collector = field(default_factory=Collector)
    draft: ScriptedEngine | None = None
    target: ScriptedEngine | None = None

    @property
    def sample(self) -> SampleState:
        return self.samples[0]


def make_strategy(name: str, **options: object) -> Strategy:
    """Strategies that speculate do so on every step, unless told otherwise."""
    return strategy(name, boxed, **{"speculate": "always", **options})


def parts(
    engines: Mapping[Role, Engine | Sequence[Engine]], equivalence: Equivalence | None = None
) -> Callable[[AsyncExitStack], Awaitable[Components]]:
    async def open_components(stack: AsyncExitStack) -> Components:
        return Components(engines, equivalence or ExactAnswers())

    return open_components


def play(
    chosen: Strategy,
    *,
    target: Callable[[Request, str], Reply],
    draft: Callable[[Request, str], Reply] | None = None,
    problems: Sequence[Problem] = (PROBLEM,),
    repeats: int = 1,
    seed: int | None = 0,
    concurrency: int = 16,
    directory: Path | None = None,
    in_flight_max: int | None = None,
    engines: Mapping[Role, ScriptedEngine] | None = None,
    config: Mapping[str, JsonValue] | None = None,
) -> Played:
    """Runs the strategy on scripted engines under virtual time."""
    if engines is None:
        engines = {Role.TARGET: ScriptedEngine(target, name="target")}
        if draft is not None:
            engines = {**engines, Role.DRAFT: ScriptedEngine(draft, name="draft")}
    played = Played(draft=engines.get(Role.DRAFT), target=engines[Role.TARGET])

    async def main() -> None:
        async with Runtime(parts(engines), in_flight_max=in_flight_max) as runtime:
            result = await runtime.run(
                problems,
                chosen,
                repeats=repeats,
                seed=seed,
                concurrency=concurrency,
                directory=directory,
                config=config,
                sinks=[played.collector],
            )
            played.samples = result.samples

    run_virtual(main())
    return played


async def enter(admission: Admission, order: int, tokens: Mapping[Role, int]) -> Reservation:
    """A reservation, once there is room for it."""
    reservation = admission.claim(order, tokens)
    await admission.admit(reservation)
    return reservation


def operation(request: Request) -> tuple[str, str, int, str]:
    """Problem, track, step and kind of a request."""
    problem, _, track, step, kind = request.id.rsplit("/", 4)
    return problem, track, int(step), kind.partition(".")[0]
