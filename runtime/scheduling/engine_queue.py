"""Is the queue before one engine: decides how many requests the engine gets, and which one is next.

The engine's own statistics decide how many: what it would only queue is better queued here, where a more urgent one can pass
and one that became useless never reaches it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from speclrm.runtime.clock import now_s
from speclrm.runtime.scheduling.health import Health
from speclrm.runtime.scheduling.waiting import Waiting
from speclrm.runtime.scheduling.watchdog import Watchdog, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.engine import Engine, EngineStats
    from speclrm.runtime.errors import EngineDeadError, EngineStalledError
    from speclrm.runtime.events import Event
    from speclrm.runtime.protocols import Role
    from speclrm.runtime.scheduling.overlap import Overlap
    from speclrm.runtime.scheduling.requests import RequestState

SURPLUS = 1.25
"""Requests in flight for each sequence that the engine runs. The surplus waits inside the engine, so that a free place
is filled at the very next iteration instead of one round trip later."""

CAP_INTERVAL_S = 0.25
"""Seconds between two adaptations of the number of requests in flight to the engine's statistics."""

RESERVE_SHARE = 8
"""One in this many of an engine's sequences, and at least one, is kept free of writes while there are short requests, if the
engine cannot run all that come."""

RESERVE_S = 10.0
"""Seconds for which that lasts after the last short request, at least; at most twice as long."""


@dataclass(frozen=True, slots=True)
class LaneStats:
    """A snapshot of one engine's queue. Seconds and counts run from the start.

    ``waited_s``: the sum of all waits for a place. ``busy_s``: seconds in which at least one operation was in flight.
    ``idle_ready_s``: seconds in which none was, though a track was ready to send one: the runtime's own delay.
    ``engine``: the engine's own statistics; ``batch``: requests in one of its iterations, on average.
    """

    waiting: int
    in_flight: int
    in_flight_max: int
    operations: int
    waited_s: float
    busy_s: float
    idle_ready_s: float
    engine: EngineStats

    @property
    def batch(self) -> float:
        return self.engine.batched / self.engine.iterations if self.engine.iterations else 0.0


class Slot(Watched, Protocol):
    """An operation in an engine."""

    def lose(self, error: EngineDeadError | EngineStalledError) -> None:
        """Ends its wait for the next delta with this error, or the next one if nobody waits now."""
        ...


class EngineQueue:
    """The queue before one engine."""

    def __init__(
        self,
        role: Role,
        engine: Engine,
        in_flight_max: int | None,
        stall_limit_s: float,
        overlap: Overlap,
        tell: Callable[[Event], None],
    ) -> None:
        self.engine = engine
        self.health = Health(role, engine, tell)
        self._role = role
        self._overlap = overlap
        self.in_flight = 0
        self._fixed = in_flight_max is not None
        self._bound = in_flight_max or max(1, int(engine.max_num_seqs * SURPLUS))
        self._cap = self._bound
        self._cap_s = -CAP_INTERVAL_S
        self.stall_limit_s = stall_limit_s
        # Lasting requests wait in a queue of their own: others pass them into places that they may not have.
        self._waiting: dict[bool, Waiting[asyncio.Future[bool]]] = {lasting: Waiting() for lasting in (False, True)}
        # Their numbers by themselves: every request asks whether anybody waits.
        self._short_waits, self._lasting_waits = self._waiting[False].numbers, self._waiting[True].numbers
        self._lasting = 0
        self._short, self._all = _Peak(), _Peak()
        self._later: asyncio.TimerHandle | None = None
        # In the order of their starts: what ends all of them does so in the same order each time.
        self.slots: dict[Slot, None] = {}
        self.watchdog = Watchdog(role, engine, self.slots, stall_limit_s, tell)
        self._busy_s = 0.0
        self._since_s = 0.0
        self._idle_ready_s = 0.0
        self.waited_s = 0.0
        self.operations = 0

    def resize(self) -> None:
        """Adapts the bound of requests in flight to what the engine can run, which may be less than before."""
        if not self._fixed:
            self._bound = max(1, int(self.engine.max_num_seqs * SURPLUS))
            self._cap = min(self._cap, self._bound)

    def stats(self) -> LaneStats:
        return LaneStats(
            waiting=sum(map(len, self._waiting.values())),
            in_flight=self.in_flight,
            in_flight_max=self._cap,
            operations=self.operations,
            waited_s=self.waited_s,
            busy_s=self._busy_s + (now_s() - self._since_s if self.in_flight else 0.0),
            idle_ready_s=self._idle_ready_s,
            engine=self.engine.stats(),
        )

    def fail(self, error: EngineDeadError | EngineStalledError) -> None:
        """Notes that the engine failed; those that wait for a place look for another engine, and so do those in it if it is
        to be started anew.
        """
        self.health.fail(error, self.in_flight + 1)
        if self.health.restarts:
            for slot in self.slots:
                slot.lose(self.health.failed())
        for waiting in self._waiting.values():
            while waiting:
                turn = waiting.pop()
                if not turn.done():
                    turn.set_result(False)

    def enter_at_once(self, request_state: RequestState, now: float) -> bool:
        """Takes a place if there is one and nobody else is to have it. Returns whether it did; if not, ``wait`` for one."""
        if now - self._cap_s >= CAP_INTERVAL_S:
            self._adapt(now)
        lasting = request_state.lasting
        self._all.see(self._present + 1, now)
        if not lasting:
            self._short.see(self.in_flight - self._lasting + len(self._short_waits) + 1, now)
        if not self._has_room(lasting) or ((self._short_waits or self._lasting_waits) and self._next() is not None):
            return False
        if not self.in_flight and request_state.ready_s is not None:
            self._idle_ready_s += now - max(request_state.ready_s, self._since_s)
        self._take_place(lasting)
        return True

    async def wait(self, request_state: RequestState) -> bool:
        """Waits for a place. Returns whether it has one: False if the engine failed meanwhile."""
        waiting = self._waiting[request_state.lasting]
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        number = waiting.push(request_state.request.priority, turn)
        self._serve()  # the bound may have grown while others waited
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                if turn.result():
                    self.leave(request_state)  # the place was given at the same moment: pass it on
            else:
                waiting.remove(number)
            raise

    def wants_place(self, request_state: RequestState) -> bool:
        if not request_state.lasting:
            return False
        short = self.in_flight - self._lasting
        if short:  # a request in the engine may still wait there, behind writes that fill it
            return self._lasting >= self.engine.max_num_seqs
        waiting = self._waiting[False]
        return bool(waiting) and waiting.first()[0] < request_state.request.priority

    def _has_room(self, lasting: bool) -> bool:
        """Returns whether one more request may go to the engine. Lasting ones leave a few of its sequences to others, while
        there are any and it cannot run all at once.
        """
        if not lasting or self.in_flight >= self._cap:
            return self.in_flight < self._cap
        now, runs = now_s(), min(self._cap, self.engine.max_num_seqs)
        short = self._short.value(now)
        if not short or max(self._present, self._all.value(now)) <= runs:
            return True
        return self._lasting < max(1, runs - min(short, max(1, runs // RESERVE_SHARE)))

    def _adapt(self, now: float) -> None:
        """Adapts the bound of requests in flight to what the engine runs and what it only queues."""
        self._cap_s = now
        if self._fixed:
            return
        stats = self.engine.stats()
        wanted = max(1, int(stats.running * SURPLUS) + 1)
        if stats.running and stats.waiting > stats.running * (SURPLUS - 1) + 1:
            self._cap = min(self._bound, wanted)
        elif not stats.waiting:
            self._cap = min(self._bound, max(self._cap, wanted) + 1 + self._cap // 8)

    def _take_place(self, lasting: bool) -> None:
        if not self.in_flight:
            self._since_s = now_s()
            self._overlap.change(self._role, 1)
        self.in_flight += 1
        self._lasting += lasting

    def leave(self, request_state: RequestState) -> None:
        self.in_flight -= 1
        self._lasting -= request_state.lasting
        if not self.in_flight:
            now = now_s()
            self._busy_s += now - self._since_s
            self._since_s = now  # from now on: it counts idle time
            self._overlap.change(self._role, -1)
        if self._short_waits or self._lasting_waits:
            self._serve()

    @property
    def _present(self) -> int:
        """Requests in the engine and before it."""
        return self.in_flight + len(self._short_waits) + len(self._lasting_waits)

    def _serve(self) -> None:
        """Gives free places to the most urgent requests."""
        while (lasting := self._next()) is not None:
            turn = self._waiting[lasting].pop()
            if not turn.done():
                self._take_place(lasting)
                turn.set_result(True)
        if self._later is None and self._lasting_waits and self.in_flight < self._cap:
            # Remaining free places are kept for others. If none come, no event would say so: check again later.
            self._later = asyncio.get_running_loop().call_later(RESERVE_S, self._serve_later)

    def _serve_later(self) -> None:
        self._later = None
        self._serve()

    def _next(self) -> bool | None:
        """Returns the kind of request that gets the next place; None if there is no place or nobody waits for it."""
        if self.in_flight >= self._cap:
            return None
        if not self._lasting_waits or not self._has_room(True):
            return False if self._short_waits else None
        return not self._short_waits or self._waiting[True].first()[0] < self._waiting[False].first()[0]


class _Peak:
    """Tracks the maximum of a number over the last ``RESERVE_S`` seconds and up to twice as many."""

    def __init__(self) -> None:
        self._since_s = float("-inf")
        self._now = self._before = 0

    def see(self, number: int, now: float) -> None:
        if now - self._since_s >= RESERVE_S:
            self._turn(now)
        if number > self._now:
            self._now = number

    def value(self, now: float) -> int:
        self._turn(now)
        return max(self._now, self._before)

    def _turn(self, now: float) -> None:
        passed_s = now - self._since_s
        if passed_s >= RESERVE_S:
            self._before = self._now if passed_s < 2 * RESERVE_S else 0
            self._now = 0
            self._since_s = now
