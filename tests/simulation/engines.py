"""Engines in this process that fail: a simulated engine behind everything that can go wrong with one."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from attack.engines import unhurried

from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import Delta, EngineStats
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.errors import EngineDeadError, EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from pydantic import JsonValue
    from simulation.books import Books
    from simulation.drawn import Outage, Plan

    from speclrm.runtime.engine import EngineCosts, Request
    from speclrm.runtime.errors import FailureReason

CHECK_HANGS_S = 4.0
"""How long an engine that hangs lets somebody wait who asks it whether it works."""
WORDS = 1 << 30
"""From here on each id of a simulated tokenizer is a word."""
START_S = 1.0
FLAPS = 2
"""Requests after its return that an engine only seems to work for."""


class Storming(SimulatedEngine):
    """A simulated engine that can be made to preempt all that it runs."""

    storm = False

    def _schedule(self):  # type: ignore[no-untyped-def]  # a private type
        if self.storm:
            self.storm = False
            for sequence in tuple(self._running):
                self._leave(sequence)
                sequence.computed = 0
                heapq.heappush(self._waiting, (sequence.order, sequence))
                self.preemptions += 1
        return super()._schedule()


@dataclass
class Weather:
    """What goes wrong in one attempt. ``injected``: how often what did go wrong, by kind."""

    seed: str
    plan: Plan
    stall_s: float
    injected: Counter[str] = field(default_factory=Counter[str])

    def kind_for(self, engine: str, number: int) -> tuple[str | None, random.Random]:
        """Returns what goes wrong with an engine's request of that number, if anything does."""
        draw = random.Random(f"{self.seed}/{engine}/{number}")
        kinds = self.plan.kinds
        return (draw.choice(kinds) if kinds and draw.random() < self.plan.share else None), draw


class Outages:
    """The outages of one engine or server as a whole. ``make``: starts what is behind it, anew after a death."""

    def __init__(self, make: Callable[[], Storming], outages: Sequence[Outage], weather: Weather) -> None:
        self._make = make
        self.inner = make()
        self._due = sorted(outages, key=lambda one: one.request)
        self._weather = weather
        self._before = self.inner.stats()
        self._before = replace(self._before, prompt_tokens=0, output_tokens=0, iterations=0, batched=0, preemptions=0)
        self.up_at = self._thaws_at = float("-inf")
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._frozen = 0
        self._flaps = 0
        self.requests = 0
        self._ending: set[asyncio.Future[None]] = set()

    @property
    def down(self) -> bool:
        return self.inner.stats().alive is False

    @property
    def hung(self) -> bool:
        return not self._thawed.is_set()

    def begin(self) -> int:
        """Counts a request, sets off what is due with it, and returns its number."""
        self.requests += 1
        while self._due and self._due[0].request <= self.requests:
            one = self._due.pop(0)
            asyncio.get_running_loop().call_later(one.delay_s, self._strike, one)
        if self._flaps and not self.down:
            self._flaps -= 1
            self._die(0.3)
        return self.requests

    def _strike(self, one: Outage) -> None:
        self._weather.injected[one.kind] += 1
        match one.kind:
            case "storm":
                self.inner.storm = True
            case "hang":
                self._thawed.clear()
                self._frozen = self.inner.stats().progress
                self._thaws_at = max(self._thaws_at, now_s() + one.down_s)
                asyncio.get_running_loop().call_later(one.down_s, self._thaw)
            case "flaps":
                self._flaps = FLAPS
                self._die(min(one.down_s, 20.0))
            case _:
                self._die(one.down_s)

    def _thaw(self) -> None:
        if now_s() >= self._thaws_at - 1e-6:
            self._thawed.set()

    def _die(self, down_s: float) -> None:
        self.up_at = max(self.up_at, now_s() + down_s)
        if not self.down:
            self._keep()
            self._ending.add(asyncio.ensure_future(self.inner.aclose()))

    def _keep(self) -> None:
        """What dies has counted: counters of an engine never go back."""
        self._before = self._sum()

    def _sum(self) -> EngineStats:
        now, before = self.inner.stats(), self._before
        if not now.alive:
            return replace(before, alive=False, running=0, waiting=0)
        return replace(
            now,
            prompt_tokens=now.prompt_tokens + before.prompt_tokens,
            output_tokens=now.output_tokens + before.output_tokens,
            iterations=now.iterations + before.iterations,
            batched=now.batched + before.batched,
            preemptions=now.preemptions + before.preemptions,
            progress=now.iterations + before.iterations,
        )

    def stats(self) -> EngineStats:
        stats = self._sum()
        return replace(stats, progress=self._frozen) if self.hung else stats

    async def thawed(self) -> None:
        if not self._thawed.is_set():
            await self._thawed.wait()

    def rise(self) -> bool:
        """Starts again what is dead, if it is time. Returns whether it works."""
        if now_s() < self.up_at:
            return False
        if self.down:
            self.inner = self._make()
        return True

    async def end(self) -> None:
        """Ends what is left of a process that is to be started anew."""
        if not self.down:
            self._keep()
            await self.inner.aclose()
        self._thawed.set()

    async def aclose(self) -> None:
        self._thawed.set()
        await self.inner.aclose()


class FaultyEngine:
    """``abort_s``: how long aborts take, in turn."""

    def __init__(self, name: str, outages: Outages, weather: Weather, books: Books) -> None:
        self.name = name
        self.outages = outages
        self._weather = weather
        self._books = books
        self.tokenizer = outages.inner.tokenizer
        self.max_model_len = outages.inner.max_model_len
        self.max_num_seqs = outages.inner.max_num_seqs

    @property
    def known_costs(self) -> EngineCosts | None:
        return self.outages.inner.known_costs

    def stats(self) -> EngineStats:
        return self.outages.stats()

    async def aclose(self) -> None:
        await self.outages.aclose()

    async def restart(self, reason: FailureReason) -> Mapping[str, JsonValue]:
        await self.outages.end()
        await asyncio.sleep(START_S)
        if not self.outages.rise():
            raise EngineError(f"Engine {self.name} does not start.")
        return {}

    async def check(self) -> None:
        if self.outages.hung:
            await asyncio.sleep(CHECK_HANGS_S)
        if self.outages.hung or not self.outages.rise():
            raise EngineDeadError(f"Engine {self.name} does not work.")

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        number = self.outages.begin()
        kind, draw = self._weather.kind_for(self.name, number)
        if self.outages.down:
            raise EngineDeadError(f"Engine {self.name} is dead.")
        finished = False
        try:
            async with aclosing(self._deltas(request, kind, draw)) as deltas:
                async for delta in deltas:
                    finished = delta.finish is not None
                    yield delta
        finally:
            aborts = self._weather.plan.abort_s
            if aborts and not finished:
                self._weather.injected["aborts"] += 1
                await unhurried(aborts[number % len(aborts)])

    async def _deltas(self, request: Request, kind: str | None, draw: random.Random) -> AsyncGenerator[Delta, None]:
        if kind == "refused":
            self._weather.injected[kind] += 1
            raise RequestError(f"Engine {self.name} refused request {request.id}.")
        if kind == "empty":
            self._weather.injected[kind] += 1
            yield self._empty(request, draw)
            return
        async with aclosing(self.outages.inner.stream(request)) as deltas:
            place, struck = draw.choice([0, 0, 1, 2]), 0
            number = 0
            async for delta in deltas:
                await self.outages.thawed()
                if kind is None or number < place:
                    yield delta
                else:
                    self._weather.injected[kind] += not struck
                    for one in await self._changed(delta, kind, draw, request):
                        yield one
                    struck += 1
                    if kind == "cut":
                        break
                number += 1

    @staticmethod
    def _empty(request: Request, draw: random.Random) -> Delta:
        logprobs = dict.fromkeys(request.logprob_ids, -2.3) or None
        likely = (
            None if request.likelihood_from is None else (-0.5,) * (len(request.prompt_ids) - request.likelihood_from)
        )
        return Delta((), draw.choice(["end", "stop", "length"]), logprobs, prompt_logprobs=likely)

    async def _changed(self, delta: Delta, kind: str, draw: random.Random, request: Request) -> list[Delta]:
        match kind:
            case "slow":
                await asyncio.sleep(draw.uniform(0.0, 0.2) * self._weather.stall_s)
            case "late":
                await asyncio.sleep(draw.uniform(0.0, 0.6) * self._weather.stall_s if delta.finish else 0.0)
            case "garbage":
                return [replace(delta, ids=tuple(self._any_id(draw) for _ in delta.ids))]
            case "counts":
                lie = draw.choice([-5, len(request.prompt_ids) + 7, 1 << 40])
                return [replace(delta, cached_tokens=lie)]
            case "long":
                more = draw.choice([1, 8, 500])
                sampled = (*delta.sampled_logprobs, *(-1.0,) * more) if request.sampled_logprobs else ()
                return [
                    replace(
                        delta, ids=(*delta.ids, *(self._any_id(draw) for _ in range(more))), sampled_logprobs=sampled
                    )
                ]
            case "logprobs":
                self._books.unread.add(request.id)
                return [replace(delta, logprobs=None, sampled_logprobs=(), first_entropy=None, prompt_logprobs=None)]
            case "nan":
                bad = draw.choice([float("nan"), float("inf"), float("-inf"), 3.0])
                few = delta.logprobs and dict.fromkeys(list(delta.logprobs)[: draw.choice([1, 10])], bad)
                return [
                    replace(
                        delta,
                        logprobs=few,
                        sampled_logprobs=(bad,) * len(delta.sampled_logprobs),
                        first_entropy=None if delta.first_entropy is None else bad,
                        prompt_logprobs=delta.prompt_logprobs and (bad,) * len(delta.prompt_logprobs),
                    )
                ]
            case "dropped":
                return []
            case "doubled":
                return [replace(delta, finish=None), delta]
            case _:
                pass
        return [delta]

    def _any_id(self, draw: random.Random) -> int:
        vocabulary = self.tokenizer.vocabulary
        special = sorted(vocabulary.special_ids | vocabulary.blank_line_ids)
        return draw.choice(
            [draw.randrange(128), draw.randrange(1 << 21), WORDS + draw.randrange(1 << 28), draw.choice(special)]
        )
