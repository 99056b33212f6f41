"""Runs tracks in lock-step: a barrier around each, as in the original experiments, for comparison with free-running tracks."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

    from speclrm.runtime.protocols import Score, Step, Track


class Barrier:
    """Opens when all running tracks of a sample wait at it."""

    def __init__(self) -> None:
        self._tracks = 0
        self._standing: list[asyncio.Future[None]] = []

    @contextmanager
    def member(self) -> Generator[None]:
        """Counts one track as running for the duration of the block."""
        self._tracks += 1
        try:
            yield
        finally:
            self._tracks -= 1
            self._open()

    async def wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._standing.append(turn)
        self._open()
        try:
            await turn
        finally:
            if turn in self._standing:
                self._standing.remove(turn)

    def _open(self) -> None:
        if len(self._standing) >= self._tracks:
            standing, self._standing = self._standing, []
            for turn in standing:
                if not turn.done():
                    turn.set_result(None)


class LockStepTrack:
    """A track that waits for the others of its sample after each draft, after each score, and before it commits a
    drafted or rewritten step.
    """

    def __init__(self, track: Track, barrier: Barrier) -> None:
        self._inner = track
        self._barrier = barrier

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def draft(self) -> Step:
        step = await self._inner.draft()
        await self._barrier.wait()
        return step

    async def score(self, step: Step) -> Score:
        score = await self._inner.score(step)
        await self._barrier.wait()
        return score

    async def commit(self, step: Step, score: float | None = None) -> None:
        if step.kind in ("draft", "rewrite"):
            await self._barrier.wait()
        await self._inner.commit(step, score)
