"""Imitates vLLM's scheduler on a cost model, with texts from a world: for developing schedules without hardware.

What it imitates of vLLM's scheduler (v1/core/sched/scheduler.py, ``schedule``), with its defaults and the priority
policy:

- one iteration after another, each with a token budget; running sequences come first, in the order of their admission, each
  with its next token or the next part of its prompt, then waiting ones, by priority and arrival;
- a sequence is admitted if its whole context fits beside what runs, and none after one that does not fit;
- prompts are found in the prefix cache by full blocks, and the last token is always computed;
- if a running sequence needs room that is not there, the one with the lowest priority, among equals the youngest, is preempted
  and computed again later, and nobody is admitted in that iteration;
- arrivals and aborts take effect between two iterations, also those that react to the iteration that just ended: by the time
  they arrive the next one has begun.

An iteration lasts ``w + p * new tokens + k * context tokens``, where context tokens are those whose keys and values are
there already. Not imitated: asynchronous scheduling, which hides the scheduler's own time behind the device's.

Needs a loop with virtual time: while all running sequences only decode, many iterations are one timer.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import Delta, EngineCosts, EngineStats, Finish, Request, Tokenizer
from speclrm.runtime.engines.simulated.device import Device
from speclrm.runtime.engines.simulated.kv_blocks import BlockKeys, Blocks
from speclrm.runtime.engines.simulated.tokenizer import cut
from speclrm.runtime.errors import CapacityError, EngineDeadError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from speclrm.runtime.engines.simulated.cost import EngineCost
    from speclrm.runtime.engines.simulated.world import World

_EPSILON = 1e-9
SPAN_MAX = 64
"""Iterations that are taken together at most, so that readers of a long output see it grow."""
DELTA_TOKENS = 8
"""Tokens between two deltas, as in our vLLM engines; the first token comes by itself (v1/engine/output_processor.py)."""


@dataclass(eq=False, slots=True)
class _Sequence:
    """One request at work. ``ids``: what it will write; ``said``: how much of it it has written; ``computed``: tokens
    of prompt and output whose keys and values are there; ``keys``: of its full blocks, as far as they are needed;
    ``held``: the first of them, which others can find; ``private``: how many blocks it has beside these.
    """

    request: Request
    order: tuple[int, int]
    ids: Sequence[int]
    finish: Finish
    logprobs: dict[int, float] | None
    sampled: Sequence[float]
    keys: list[int]
    deltas: asyncio.Queue[Delta | None] = field(default_factory=asyncio.Queue[Delta | None])
    said: int = 0
    told: int = 0
    started: bool = False
    aborted: bool = False
    computed: int = 0
    cached: int | None = None
    held: list[int] = field(default_factory=list[int])
    private: int = 0

    @property
    def length(self) -> int:
        return len(self.request.prompt_ids) + self.said

    @property
    def blocks(self) -> int:
        return len(self.held) + self.private

    @property
    def context(self) -> str:
        """The track that it belongs to."""
        return self.request.id.rsplit("/", 2)[0]


@dataclass(slots=True)
class _Pass:
    """One iteration, or several in a row in which the same sequences decode. ``seconds``: of work done at ``since_s``."""

    plan: dict[_Sequence, int]
    new: int
    context: int
    sampled: int
    steps: int
    since_s: float
    speed: float
    seconds: float = 0.0
    timer: asyncio.TimerHandle | None = None


class SimulatedEngine:
    """Answers from a world at the speed of a cost model. Its counters run from its start.

    ``share``: its speed, 0 to 1, while another engine works on the same device.
    """

    def __init__(
        self,
        name: str,
        cost: EngineCost,
        world: World,
        tokenizer: Tokenizer,
        device: Device | None = None,
        *,
        share: float = 0.5,
        parameters: int | None = None,
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.cost = cost
        self.share = share
        self.tokenizer = tokenizer
        self.max_model_len = cost.max_model_len
        self.max_num_seqs = cost.max_num_seqs
        self._world = world
        self._device = device or Device()
        self._device.engines += 1
        self._blocks = Blocks(cost.kv_tokens // cost.block_size)
        self._keys = BlockKeys(cost.block_size)
        self._waiting: list[tuple[tuple[int, int], _Sequence]] = []
        self._running: list[_Sequence] = []
        self._arrivals = count()
        self._pass: _Pass | None = None
        self._start: asyncio.Handle | None = None
        self._closed = False
        self._interval_s = 0.0
        self._began_s = float("-inf")
        self.iterations = 0
        self.batched = 0
        """Sequences at work, summed over iterations."""
        self.preemptions = 0
        self.new_tokens = 0
        """Tokens that went through the model: prompts as far as they were not cached, again after a preemption, and outputs."""
        self.prefilled = 0
        """Prompt tokens among them."""
        self.cached_tokens = 0
        self.output_tokens = 0
        self.busy_s = 0.0

    def anew(self, cost: EngineCost | None = None) -> SimulatedEngine:
        """Returns an engine like this one, in its place and with an empty cache, as after a restart."""
        self._device.engines -= 1
        parts = self._world, self.tokenizer, self._device
        return type(self)(self.name, cost or self.cost, *parts, share=self.share, parameters=self.parameters)

    @property
    def sliced(self) -> bool:
        """Whether it shares its device with another by time slices."""
        return self._device.slices and self.known_costs.slowdown > 0

    @property
    def known_costs(self) -> EngineCosts:
        """As its cost model has them."""
        cost = self.cost
        slowdown = 1 / self.share - 1 if self._device.engines > 1 else 0.0
        return EngineCosts(cost.w, cost.p + cost.s, cost.k, slowdown, cost.request_s)

    @property
    def kv_tokens(self) -> int:
        """Size of the KV cache in tokens."""
        return self._blocks.total * self.cost.block_size

    @property
    def kv_tokens_used(self) -> int:
        """Tokens in blocks that a running sequence uses."""
        return self._blocks.used * self.cost.block_size

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
        if self.cost.request_s:
            await asyncio.sleep(self.cost.request_s)
        if self._closed:
            raise EngineDeadError(f"Engine {self.name} is closed.")
        sequence = self._sequence(request)
        heapq.heappush(self._waiting, (sequence.order, sequence))
        self._wake()
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
            kv_tokens=self.kv_tokens,
            iterations=self.iterations,
            batched=self.batched,
            preemptions=self.preemptions,
            parameters=self.parameters,
        )

    def pace(self, interval_s: float) -> None:
        held = self._start is not None and self._interval_s and isinstance(self._start, asyncio.TimerHandle)
        self._interval_s = interval_s
        if held and self._start is not None:
            self._start.cancel()
            self._start = asyncio.get_running_loop().call_soon(self._begin)
        elif self._pass is not None and interval_s:
            self._wake()  # several iterations were taken together

    async def aclose(self) -> None:
        self._closed = True
        if self._start is not None:
            self._start.cancel()
        if self._pass is not None and self._pass.timer is not None:
            self._pass.timer.cancel()
        self._pass = None
        self._device.set_busy(self, False)
        for sequence in (*self._running, *(entry[1] for entry in self._waiting)):
            sequence.deltas.put_nowait(None)

    def _sequence(self, request: Request) -> _Sequence:
        logprobs = None
        ids: Sequence[int]
        if request.logprob_ids:
            logprobs = dict(zip(request.logprob_ids, self._world.digits(request), strict=True))
            ids, finish = [max(logprobs, key=lambda token: logprobs[token])], "length"
        else:
            ids, finish = cut(self._world.write(request), request, self.tokenizer)
        sampled = self._world.sampled(request, ids) if request.sampled_logprobs else ()
        order = request.priority, next(self._arrivals)
        sequence = _Sequence(request, order, ids, finish, logprobs, sampled, [])
        sequence.keys = self._keys.of(sequence.context, request.prompt_ids).copy()
        return sequence

    def _drop(self, sequence: _Sequence) -> None:
        """Aborts a request: a waiting one ends at once, a running one at the end of the iteration."""
        if self._closed:
            return
        if sequence in self._running:
            sequence.aborted = True
            self._wake()
        else:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            heapq.heapify(self._waiting)

    # ------------------------------------------------------------------------------------------------------ iterations

    def _wake(self) -> None:
        """Begins an iteration after an arrival or an abort, or ends those that were taken together with the one at work."""
        if (one := self._pass) is not None:
            if one.steps > 1:
                seconds = one.seconds + (now_s() - one.since_s) * one.speed
                one.steps = min(one.steps, self._whole(seconds, one) + 1)
                self.retime()
        elif self._start is None:
            # Requests that arrive at the same moment join the same iteration.
            self._start = asyncio.get_running_loop().call_soon(self._begin)

    def retime(self) -> None:
        """Sets the timer for the end of the current work at the current speed."""
        if (one := self._pass) is None:
            return
        now = now_s()
        one.seconds += (now - one.since_s) * one.speed
        one.since_s, one.speed = now, self._device.speed(self)
        if one.timer is not None:
            one.timer.cancel()
        rest = max(0.0, self._seconds(one.steps, one) - one.seconds)
        one.timer = asyncio.get_running_loop().call_later(rest / one.speed, self._end)

    def _begin(self) -> None:
        self._start = None
        if self._interval_s and now_s() < (due := self._began_s + self._interval_s) - _EPSILON:
            self._device.set_busy(self, False)
            self._start = asyncio.get_running_loop().call_at(due, self._begin)
            return
        self._began_s = now_s()
        for sequence in [one for one in self._running if one.aborted]:
            self._leave(sequence)
        plan = self._schedule()
        while not plan and self._running:  # the sequence itself was preempted
            plan = self._schedule()
        self._device.set_busy(self, bool(plan))
        if not plan:
            return
        steps = self._decodes(plan)
        new = sum(plan.values())
        context = sum(sequence.computed for sequence in plan)
        sampled = sum(one.computed + tokens >= one.length for one, tokens in plan.items())
        self._pass = _Pass(plan, new, context, sampled, steps, now_s(), self._device.speed(self))
        self.retime()

    def _schedule(self) -> dict[_Sequence, int]:
        """Returns the new tokens of each sequence in the next iteration, and makes room for them."""
        budget = self.cost.max_num_batched_tokens
        running, waiting, size = self._running, self._waiting, self.cost.block_size
        plan: dict[_Sequence, int] = {}
        put_back = False
        index = 0
        while index < len(running) and budget > 0:
            sequence = running[index]
            new = min(sequence.length - sequence.computed, budget)
            more = -(-(sequence.computed + new) // size) - sequence.blocks
            while more > 0 and not self._blocks.take(more):
                victim = max(running, key=lambda one: one.order)
                if running.index(victim) < index:
                    index -= 1
                budget += plan.pop(victim, 0)
                self._leave(victim)
                victim.computed = 0
                heapq.heappush(waiting, (victim.order, victim))
                self.preemptions += 1
                put_back = True
                if victim is sequence:
                    return plan
            sequence.private += max(0, more)
            plan[sequence] = new
            budget -= new
            index += 1
            if new > 1:
                self._publish(sequence, sequence.computed + new)
        while waiting and not put_back and budget > 0 and len(running) < self.cost.max_num_seqs:
            sequence = waiting[0][1]
            found = self._find(sequence)
            new = sequence.length - len(found) * size
            if new > budget and plan and not self.cost.chunked_prefill:
                break
            whole = -(-sequence.length // size) - len(found)
            if whole + self._blocks.idle(found) > self._blocks.room:
                break
            heapq.heappop(waiting)
            self._blocks.hold(found)
            new = min(new, budget)
            sequence.held, sequence.computed = found, len(found) * size
            sequence.private = -(-(sequence.computed + new) // size) - len(found)
            self._blocks.take(sequence.private)
            if sequence.cached is None:
                sequence.cached = sequence.computed
                self.cached_tokens += sequence.computed
            running.append(sequence)
            plan[sequence] = new
            budget -= new
            self._publish(sequence, sequence.computed + new)
        return plan

    def _find(self, sequence: _Sequence) -> list[int]:
        """Returns the leading blocks that are known, without the last token and without those whose likelihood is asked for."""
        last = sequence.length - 1
        if sequence.request.likelihood_from is not None:
            last = min(last, max(0, sequence.request.likelihood_from - 1))
        keys = sequence.keys[: last // self.cost.block_size]
        return keys[: self._blocks.known(keys)]

    def _decodes(self, plan: Mapping[_Sequence, int]) -> int:
        """Returns how many iterations can be taken together: until one ends, while all decode and there is room for it."""
        if self._interval_s or len(plan) < len(self._running) or any(not one.said or plan[one] > 1 for one in plan):
            return 1
        steps = min(SPAN_MAX, *(len(one.ids) - one.said for one in plan))
        size = self.cost.block_size
        more = [-(-(one.computed + steps) // size) - one.blocks for one in plan]
        if steps == 1 or not self._blocks.take(sum(more)):
            return 1
        for sequence, blocks in zip(plan, more, strict=True):
            sequence.private += blocks
        return steps

    def _end(self) -> None:
        one, self._pass = self._pass, None
        assert one is not None
        self.iterations += one.steps
        self.batched += one.steps * len(one.plan)
        self.new_tokens += one.new * one.steps
        self.busy_s += self._seconds(one.steps, one)
        for sequence, new in one.plan.items():
            if new > 1 or not sequence.said:
                self.prefilled += new
            sequence.computed += new * one.steps
            if sequence.computed >= sequence.length:  # greater by one if several iterations were taken together
                self._say(sequence, one.steps)
        self._begin()

    def _seconds(self, steps: int, one: _Pass) -> float:
        """Returns the seconds of ``steps`` iterations, in which the context grows by the new tokens each time."""
        grown = steps * one.context + one.new * steps * (steps - 1) / 2
        return steps * (self.cost.w + self.cost.p * one.new + self.cost.s * one.sampled) + self.cost.k * grown

    def _whole(self, seconds: float, one: _Pass) -> int:
        """Returns how many whole iterations fit into the time, of those taken together."""
        low, high = 0, one.steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._seconds(middle, one) <= seconds + _EPSILON:
                low = middle
            else:
                high = middle - 1
        return low

    # --------------------------------------------------------------------------------------------------------- sequences

    def _say(self, sequence: _Sequence, tokens: int) -> None:
        sequence.said += tokens
        self.output_tokens += tokens
        finished = sequence.said >= len(sequence.ids)
        due = not sequence.started or sequence.said - sequence.told >= DELTA_TOKENS
        if not sequence.aborted and (finished or due):
            sequence.deltas.put_nowait(self._delta(sequence, finished=finished))
        if finished:
            self._leave(sequence)
        elif (extra := sequence.blocks - -(-(sequence.computed + 1) // self.cost.block_size)) > 0:
            sequence.private -= extra  # blocks taken for iterations that did not happen
            self._blocks.release((), extra)

    def _delta(self, sequence: _Sequence, *, finished: bool) -> Delta:
        first, request = not sequence.started, sequence.request
        part = slice(sequence.told, sequence.said)
        sequence.told, sequence.started = sequence.said, True
        return Delta(
            tuple(sequence.ids[part]),
            sequence.finish if finished else None,
            sequence.logprobs if first else None,
            sequence.cached if first else None,
            tuple(sequence.sampled[part]),
            self._world.entropy(request) if first and request.first_entropy else None,
            tuple(self._world.likelihood(request)) if first and request.likelihood_from is not None else None,
        )

    def _leave(self, sequence: _Sequence) -> None:
        """Removes a running sequence and gives its blocks back; its full blocks can be found again."""
        self._running.remove(sequence)
        self._name_blocks(sequence)
        self._publish(sequence, sequence.computed)
        self._blocks.release(sequence.held, sequence.private)
        sequence.held, sequence.private = [], 0

    def _name_blocks(self, sequence: _Sequence) -> None:
        """Computes the keys of what it wrote, which its track's next request will ask for."""
        if sequence.length // self.cost.block_size > len(sequence.keys):
            ids = [*sequence.request.prompt_ids, *sequence.ids[: sequence.said]]
            self._keys.extend(sequence.keys, ids)
            self._keys.keep(sequence.context, ids, sequence.keys.copy())

    def _publish(self, sequence: _Sequence, computed: int) -> None:
        """Lets others find the full blocks among the first ``computed`` tokens."""
        for key in sequence.keys[len(sequence.held) : computed // self.cost.block_size]:
            self._blocks.publish(key)
            sequence.held.append(key)
            sequence.private -= 1
