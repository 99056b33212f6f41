"""Finishes clean-ups in spite of further cancellations."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = structlog.get_logger(__name__)

CLEAN_UP_LIMIT_S = 60.0
"""Seconds that one clean-up may take. Each of its parts has a far shorter limit; this is the last resort."""


class Leaving:
    """Keeps tasks that are ending, and that nobody asks about any more, until they are done."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def add(self, task: asyncio.Task[Any], *, cancel: bool = True) -> None:
        """Takes a task over and cancels it, unless told to let it end by itself. May be called again with the same task."""
        if task in self._tasks:
            return
        if cancel:
            task.cancel()
        self._tasks.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks the error as seen: nobody waits for the task

    async def gone(self) -> None:
        """Waits until all of them are done, in spite of any cancellation."""
        if self._tasks:
            await to_its_end(asyncio.wait(tuple(self._tasks)))


class OrderedTaskGroup(asyncio.TaskGroup):
    """A task group that cancels its tasks in the order in which they began: the order of their last events is then the same
    each time. A plain one goes through a set, in the order of addresses. ``before``: is called before it cancels them.
    """

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._before = before
        self._in_order: dict[asyncio.Task[Any], None] = {}

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = super().create_task(coro, **options)
        self._in_order[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._in_order.pop(task, None)

    def _abort(self) -> None:
        self._aborting = True
        self._before()
        for task in tuple(self._in_order):
            if not task.done():
                task.cancel()


async def to_its_end(clean_up: Coroutine[Any, Any, Any], *, limit_s: float = CLEAN_UP_LIMIT_S) -> None:
    """Awaits a clean-up in a task of its own, however often the caller is cancelled meanwhile.

    At the end it raises the clean-up's error, or else the cancellation that arrived. A clean-up that is not done after
    ``limit_s`` is cancelled, and that is logged.
    """
    task = asyncio.ensure_future(clean_up)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            _, late = await asyncio.wait({task}, timeout=max(0.0, deadline - loop.time()))
        except asyncio.CancelledError as error:
            cancelled = error
            continue
        if late:
            log.error("clean_up_stuck", seconds=limit_s, what=repr(task.get_coro()))
            task.cancel()
            break
    if task.done() and not task.cancelled():
        task.result()
    if cancelled is not None:
        raise cancelled
