from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import PROBLEM, make_strategy, parts

from speclrm.runtime.clock import run_virtual
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.events import TrackFinished
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_sinks import ERRORS_MIN, STREAM_EVENTS_MAX, ErrorGuard, Tap
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.trace.bus import EventBus

if TYPE_CHECKING:
    from speclrm.runtime.events import Event

FAILED = TrackFinished(problem="p", repeat=0, track="t", reason="error", answer=None, tokens=0, error="x")


class Plain:
    """A sink of a caller, who knows only the protocol."""

    def __init__(self) -> None:
        self.asked = 0

    def emit(self, event: Event) -> None:
        pass

    async def room(self) -> None:
        self.asked += 1

    async def aclose(self) -> None:
        pass


class Coincidence(Plain):
    """Its method has nothing to do with the property of the runtime's own sinks."""

    def has_room(self) -> bool:
        return False


@pytest.mark.parametrize("sink", [Plain(), Coincidence()])
def test_the_room_of_a_callers_sink_is_awaited_before_each_request(sink: Plain) -> None:
    async def main() -> None:
        engines = {Role.TARGET: ScriptedEngine(by_step(["One.\n\n", "Two.\n\n", "So \\boxed{4}."]))}
        async with Runtime(parts(engines)) as runtime:
            await runtime.run([PROBLEM], make_strategy("parallel", tracks=1), required=[sink])

    run_virtual(main())
    assert sink.asked >= 3


def test_sinks_of_the_runtime_say_whether_they_have_room() -> None:
    async def main() -> None:
        guard, tap = ErrorGuard(), Tap()
        bus = EventBus([guard, tap])
        assert bus.has_room()
        for _ in range(ERRORS_MIN):
            assert guard.has_room
            guard.emit(FAILED)
        assert not bus.has_room()
        for _ in range(STREAM_EVENTS_MAX):
            assert tap.has_room
            tap.emit(FAILED)
        assert not tap.has_room
        assert not EventBus([ErrorGuard(), Plain()]).has_room()

    run_virtual(main())
