"""Defines the protocols ``Engine`` and ``Tokenizer``, and their requests and deltas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, TypeVar, dataclass_transform, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from pydantic import JsonValue

    from speclrm.runtime.errors import FailureReason


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Makes a dataclass that the type checker lets nobody change. One that is frozen takes three times as long to make."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


class Message(TypedDict):
    """One turn of a conversation, in the form that chat templates take."""

    role: Literal["system", "user", "assistant"]
    content: str


@record
class Request:
    """A request to an engine: token ids in, token ids out.

    ``stop_ids`` end the output and belong to it. ``allowed_ids`` restricts sampling; ``logprob_ids`` asks for the
    natural-log probabilities of just these ids at the first generated position (taken before temperature and before the
    restriction). ``sampled_logprobs`` asks for those of each generated id, ``first_entropy`` for the entropy (nats) of
    the first generated position over its twenty most probable ids, made to sum to one. ``likelihood_from`` asks for the
    log-probabilities of the prompt's own ids from that position on, each given all before it. A lower ``priority`` is
    served earlier. ``seed`` None means unseeded.
    """

    id: str
    prompt_ids: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    allowed_ids: tuple[int, ...] = ()
    logprob_ids: tuple[int, ...] = ()
    sampled_logprobs: bool = False
    first_entropy: bool = False
    likelihood_from: int | None = None
    priority: int = 0


def continued(request: Request, ids: Sequence[int]) -> Request:
    """Returns the request for what is left of an output of which these ids have come: with the same id and seed."""
    if not ids:
        return request
    return replace(
        request,
        prompt_ids=[*request.prompt_ids, *ids],
        max_tokens=request.max_tokens - len(ids),
        logprob_ids=(),
        first_entropy=False,
        likelihood_from=None,
    )


LOGPROB_MIN = -1e9
"""Replaces log-probabilities of minus infinity, which JSON lacks and of which no mean is a number. No real one comes
near it, and its exponential is 0 all the same."""


Finish = Literal["stop", "length", "end"]
"""Why an engine stopped: a stop id, the token limit, or the model's own end of text or turn."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next tokens of an output. ``finish`` is set on the last delta, and only there.

    The id of a stop token is part of ``ids``; the model's own end-of-text id is not. ``logprobs`` maps each of the
    request's ``logprob_ids`` to its natural-log probability, on the first delta. ``cached_tokens``: prompt tokens found
    in the engine's prefix cache, None if the engine does not say. ``sampled_logprobs``: one for each of ``ids``, if the
    request asked for them. ``first_entropy`` (nats) and ``prompt_logprobs`` (one for each prompt id from
    ``likelihood_from`` on): on the first delta, if asked for. An engine that cannot compute an entropy gives None.
    """

    ids: tuple[int, ...]
    finish: Finish | None = None
    logprobs: Mapping[int, float] | None = None
    cached_tokens: int | None = None
    sampled_logprobs: tuple[float, ...] = ()
    first_entropy: float | None = None
    prompt_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot; counters run from the engine's start.

    ``prompt_tokens``: computed, not found in the cache. ``progress``: any number that grows whenever the engine does
    work; it tells a slow engine from a hung one. ``kv_tokens``: size of the KV cache in tokens, None if unknown.
    ``iterations``; ``batched``: the sum of running requests over them; ``preemptions``: all 0 if the engine does not
    count them. ``parameters``: of the model, None if unknown.
    """

    name: str
    running: int
    waiting: int
    prompt_tokens: int
    output_tokens: int
    progress: int
    alive: bool = True
    kv_tokens: int | None = None
    iterations: int = 0
    batched: int = 0
    preemptions: int = 0
    parameters: int | None = None


class Engine(Protocol):
    """Turns token ids into token ids.

    Leaving the stream early, by closing it or by cancellation, aborts the request inside the engine at once.
    Raises: RequestError for this request alone, EngineDeadError when no request can succeed any more,
    CapacityError when prompt and ``max_tokens`` exceed ``max_model_len``.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def max_model_len(self) -> int:
        """The most tokens that prompt and output may have together."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """The number of requests that the engine runs at the same time."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]: ...

    def stats(self) -> EngineStats: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The facts about a model's token ids that SpecLRM needs.

    ``size``: all ids lie below it; a model may have rows for more, which are nothing.
    ``blank_line_ids``: ids whose text contains a blank line (two newlines). ``newline_ids``: ids whose text ends in
    exactly one newline. ``end_ids``: end of text or of turn. ``special_ids``: all ids that are not plain text (end ids
    and the think marks included). ``think_open``, ``think_close``: the ids of ``<think>`` and ``</think>``, None unless
    the model has them as single tokens. ``fingerprint``: equal for two tokenizers that map plain text to the same ids,
    whatever their marks. ``control_ids``: ids that no text is encoded to, whatever its characters: the special ids, and
    other marks of a conversation.
    """

    size: int
    fingerprint: str
    blank_line_ids: frozenset[int]
    newline_ids: frozenset[int]
    end_ids: frozenset[int]
    special_ids: frozenset[int]
    think_open: int | None = None
    think_close: int | None = None
    control_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "control_ids", self.control_ids | self.special_ids)


class Tokenizer(Protocol):
    """Encodes and decodes text for one model."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def encode(self, text: str) -> list[int]:
        """Encodes untrusted text: a mark in it is characters like any others, never a control id."""
        ...

    def encode_marked(self, text: str) -> list[int]:
        """Encodes text of our own, in which marks become control ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids, special tokens included. A cut UTF-8 character becomes U+FFFD."""
        ...

    def begin(self, text: str, marked: str = "") -> list[int]:
        """Encodes text at the very start of a context, after the mark that the model wants there, if any. ``marked``:
        text of our own that follows it, in which marks become control ids.
        """
        ...

    def render(self, messages: Sequence[Message], *, continue_final: bool = False) -> list[int]:
        """Encodes a conversation with the model's chat template, up to where the assistant's next words go.

        Only the template's own marks are control ids. With ``continue_final`` the last message is the assistant's own
        and is left open.
        """
        ...


@runtime_checkable
class Restartable(Protocol):
    """An engine that can be started anew after it failed. All requests that were in it are lost with it."""

    @property
    def restarts(self) -> int:
        """How often in a row, without a token between, it may be started anew; at least 1."""
        ...

    async def restart(self, reason: FailureReason) -> Mapping[str, JsonValue]:
        """Ends what is left of it, then starts it again; returns when it works. Returns the settings that are others now.

        ``reason``: what it failed with. After ``out_of_memory`` it is started with smaller settings. Raises EngineError
        if it does not start; it may be tried again.
        """
        ...


@runtime_checkable
class MayReturn(Protocol):
    """An engine that may work again after it failed."""

    async def check(self) -> None:
        """Returns if the engine works. Raises EngineDeadError if it does not."""
        ...


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """Seconds: ``w`` an iteration, ``p`` a new token, ``k`` a token of context in an iteration.

    ``slowdown``: by what share an iteration takes longer while another engine works. ``request_s``: from a request's call until
    the engine has it, 0 where that was not measured.
    """

    w: float
    p: float = 0.0
    k: float = 0.0
    slowdown: float = 0.0
    request_s: float = 0.0


@runtime_checkable
class Paceable(Protocol):
    """An engine whose iterations can be held apart."""

    def pace(self, interval_s: float) -> None:
        """Lets each iteration begin at least that many seconds after the one before; 0 for no wait. Takes effect at once."""
        ...


@runtime_checkable
class KnowsItsCosts(Protocol):
    """An engine of which it is known, before it has worked, what its iterations cost."""

    @property
    def known_costs(self) -> EngineCosts | None: ...
