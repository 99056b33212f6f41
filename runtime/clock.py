"""Tells the time, and provides an event loop with virtual time: hours pass in milliseconds, and a wait on nothing fails."""

from __future__ import annotations

import asyncio
import selectors
from asyncio import get_running_loop
from collections import deque
from math import inf, nextafter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

T = TypeVar("T")

EXECUTOR_LIMIT_S = 60.0
"""Real seconds that a call in another thread may take before virtual time gives up on it."""


def now_s() -> float:
    """Returns seconds on the running loop's clock; only differences mean anything."""
    return get_running_loop().time()


def clock() -> Callable[[], float]:
    """Returns ``now_s`` of the running loop, for those who ask it often: to find the loop takes three times as long as to
    read its clock.
    """
    return get_running_loop().time


class _JumpSelector(selectors.DefaultSelector):
    """Never sleeps: instead of waiting for a timer it moves the loop's clock there."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.held and timeout != 0:
            # A thread works for us in real time: hold the clock until it returns.
            ready = super().select(EXECUTOR_LIMIT_S)
            if not ready:
                raise RuntimeError(f"a call in another thread took more than {EXECUTOR_LIMIT_S:.0f} real seconds")
            return ready
        ready = super().select(0)
        if ready or (timeout != 0 and self._loop.tell_idle()):
            return ready
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        self._loop.advance(max(timeout, 0.0))
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer.

    Timers fire in order without waiting. Calls in other threads (files) hold the clock until they return, and their
    results arrive in the order of the calls, so a run is repeatable. Raises RuntimeError when every task waits and no
    timer is set. Sockets and subprocesses are not supported: their time is not virtual.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._out: deque[tuple[asyncio.Future[Any], asyncio.Future[Any]]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        super().__init__(_JumpSelector(self))

    @property
    def held(self) -> bool:
        """Whether a call in another thread is still running."""
        return bool(self._out)

    def time(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Moves the clock; only the selector calls this."""
        # A wait below the clock's resolution moves it too, or a loop that waits for it would never see it pass.
        self._now_s = self._now_s + seconds if seconds <= 0 else max(self._now_s + seconds, nextafter(self._now_s, inf))

    async def idle(self) -> None:
        """Returns once nothing can happen any more unless time moves."""
        waiter: asyncio.Future[None] = self.create_future()
        self._idle.append(waiter)
        await waiter

    def tell_idle(self) -> bool:
        """Wakes the first task that waits for idleness; only the selector calls this."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False

    def run_in_executor(  # type: ignore[override]  # a plain method in the stubs of some versions
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        inner: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        outer: asyncio.Future[Any] = self.create_future()
        self._out.append((inner, outer))
        inner.add_done_callback(lambda _: self._deliver())
        return outer

    def _deliver(self) -> None:
        while self._out and self._out[0][0].done():
            inner, outer = self._out.popleft()
            if inner.cancelled():
                outer.cancel()
            elif error := inner.exception():
                if not outer.cancelled():
                    outer.set_exception(error)
            elif not outer.cancelled():
                outer.set_result(inner.result())

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # the base's name
        # The base class waits for a helper thread without a timer, which is a deadlock under a jumping clock.
        executor: Executor | None = getattr(self, "_default_executor", None)
        if executor is not None:
            executor.shutdown(wait=True)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end under virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
