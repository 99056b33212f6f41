"""Holds one request in flight, its digest, and its costs so far."""

from __future__ import annotations

from array import array
from binascii import b2a_base64
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Protocol, get_args

from speclrm.runtime.engine import LOGPROB_MIN, Finish
from speclrm.runtime.errors import EngineError
from speclrm.runtime.events import six_digits
from speclrm.runtime.tokens.context import DIGEST_BYTES, Ids
from speclrm.runtime.unchecked_events import make_operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from speclrm.runtime.engine import Delta, Engine, Request
    from speclrm.runtime.events import Operation


RANK_WIDTH = 1_000_000
"""Priorities below it are those of short requests that a whole track waits for (``scheduler.priority``)."""

_URL_SAFE = bytes.maketrans(b"+/", b"-_")
"""The characters of base64 in ids, as ``base64.urlsafe_b64encode`` writes them."""


def digest(request: Request) -> str:
    """Returns twelve characters that are equal for equal requests: of all that an engine's answer depends on, except its limits.

    Left out are the id, the priority, and ``max_tokens``, which follows the machine's memory, too.
    """
    before, behind = _beside_seed(
        request.temperature,
        request.top_p,
        request.stop_ids,
        request.allowed_ids,
        request.logprob_ids,
        request.sampled_logprobs,
        request.first_entropy,
        request.likelihood_from,
    )
    ids = request.prompt_ids
    state = ids.hashed() if isinstance(ids, Ids) else blake2b(array("I", ids), digest_size=DIGEST_BYTES)
    state.update(f"{before}{request.seed}{behind}".encode())
    return b2a_base64(state.digest(), newline=False).translate(_URL_SAFE).decode("ascii")


@lru_cache(maxsize=256, typed=True)
def _beside_seed(temperature: float, top_p: float, *rest: object) -> tuple[str, str]:
    """Returns the written form of what a digest is of, before and behind the seed: the same for all requests of a kind."""
    before, _, behind = repr((temperature, top_p, ..., *rest)).partition(repr(...))
    return before, behind


_FINISHES = frozenset(get_args(Finish))


def _no_values() -> list[Any]:
    return []  # a call of list[int], which the type checker would want, takes five times as long


@dataclass(slots=True)
class RequestState:
    """One request and what became of it so far; complete enough to be accounted for at any moment.

    ``place``: the number of the engine in its lane. ``ready_s``: when, on the loop's clock, its track could have
    continued. ``queue_s`` and ``engine_s``: seconds waited for the engine, and seconds in it, up to the last delta.
    ``cut``: the stream is over without a finish, since an earlier attempt of the run ended there. ``recorded``: the
    trace's reports of this request, used instead of new ones if a trace answers it.
    """

    request: Request
    engine: str
    place: int = 0
    ready_s: float | None = None
    ids: list[int] = field(default_factory=_no_values)
    finish: Finish | None = None
    logprobs: Mapping[int, float] | None = None
    cached_tokens: int = 0
    sampled_logprobs: list[float] = field(default_factory=_no_values)
    first_entropy: float | None = None
    prompt_logprobs: Sequence[float] | None = None
    queue_s: float = 0.0
    engine_s: float = 0.0
    answered: bool = False
    cut: bool = False
    recorded: RecordedReports | None = None
    _reports: int = 0
    _reported_tokens: int = 0
    _reported_s: float = 0.0

    def take(self, delta: Delta) -> None:
        """Takes a delta. Raises EngineError if log-probabilities are missing that were asked for, or it has too many tokens."""
        request, ids = self.request, delta.ids
        if request.sampled_logprobs and len(delta.sampled_logprobs) != len(ids):
            raise EngineError(f"Engine {self.engine} does not say how probable its tokens were, which a gate needs.")
        if self.recorded is None and len(self.ids) + len(ids) > request.max_tokens:
            raise EngineError(
                f"Engine {self.engine} wrote more than the {request.max_tokens} tokens that it was asked for."
            )
        if delta.finish is not None and delta.finish not in _FINISHES:
            raise EngineError(f"Engine {self.engine} ended request {request.id} for no reason that is known.")
        self.ids.extend(ids)
        self.finish = delta.finish
        self.answered = True
        if delta.logprobs is not None:
            self.logprobs = _all_finite(delta.logprobs)
        if (cached := delta.cached_tokens) is not None:
            # Of a request that went on elsewhere the engine also found what had come behind the prompt.
            self.cached_tokens = cached and min(max(0, cached), len(request.prompt_ids))
        if delta.sampled_logprobs:
            self.sampled_logprobs.extend(map(_finite, delta.sampled_logprobs))
        if delta.first_entropy is not None and isfinite(delta.first_entropy):
            self.first_entropy = delta.first_entropy
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = tuple(map(_finite, delta.prompt_logprobs))
        if request.likelihood_from is not None and self.prompt_logprobs is None:
            raise EngineError(f"Engine {self.engine} gives no likelihood of a prompt. Use --scorer judge with it.")
        if request.logprob_ids and not (self.logprobs or {}).keys() >= set(request.logprob_ids):
            raise EngineError(f"Engine {self.engine} does not say how probable each digit is, which a score needs.")

    @property
    def lasting(self) -> bool:
        """Whether it brings step after step: a write does not stop at a step's end, and may keep its place for minutes."""
        return self.request.priority >= RANK_WIDTH and not self.request.stop_ids and self.request.max_tokens > 1

    @property
    def over(self) -> bool:
        """Whether everything has arrived and was reported."""
        return self.finish is not None and not self.unreported_tokens

    @property
    def unreported_tokens(self) -> int:
        return len(self.ids) - self._reported_tokens

    @property
    def owes_report(self) -> bool:
        """Whether closing the request now leaves something to account for. A trace knows this better than the tokens
        that arrived: it may have tokens that came after the last share was made, or say that the request was never
        accounted for.
        """
        if self.recorded is not None and self.recorded.left:
            return self.recorded.dropped_next
        return self.unreported_tokens > 0

    def report(
        self, tokens: int | None = None, *, kept: Sequence[int] | None = None, digits: bool = False
    ) -> Operation:
        """Returns the cost since the last report, of the next ``tokens`` output tokens (by default of all that arrived).

        The sum over all reports of a request is its whole cost. ``kept``: the ids of the step that the share goes to,
        from where the share begins; the operation also gets the ids beside them, so that a replay can answer the
        request with all that the loop saw. None if the request was abandoned: no replay will answer it. ``digits``:
        whether the event has the log-probabilities of the request's ``logprob_ids``.
        """
        start, request = self._reported_tokens, self.request
        first = not self._reports
        self._reports += 1
        tokens = len(self.ids) - start if tokens is None else tokens
        seconds = self.engine_s - self._reported_s
        self._reported_tokens += tokens
        self._reported_s = self.engine_s
        operation = make_operation(
            id=request.id,
            engine=self.engine,
            seed=request.seed,
            # A request abandoned before its first token may never have been read: its tokens are unknown.
            prompt_tokens=len(request.prompt_ids) if first and self.answered else 0,
            cached_tokens=self.cached_tokens if first else 0,
            output_tokens=tokens,
            queue_s=six_digits(self.queue_s) if first else 0.0,  # more digits would only lengthen the trace
            engine_s=six_digits(seconds),
            digest=digest(request) if first else "",
            **({} if kept is None else self._beside(kept, start, tokens, digits)),
        )
        return operation if self.recorded is None else self.recorded.report(operation)

    def _beside(self, kept: Sequence[int], start: int, tokens: int, digits: bool) -> dict[str, Any]:
        """Returns the fields of an operation that a replay needs beside the step that it went to. Most have none to add."""
        fields: dict[str, Any] = {"finish": self.finish}
        if self.finish == "length" and len(self.ids) < self.request.max_tokens:
            fields["early"] = True
        share = self.ids[start : start + tokens]
        if not kept:
            fields["tail"] = tuple(share)
        elif share != kept:
            same = min(len(share), len(kept))
            if share[:same] != list(kept[:same]):
                same = next(place for place, token in enumerate(kept) if token != share[place])
            if same < len(share):
                fields["tail"] = tuple(share[same:])
        if start + tokens < len(self.ids):
            fields["ahead"] = tuple(self.ids[start + tokens :])
        if self.sampled_logprobs:
            fields["sampled_logprobs"] = tuple(self.sampled_logprobs[start:])
        if start == 0:
            fields["first_entropy"] = self.first_entropy
            if self.logprobs and not digits:
                fields["logprobs"] = tuple(self.logprobs.values())
            if self.prompt_logprobs is not None:
                fields["prompt_logprobs"] = tuple(self.prompt_logprobs)
        return fields


class RecordedReports(Protocol):
    """The reports of one request that a trace has, in order."""

    @property
    def left(self) -> int:
        """How many have not been made again."""
        ...

    @property
    def dropped_next(self) -> bool:
        """Whether the next one says that the request was abandoned."""
        ...

    def report(self, now: Operation) -> Operation:
        """Returns the next one: what only the engine could know comes from the trace, the rest from ``now``."""
        ...


def _finite(logprob: float) -> float:
    """Replaces what is infinite or no number by ``LOGPROB_MIN``."""
    return logprob if LOGPROB_MIN < logprob < inf else LOGPROB_MIN


def _all_finite(logprobs: Mapping[int, float]) -> Mapping[int, float]:
    values = logprobs.values()
    if values and min(values) > LOGPROB_MIN and isfinite(sum(values)):  # one that is no number makes the sum none
        return logprobs
    return dict(zip(logprobs, map(_finite, values), strict=True))


class RequestLane(Protocol):
    """The protocol of what a track's requests go to: a lane, or a trace with a lane behind it."""

    @property
    def engine(self) -> Engine: ...

    @property
    def engines(self) -> Sequence[Engine]: ...

    def recall(self, request_state: RequestState) -> None:
        """Gives a new request what a trace says of it, before it is sent or abandoned."""
        ...

    def wants_place(self, request_state: RequestState) -> bool:
        """Returns whether a more urgent request waits for a place such as this one in flight holds."""
        ...

    def fly(self, request_state: RequestState) -> AbstractAsyncContextManager[AsyncIterator[Delta]]: ...

    async def run(self, request_state: RequestState) -> None: ...
