"""Keeps whether an engine works. One that failed gets no requests until it was asked and works again: a circuit breaker.

The pattern is Nygard's (Release It!, 2007): closed while all is well, open after a failure, and half open for one question.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import MayReturn
from speclrm.runtime.errors import EngineDeadError, told
from speclrm.runtime.events import EngineFailed, EngineRecovered

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.errors import EngineStalledError
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Role

CHECK_FIRST_S = 0.5
CHECK_MAX_S = 5.0
"""Seconds between a failure and the first question whether the engine works again, and between two questions at most. The wait
doubles with each failure that no token came after, so that an engine that only seems to work is left alone.
"""


class Health:
    """Of one engine. ``works``; ``error``: what it failed with last; ``since_s``: when either began."""

    def __init__(self, role: Role, engine: Engine, tell: Callable[[Event], None]) -> None:
        self._role = role
        self._engine = engine
        self._tell = tell
        self._asked_for = asyncio.Event()
        self._in_a_row = 0
        self.may_return = isinstance(engine, MayReturn)
        self.error: EngineDeadError | EngineStalledError | None = None
        self.since_s = float("-inf")
        self._requests = 0

    @property
    def works(self) -> bool:
        return self.error is None

    def progress(self) -> None:
        """Notes that a token came."""
        self._in_a_row = 0

    def fail(self, error: EngineDeadError | EngineStalledError, requests: int) -> None:
        """Notes that the engine failed. ``requests``: how many were in flight there."""
        self.error = error
        self.since_s = now_s()
        self._in_a_row += 1
        self._requests = requests
        self._asked_for.set()
        self._tell(self.failure())

    def failed(self) -> EngineDeadError | EngineStalledError:
        """Returns the error for one more request: each raises its own."""
        assert self.error is not None
        error = type(self.error)(*self.error.args)
        error.reason = self.error.reason
        return error

    def failure(self) -> EngineFailed:
        """Returns the event that says what is wrong."""
        assert self.error is not None
        return EngineFailed(
            engine=self._engine.name,
            error=told(self.error),
            role=self._role.value,
            reason=self.error.reason,
            requests=self._requests,
        )

    async def mend(self, returned: Callable[[], None]) -> None:
        """Asks the engine, after each failure, until it works again. Runs until cancelled."""
        engine = self._engine
        assert isinstance(engine, MayReturn)
        while True:
            await self._asked_for.wait()
            wait_s = min(CHECK_MAX_S, CHECK_FIRST_S * 2.0 ** min(10, self._in_a_row - 1))
            while True:
                await asyncio.sleep(wait_s)
                try:
                    await engine.check()
                    break
                except EngineDeadError:
                    wait_s = min(CHECK_MAX_S, 2 * wait_s)
            self._asked_for.clear()
            down_s = round(now_s() - self.since_s, 6)
            self.error, self.since_s = None, now_s()
            self._tell(EngineRecovered(engine=self._engine.name, down_s=down_s, role=self._role.value))
            returned()
