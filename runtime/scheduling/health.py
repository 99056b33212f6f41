"""Keeps whether an engine works. One that failed gets no requests until it works again: a circuit breaker.

An engine elsewhere is asked now and then whether it does; one of our own is started anew. The pattern is Nygard's (Release It!,
2007): closed while all is well, open after a failure, and half open for one question.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import MayReturn, Restartable
from speclrm.runtime.errors import EngineDeadError, EngineError, told
from speclrm.runtime.events import EngineFailed, EngineRecovered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

    from speclrm.runtime.engine import Engine
    from speclrm.runtime.errors import EngineStalledError
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Role

log = structlog.get_logger(__name__)

CHECK_FIRST_S = 0.5
CHECK_MAX_S = 5.0
"""Seconds between a failure and the first question whether the engine works again, and between two questions at most. The wait
doubles with each failure that no token came after, so that an engine that only seems to work is left alone.
"""

RESTART_FIRST_S = 1.0
RESTART_MAX_S = 60.0
"""Seconds before an engine is started anew, the first time and at most. The wait doubles with each start that no token came
after, as Kubernetes does it (CrashLoopBackOff: 10 s, doubled, 300 s at most). It is shorter here, since loading a model takes
20 s or more by itself: it only gives the machine time to free what a dead process held.
"""


class Health:
    """Of one engine. ``works``; ``error``: what it failed with last; ``since_s``: when either began.

    ``may_return``: it may work again. ``restarts``: how often in a row it is started anew; 0 for one that is asked.
    """

    def __init__(self, role: Role, engine: Engine, tell: Callable[[Event], None]) -> None:
        self._role = role
        self._engine = engine
        self._tell = tell
        self._asked_for = asyncio.Event()
        self._in_a_row = 0
        self._started_anew = 0
        self.restarts = engine.restarts if isinstance(engine, Restartable) else 0
        self.may_return = self.restarts > 0 or isinstance(engine, MayReturn)
        self.error: EngineDeadError | EngineStalledError | None = None
        self.since_s = float("-inf")
        self._requests = 0

    @property
    def works(self) -> bool:
        return self.error is None

    def progress(self) -> None:
        """Notes that a token came."""
        self._in_a_row = self._started_anew = 0

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
        """Brings the engine back after each failure, or gives it up. Runs until cancelled. ``returned`` is called either way."""
        engine = self._engine
        while self.may_return:
            await self._asked_for.wait()
            changed: Mapping[str, JsonValue] = {}
            if self.restarts and isinstance(engine, Restartable):
                try:
                    changed = await self._start_anew(engine)
                except EngineDeadError as error:
                    log.error("engine_given_up", engine=engine.name, restarts=self.restarts, error=told(error))
                    self.error, self.may_return = error, False
                    returned()
                    break
            elif isinstance(engine, MayReturn):
                await self._ask(engine)
            self._asked_for.clear()
            down_s = round(now_s() - self.since_s, 6)
            self.error, self.since_s = None, now_s()
            self._tell(EngineRecovered(engine=engine.name, down_s=down_s, role=self._role.value, changed=dict(changed)))
            returned()

    async def _ask(self, engine: MayReturn) -> None:
        """Asks until it works again."""
        wait_s = min(CHECK_MAX_S, CHECK_FIRST_S * 2.0 ** min(10, self._in_a_row - 1))
        while True:
            await asyncio.sleep(wait_s)
            try:
                await engine.check()
            except EngineDeadError:
                wait_s = min(CHECK_MAX_S, 2 * wait_s)
            else:
                return

    async def _start_anew(self, engine: Restartable) -> Mapping[str, JsonValue]:
        """Starts it until it works; returns its new settings. Raises EngineDeadError when that was in vain too often."""
        assert self.error is not None
        error: EngineError = self.error
        while self._started_anew < self.restarts:
            await asyncio.sleep(min(RESTART_MAX_S, RESTART_FIRST_S * 2.0 ** min(10, self._started_anew)))
            self._started_anew += 1
            try:
                return await engine.restart(error.reason)
            except Exception as failed:  # noqa: BLE001  # whatever goes wrong in a start, requests wait for its outcome
                error = failed if isinstance(failed, EngineError) else EngineError(told(failed))
                log.warning("engine_restart_failed", engine=self._engine.name, reason=error.reason, error=told(error))
        last = EngineDeadError(
            f"{str(error).rstrip('.')}. It was started anew {self.restarts} time{'' if self.restarts == 1 else 's'} in a row "
            "(--engine-restarts) and brought no token, so the run stops. `speclrm resume` continues it."
        )
        last.reason = error.reason
        raise last
