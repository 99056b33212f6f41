"""An engine that takes its time from a cost model and its words from a world: for developing schedules without hardware.

What it imitates of vLLM's scheduler: one iteration after another, each with one token for every running sequence and as much
prefill as the iteration's token budget leaves; sequences admitted by priority while there is room; prompts found in the
prefix cache by whole blocks; keys and values in blocks, with the youngest sequence put back when they run out. An
iteration lasts ``w + p * new tokens + k * context tokens``.

Meant for a loop with virtual time: between two events all running sequences just decode, and the clock jumps there.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

from speclrm.runtime.clock import now_s
from speclrm.runtime.errors import CapacityError, EngineDeadError
from speclrm.runtime.protocols import Delta, EngineStats, Finish, Request, Tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

_EPSILON = 1e-9
SPAN_MAX = 64
"""Iterations that are taken together at most, so that readers of a long output see it grow."""
DELTA_TOKENS = 8


@dataclass(frozen=True, slots=True)
class EngineCost:
    """What an iteration takes, in seconds: ``w`` for itself, ``p`` for each new token, ``k`` for each token of context.

    ``kv_tokens``: tokens of keys and values that there is room for. The limits are those of vLLM's scheduler.
    """

    w: float
    p: float
    k: float
    kv_tokens: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 32_768
    block_size: int = 16


class World(Protocol):
    """What the models of a simulation say."""

    def write(self, request: Request) -> Sequence[int]:
        """The ids that would follow the request's prompt if nothing stopped them."""
        ...

    def digits(self, request: Request) -> Sequence[float]:
        """Natural-log probabilities of 0 to 9 where the request asks for a score."""
        ...


class Device:
    """What engines share. ``shares``: by an engine's name, its speed, 0 to 1, while another one works too."""

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        self._shares = shares or {}
        self._busy: dict[str, SimulatedEngine] = {}

    def speed(self, engine: SimulatedEngine) -> float:
        alone = not any(name != engine.name for name in self._busy)
        return 1.0 if alone else self._shares.get(engine.name, 1.0 / len(self._busy))

    def set_busy(self, engine: SimulatedEngine, busy: bool) -> None:
        if busy == (engine.name in self._busy):
            return
        if busy:
            self._busy[engine.name] = engine
        else:
            del self._busy[engine.name]
        for other in self._busy.values():
            if other is not engine:
                other.wake()  # its iterations take another time from now on


@dataclass(eq=False, slots=True)
class _Sequence:
    """One request at work. ``ids``: what it will say; ``said``: how much of it it has said; ``computed``: tokens of prompt
    and output whose keys and values are there.
    """

    request: Request
    order: tuple[int, int]
    ids: Sequence[int]
    finish: Finish
    logprobs: dict[int, float] | None
    deltas: asyncio.Queue[Delta | None]
    said: int = 0
    told: int = 0
    started: bool = False
    computed: int = 0
    cached: int | None = None
    keys: list[int] = field(default_factory=list[int])
    private: int = 0

    @property
    def length(self) -> int:
        return len(self.request.prompt_ids) + self.said

    @property
    def all_ids(self) -> list[int]:
        return [*self.request.prompt_ids, *self.ids[: self.said]]

    @property
    def to_prefill(self) -> int:
        return max(0, self.length - self.computed)


class _Blocks:
    """The room for keys and values. A full block is known by what it and all before it hold; others are private."""

    def __init__(self, total: int, size: int) -> None:
        self._size = size
        self._free = total
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known blocks that nobody uses, least recently used first

    @property
    def room(self) -> int:
        return self._free + len(self._idle)

    def keys(self, ids: Sequence[int]) -> list[int]:
        keys: list[int] = []
        before = 0
        for start in range(0, len(ids) - self._size + 1, self._size):
            before = hash((before, *ids[start : start + self._size]))
            keys.append(before)
        return keys

    def use_known(self, ids: Sequence[int]) -> list[int]:
        """The leading blocks that are known, now used once more. The last token is always computed, as in vLLM."""
        found: list[int] = []
        for key in self.keys(ids[:-1]):
            if key not in self._users:
                break
            found.append(key)
            self._hold(key)
        return found

    def take(self, blocks: int) -> bool:
        """Takes private blocks, or none where there are not enough."""
        if blocks > self.room:
            return False
        while self._free < blocks:
            key, _ = self._idle.popitem(last=False)
            del self._users[key]
            self._free += 1
        self._free -= blocks
        return True

    def publish(self, key: int) -> None:
        """A private block becomes a known one; where another holds the same, the private one is given back."""
        if key in self._users:
            self._free += 1
            self._hold(key)
        else:
            self._users[key] = 1

    def release(self, keys: Sequence[int], private: int) -> None:
        for key in reversed(keys):  # the end of a context is worth less than its beginning
            self._users[key] -= 1
            if not self._users[key]:
                self._idle[key] = None
        self._free += private

    def _hold(self, key: int) -> None:
        self._users[key] += 1
        self._idle.pop(key, None)


class SimulatedEngine:
    """Answers from a world at the speed of a cost model."""

    def __init__(
        self, name: str, cost: EngineCost, world: World, tokenizer: Tokenizer, device: Device | None = None
    ) -> None:
        self.name = name
        self.cost = cost
        self.tokenizer = tokenizer
        self.max_model_len = cost.max_model_len
        self.max_num_seqs = cost.max_num_seqs
        self._world = world
        self._device = device or Device()
        self._blocks = _Blocks(cost.kv_tokens // cost.block_size, cost.block_size)
        self._waiting: list[tuple[tuple[int, int], _Sequence]] = []
        self._running: list[_Sequence] = []
        self._arrivals = count()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.iterations = 0
        self.batched = 0
        """Running sequences, summed over iterations."""
        self.preemptions = 0
        self.prefilled = 0
        """Prompt tokens that were computed, not found."""
        self.output_tokens = 0

    # ----------------------------------------------------------------------------------------------------- as an engine

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        need = len(request.prompt_ids) + request.max_tokens
        if need > self.max_model_len:
            raise CapacityError(
                f"Request {request.id} needs {need} tokens and engine {self.name} takes {self.max_model_len}. Use a "
                "smaller --token-budget or a shorter problem."
            )
        if need > self.cost.kv_tokens - self.cost.block_size:
            raise CapacityError(
                f"Request {request.id} needs {need} tokens and engine {self.name} has room for {self.cost.kv_tokens}."
            )
        if self._closed:
            raise EngineDeadError(f"Engine {self.name} is closed.")
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=f"engine {self.name}")
        sequence = self._sequence(request)
        heapq.heappush(self._waiting, (sequence.order, sequence))
        self.wake()
        finished = False
        try:
            while not finished:
                delta = await sequence.deltas.get()
                if delta is None:
                    raise EngineDeadError(f"Engine {self.name} was closed.")
                finished = delta.finish is not None
                yield delta
        finally:
            if not finished:
                self._drop(sequence)

    def stats(self) -> EngineStats:
        return EngineStats(
            name=self.name,
            running=len(self._running),
            waiting=len(self._waiting),
            prompt_tokens=self.prefilled,
            output_tokens=self.output_tokens,
            progress=self.iterations,
            alive=not self._closed,
            kv_tokens=self.cost.kv_tokens,
            iterations=self.iterations,
            batched=self.batched,
            preemptions=self.preemptions,
        )

    async def aclose(self) -> None:
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for sequence in (*self._running, *(entry[1] for entry in self._waiting)):
            sequence.deltas.put_nowait(None)

    def wake(self) -> None:
        self._wake.set()

    def _sequence(self, request: Request) -> _Sequence:
        logprobs = None
        if request.logprob_ids:
            logprobs = dict(zip(request.logprob_ids, self._world.digits(request), strict=True))
        ids: Sequence[int]
        if request.allowed_ids and logprobs is not None:
            ids, finish = [max(logprobs, key=lambda token: logprobs[token])], "length"
        else:
            ids, finish = cut(self._world.write(request), request, self.tokenizer)
        order = request.priority, next(self._arrivals)
        return _Sequence(request, order, ids, finish, logprobs, asyncio.Queue())

    def _drop(self, sequence: _Sequence) -> None:
        """An abort: the sequence is gone at once."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._give_back(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            heapq.heapify(self._waiting)
        self.wake()

    # ------------------------------------------------------------------------------------------------------ iterations

    async def _work(self) -> None:
        while True:
            self._admit()
            if not self._running:
                self._device.set_busy(self, False)
                self._wake.clear()
                await self._wake.wait()
                continue
            self._device.set_busy(self, True)
            if any(sequence.to_prefill > 1 or not sequence.said for sequence in self._running):
                await self._mixed_iteration()
            else:
                await self._decode()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.cost.max_num_seqs:
            _, sequence = self._waiting[0]
            ids = sequence.all_ids
            keys = self._blocks.use_known(ids)
            # Room for the whole prompt and one block more, so that it is not put back at once.
            need = -(-len(ids) // self.cost.block_size) - len(keys) + 1
            if not self._blocks.take(need):
                self._blocks.release(keys, 0)
                return
            heapq.heappop(self._waiting)
            sequence.keys, sequence.private = keys, need
            sequence.computed = len(keys) * self.cost.block_size
            if sequence.cached is None:
                sequence.cached = sequence.computed
            self._running.append(sequence)

    async def _mixed_iteration(self) -> None:
        """One iteration with prefill in it: decoding first, then prompts by age, within the budget of tokens."""
        budget = self.cost.max_num_batched_tokens
        plan: list[tuple[_Sequence, int]] = []
        for sequence in sorted(self._running, key=lambda one: (one.to_prefill > 1, one.order)):
            chunk = min(budget, sequence.to_prefill)
            if chunk > 0:
                plan.append((sequence, chunk))
                budget -= chunk
        new = sum(chunk for _, chunk in plan)
        context = sum(sequence.computed for sequence, _ in plan)
        await self._pass(self._iteration_s(new, context))
        self.iterations += 1
        self.batched += len(plan)
        for sequence, chunk in plan:
            if sequence not in self._running:
                continue  # aborted meanwhile
            if chunk > 1 or not sequence.said:
                self.prefilled += chunk
            sequence.computed += chunk
            if not sequence.to_prefill:
                self._publish(sequence)
                self._say(sequence, 1)

    async def _decode(self) -> None:
        """All running sequences decode until one ends, one arrives, or one needs room that is not there."""
        running = list(self._running)
        batch = len(running)
        steps = min(SPAN_MAX, *(len(sequence.ids) - sequence.said for sequence in running))
        if batch * (steps // self.cost.block_size + 1) > self._blocks.room:
            steps = 1
        context = sum(sequence.length for sequence in running)
        started = now_s()
        speed = self._device.speed(self)
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._decode_s(steps, batch, context) / speed):
                await self._wake.wait()
        elapsed = (now_s() - started) * speed
        done = self._iterations_in(elapsed, steps, batch, context)
        if done < steps:
            rest = self._decode_s(done + 1, batch, context) - elapsed
            done += 1  # the iteration that was going on is finished; what arrived joins at its end
            await asyncio.sleep(max(0.0, rest / speed))
        self.iterations += done
        self.batched += done * batch
        for sequence in running:
            if sequence in self._running:
                sequence.computed += done
                self._say(sequence, done)

    def _iteration_s(self, new: int, context: int) -> float:
        return self.cost.w + self.cost.p * new + self.cost.k * context

    def _decode_s(self, steps: int, batch: int, context: int) -> float:
        """``steps`` iterations of decoding, in which the context of each sequence grows by one token an iteration."""
        grown = steps * context + batch * steps * (steps - 1) / 2
        return steps * (self.cost.w + self.cost.p * batch) + self.cost.k * grown

    def _iterations_in(self, seconds: float, most: int, batch: int, context: int) -> int:
        """How many whole iterations fit into the time."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._decode_s(middle, batch, context) <= seconds + _EPSILON:
                low = middle
            else:
                high = middle - 1
        return low

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._device.speed(self))

    # --------------------------------------------------------------------------------------------------------- sequences

    def _say(self, sequence: _Sequence, tokens: int) -> None:
        tokens = min(tokens, len(sequence.ids) - sequence.said)
        sequence.said += tokens
        self.output_tokens += tokens
        finished = sequence.said >= len(sequence.ids)
        if finished or sequence.said - sequence.told >= DELTA_TOKENS:
            first = not sequence.started
            delta = Delta(
                tuple(sequence.ids[sequence.told : sequence.said]),
                sequence.finish if finished else None,
                sequence.logprobs if first else None,
                sequence.cached if first else None,
            )
            sequence.told, sequence.started = sequence.said, True
            sequence.deltas.put_nowait(delta)
        if finished:
            self._running.remove(sequence)
            self._give_back(sequence)
        else:
            self._grow(sequence)

    def _grow(self, sequence: _Sequence) -> None:
        """Makes room for what the sequence will say next; where there is none, the youngest is put back."""
        more = -(-(sequence.length + 1) // self.cost.block_size) - len(sequence.keys) - sequence.private
        while more > 0 and sequence in self._running:
            if self._blocks.take(more):
                sequence.private += more
                return
            youngest = max(self._running, key=lambda one: one.order)
            self._running.remove(youngest)
            self._give_back(youngest)
            heapq.heappush(self._waiting, (youngest.order, youngest))
            self.preemptions += 1

    def _publish(self, sequence: _Sequence) -> None:
        """Full blocks of what was computed can be found by others."""
        keys = self._blocks.keys(sequence.all_ids[: sequence.computed])
        for key in keys[len(sequence.keys) :]:
            self._blocks.publish(key)
            sequence.keys.append(key)
            sequence.private -= 1

    def _give_back(self, sequence: _Sequence) -> None:
        self._publish(sequence)
        self._blocks.release(sequence.keys, sequence.private)
        sequence.keys, sequence.private, sequence.computed = [], 0, 0


def cut(ids: Sequence[int], request: Request, tokenizer: Tokenizer) -> tuple[Sequence[int], Finish]:
    """What an engine gives of ids that a model would write: up to a stop id, an end, or the limit."""
    stops, ends = set(request.stop_ids), tokenizer.vocabulary.end_ids
    for index, token in enumerate(ids[: request.max_tokens]):
        if token in ends:
            return ids[:index], "end"
        if token in stops:
            return ids[: index + 1], "stop"
    return ids[: request.max_tokens], "length" if len(ids) >= request.max_tokens else "end"
