"""Measures what an engine's iterations cost: requests of known shape, fitted to the formula of simulated engines."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import combinations, count, pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import EngineCosts, Request
from speclrm.runtime.errors import EngineStalledError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import Engine

MEASURE_LIMIT_S = 180.0
"""Seconds for one group of requests."""
SHORT, LONG = 16, 1024
"""Prompt lengths in tokens, the long one as far as the engine takes it."""
TEMPERATURE, TOP_P = 0.6, 0.95
"""As in runs: on a CPU, sampling from a large vocabulary takes time."""
HUBER = 1.5
"""Residuals beyond this many times their median are given less weight: other work on the machine only ever slows down."""
ROUNDS = 30
SHARE_MIN = 0.05
WITHIN = 0.9
"""Share of a part that must lie within a period to count for it: few deltas may cover the whole of it."""
GLANCE_TOKENS, GLANCE_TOGETHER_TOKENS = 17, 25
"""Tokens of a request in a glance: two deltas behind the first one, and three while both engines work."""
GLANCE_BATCH = 8
GLANCE_LENGTHS = (16, 64, 256, 1024)
"""Prompts of a glance, in tokens, of which each is read until one took longer than ``GLANCE_READ_S``."""
GLANCE_READ_S = 0.5


@dataclass(frozen=True, slots=True)
class Measurement:
    """Some iterations that took ``seconds`` together.

    ``new``: tokens that went through the model; ``context``: tokens that were there already, summed over the
    iterations; ``sampled``: tokens that came out; ``calls``: requests whose way into the engine is part of the time.
    """

    seconds: float
    iterations: int
    new: int
    context: int
    sampled: int
    calls: int = 0


@dataclass(frozen=True, slots=True)
class CostFit:
    """Seconds, as in ``EngineCost``. ``residual``: root mean square of what the fit misses, relative to each measurement."""

    w: float
    p: float
    k: float
    s: float
    request_s: float
    residual: float
    measurements: int


def fit_costs(measurements: Sequence[Measurement]) -> CostFit:
    """Fits constants, none negative, that miss the measurements least, each relative to its own length.

    Robust: least squares with Huber's weights, repeated until they are stable. Of all ways to hold some constants at
    zero the best one is taken, which for five constants solves non-negative least squares exactly. ``w`` is at least a
    microsecond.
    """
    import numpy as np

    solve: Any = np.linalg.lstsq
    seconds = np.array([one.seconds for one in measurements])
    rows = np.array(
        [(one.iterations, one.new, one.context, one.sampled, one.calls) for one in measurements], dtype=float
    )
    rows = rows / seconds[:, None]
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-12)  # the columns differ by orders of magnitude
    weights = np.ones(len(seconds))
    best = np.zeros(5)
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        least = np.inf
        fresh = best
        for size in range(1, 6):
            for columns in map(list, combinations(range(5), size)):
                part = (rows / scale)[:, columns] * root[:, None]
                values: np.ndarray = solve(part, root, rcond=None)[0]
                missed = float(((part @ values - root) ** 2).sum())
                if (values >= 0).all() and missed < least - 1e-12:
                    least, fresh = missed, np.zeros(5)
                    fresh[columns] = values / scale[columns]
        residuals = np.abs(rows @ fresh - 1)
        limit = HUBER * max(float(np.median(residuals)) / 0.6745, 1e-6)  # the median of a normal's absolute values
        weights = np.minimum(1.0, limit / np.maximum(residuals, 1e-12))
        if np.allclose(fresh, best, rtol=1e-6, atol=0):
            break
        best = fresh
    w, p, k, s, request_s = map(float, best)
    missed = float(np.sqrt(((rows @ best - 1) ** 2).mean()))
    return CostFit(max(w, 1e-6), p, k, s, request_s, missed, len(measurements))


class Prober:
    """Sends an engine requests of known shape. Their prompts are random, so that none finds another in the prefix cache."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self._engine = engine
        self._draw = random.Random(seed)
        self._numbers = count()
        vocabulary = engine.tokenizer.vocabulary
        barred = vocabulary.special_ids | vocabulary.end_ids | vocabulary.blank_line_ids
        self._ids = [token for token in engine.tokenizer.encode(_ALPHABET) if token not in barred]

    async def measure(self, *, quick: bool) -> list[Measurement]:
        """Measures prefill of several lengths, and decoding in batches of several sizes at short and long contexts."""
        tokens = 17 if quick else 33
        long = max(SHORT, min(LONG, self._engine.max_model_len - tokens - 1))
        sizes = (1, 4, 16) if quick else (1, 3, 8, 16)
        batches = [size for size in sizes if size <= self._engine.max_num_seqs]
        found: list[Measurement] = []
        await self.decode(1, SHORT, 9)  # warm-up: the first requests of a kind compile
        for length in dict.fromkeys((SHORT, long // 4, long // 2, long)):
            found += [await self.prefill(length) for _ in range(2 if quick else 4)]
        for batch in batches:
            found += (await self.decode(batch, SHORT, tokens)).measurements
        for batch in batches[: 2 if quick else 3]:
            found += (await self.decode(batch, long, tokens)).measurements
        return found

    async def glance(self) -> list[Measurement]:
        """Measures in seconds what ``measure`` measures in a minute: enough to tell an iteration from its tokens. The engine has
        answered requests before. Contexts are measured only where reading them is quick, and count nothing elsewhere: what a
        sequence takes must not be laid to the few tokens before it.
        """
        found = (await self.decode(1, SHORT, GLANCE_TOKENS)).measurements
        batch = min(GLANCE_BATCH, self._engine.max_num_seqs)
        found += (await self.decode(batch, SHORT, GLANCE_TOKENS)).measurements
        for length in GLANCE_LENGTHS:
            if length > self._engine.max_model_len - GLANCE_TOKENS:
                break
            found.append(read := await self.prefill(length))
            if read.seconds > GLANCE_READ_S:
                break
        else:
            few = max(1, min(batch, int(2 * GLANCE_READ_S / found[-1].seconds)))
            return found + (await self.decode(few, GLANCE_LENGTHS[-1], GLANCE_TOKENS)).measurements
        return [replace(one, context=0) for one in found]

    async def prefill(self, length: int) -> Measurement:
        """Measures one prompt on an idle engine, up to its first token."""
        started = now_s()
        await self._times(length, 1)
        return Measurement(now_s() - started, 1, length, 0, 1, calls=1)

    async def decode(self, batch: int, length: int, tokens: int) -> Decoding:
        """Runs a number of requests side by side, and measures while all of them decode."""
        times = await asyncio.gather(*(self._times(length, tokens) for _ in range(batch)))
        begun, ended = max(one[0][0] for one in times), min(one[-1][0] for one in times)
        found: list[tuple[float, float, Measurement]] = []
        said = times[0][0][1]
        for (before, _), (after, more) in pairwise(times[0]):
            if begun <= before and after <= ended and after > before:
                context = batch * (more * (length + said - 1) + more * (more - 1) // 2)
                found.append((before, after, Measurement(after - before, more, batch * more, context, batch * more)))
            said += more
        return Decoding(found)

    async def _times(self, length: int, tokens: int) -> list[tuple[float, int]]:
        """Returns when tokens came, and how many at a time."""
        number = next(self._numbers)
        request = Request(
            f"calibration/{number}/M/0/write",
            [self._draw.choice(self._ids) for _ in range(length)],
            tokens,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=number,
        )
        times: list[tuple[float, int]] = []
        try:
            async with asyncio.timeout(MEASURE_LIMIT_S), aclosing(self._engine.stream(request)) as deltas:
                async for delta in deltas:
                    times.append((now_s(), len(delta.ids)))
        except TimeoutError as error:
            raise EngineStalledError(
                f"Engine {self._engine.name} did not answer {tokens} tokens to a prompt of {length} in {MEASURE_LIMIT_S:.0f} s. "
                "Calibrate on a quieter machine or with smaller models."
            ) from error
        return times


_ALPHABET = (
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H 0 1 2 3 4 5 6 7 8 9 + - * / = ( ) , ; :"
)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Parts of a period in which a batch decoded: begin, end and measurement of each."""

    parts: list[tuple[float, float, Measurement]]

    @property
    def measurements(self) -> list[Measurement]:
        return [measurement for _, _, measurement in self.parts]

    def iteration_s(self, begin: float = 0.0, end: float = float("inf")) -> float | None:
        """Returns the median time of an iteration, of the parts that lie nearly wholly within a period."""
        found = [
            one.seconds / one.iterations
            for start, stop, one in self.parts
            if min(stop, end) - max(start, begin) >= WITHIN * (stop - start)
        ]
        return median(found) if found else None


async def measure_sharing(engines: Sequence[Engine], *, quick: bool) -> list[float]:
    """Measures the speed of each of two engines, 0 to 1, while the other works too, against working alone.

    Both decode two sequences; the outputs are long enough that each engine sees the other at work for several deltas.
    """
    tokens = 25 if quick else 81
    probers = [Prober(engine, seed=1) for engine in engines]
    alone = [(await prober.decode(2, SHORT, tokens)).iteration_s() for prober in probers]
    return await _shares(engines, probers, alone, tokens)


async def glance(engines: Sequence[Engine], *, together: bool) -> list[EngineCosts]:
    """Measures in seconds what the iterations of each engine cost. ``together``: whether two of them share a device; then also
    by how much each slows the other.

    Raises:
        EngineError: an engine failed, or did not answer.
    """
    probers = [Prober(engine, seed=2) for engine in engines]
    fits = [fit_costs(await prober.glance()) for prober in probers]
    shares = [1.0 for _ in engines]
    if together:
        alone = [fit.w + 2 * (fit.p + fit.s) + 2 * SHORT * fit.k for fit in fits]
        shares = await _shares(engines, probers, alone, GLANCE_TOGETHER_TOKENS)
    return [
        EngineCosts(fit.w, fit.p + fit.s, fit.k, 1 / share - 1, fit.request_s)
        for fit, share in zip(fits, shares, strict=True)
    ]


async def _shares(
    engines: Sequence[Engine], probers: Sequence[Prober], alone: Sequence[float | None], tokens: int
) -> list[float]:
    """``alone``: seconds of an iteration of each by itself, with two sequences; ``tokens``: of each of these."""
    longest = max(time or 0.0 for time in alone)
    # The faster one writes more, so that both end at about the same time.
    lengths = [
        min(
            engine.max_model_len - SHORT - 1,
            round(tokens * min(8.0, longest / time if time else 1.0)),
        )
        for engine, time in zip(engines, alone, strict=True)
    ]
    both = await asyncio.gather(
        *(prober.decode(2, SHORT, length) for prober, length in zip(probers, lengths, strict=True))
    )
    begun = max((one.parts[0][0] for one in both if one.parts), default=0.0)
    ended = min((one.parts[-1][1] for one in both if one.parts), default=0.0)
    shares: list[float] = []
    for before, one in zip(alone, both, strict=True):
        together = one.iteration_s(begun, ended)
        share = before / together if before and together else 1.0
        shares.append(min(1.0, max(SHARE_MIN, share)))
    return shares
