"""Runs requests on a server elsewhere, behind the ``Engine`` protocol.

A request that breaks off goes on where it stopped: it is sent again with the ids that had come behind its prompt. What a
server sends is checked before anybody believes it (``dialects.checked``).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from speclrm.runtime.engine import LOGPROB_MIN, Delta, EngineStats, Finish, Request, continued
from speclrm.runtime.engines.confidence import ENTROPY_TOP, entropy_of
from speclrm.runtime.engines.http.client import Trouble
from speclrm.runtime.engines.http.dialects import MISSHAPED, Ask, checked
from speclrm.runtime.engines.http.hints import RouterHints, hints
from speclrm.runtime.engines.http.retries import Retries
from speclrm.runtime.engines.http.texts import TextToIds
from speclrm.runtime.errors import CapacityError, EngineDeadError, FailureReason, RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from speclrm.runtime.engine import Tokenizer
    from speclrm.runtime.engines.http.capabilities import Capabilities
    from speclrm.runtime.engines.http.client import Client, Kind
    from speclrm.runtime.engines.http.dialects import Dialect, Piece

LENGTH_UNKNOWN = 1 << 20
"""Taken for the context of a server that does not say its own."""
_REASONS: dict[Kind, FailureReason] = {
    "unreachable": "died",
    "dropped": "died",
    "silent": "hung",
    "busy": "overloaded",
    "failed": "died",
    "forbidden": "refused",
    "missing": "refused",
    "garbage": "garbage",
}
_WITH_THE_SERVER = frozenset({"unreachable", "busy", "forbidden", "missing", "garbage"})
"""Kinds of trouble that are the server's as a whole, not one request's."""


class HttpEngine:
    """One server. ``model``: its name there; ``extra``: fields of every request's body."""

    def __init__(
        self,
        name: str,
        client: Client,
        dialect: Dialect,
        capabilities: Capabilities,
        tokenizer: Tokenizer,
        model: str,
        *,
        connections: int | None = None,
        extra: Mapping[str, Any] | None = None,
        router_hints: RouterHints = "none",
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.capabilities = capabilities
        self.max_model_len = capabilities.max_model_len or LENGTH_UNKNOWN
        self.max_num_seqs = connections or capabilities.max_num_seqs
        self.client = client
        self._dialect = dialect
        self._model = model
        self._extra = dict(extra or {})
        self._router_hints: RouterHints = router_hints
        self._ends = tuple(sorted(tokenizer.vocabulary.end_ids))
        self._retries = Retries()
        self._numbers = itertools.count()
        self._running = self._progress = self._prompt_tokens = self._output_tokens = 0
        self._down = self._closed = False
        self.replied_as: str | None = None
        self.last_prompt_tokens: int | None = None
        """Of the last answer: the name that it gave the model, and the length of its prompt by the server's count."""

    # -------------------------------------------------------------------------------------------------------- requests

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        self._check(request)
        received: list[int] = []
        met: Counter[Kind] = Counter()
        self._running += 1
        try:
            while True:
                try:
                    async with aclosing(self._deltas(continued(request, received))) as deltas:
                        async for delta in deltas:
                            received.extend(delta.ids)
                            self._output_tokens += len(delta.ids)
                            yield delta
                    self._retries.went_well()
                    return
                except Trouble as trouble:
                    met[trouble.kind] += 1
                    await self._after(trouble, request, met[trouble.kind])
                if len(received) >= request.max_tokens:  # it broke off behind the last token
                    yield Delta((), "length")
                    return
        finally:
            self._running -= 1

    async def _after(self, trouble: Trouble, request: Request, met: int) -> None:
        """Waits until the request is to be sent again. Raises what it has come to if it is not."""
        wait_s = self._retries.after(trouble, met).wait_s
        if wait_s is not None:
            await asyncio.sleep(wait_s)
            return
        if trouble.kind == "refused":
            raise RequestError(f"{self.name} refused request {request.id}: {trouble.text}") from trouble
        if trouble.kind not in _WITH_THE_SERVER and not self._retries.spent:
            try:
                await self.check()
            except EngineDeadError as dead:
                dead.reason = self._dead(trouble).reason
                raise
            raise RequestError(
                f"{self.name} works, and request {request.id} fails there each time: {trouble.text}"
            ) from trouble
        raise self._dead(trouble) from trouble

    def _check(self, request: Request) -> None:
        if self._closed:
            raise EngineDeadError(f"Engine {self.name} was closed.")
        length = len(request.prompt_ids) + request.max_tokens
        if length > self.max_model_len:
            raise CapacityError(
                f"Request {request.id} needs {length} tokens and {self.name} takes {self.max_model_len}. Use a smaller "
                "--token-budget or a shorter problem."
            )

    def _ask(self, request: Request) -> Ask:
        able = self.capabilities
        top: int | None = 0 if request.sampled_logprobs else None
        if request.first_entropy:
            top = min(ENTROPY_TOP, able.top_logprobs)
        exact = bool(request.logprob_ids) and able.scores == "exact"
        if request.logprob_ids and able.scores != "digit":
            top = 1 if exact else able.top_logprobs
        return Ask(
            request=request,
            model=self._model,
            prompt=list(request.prompt_ids) if able.ids else self._text(request),
            tag=f"{request.id}#{next(self._numbers)}",
            ends=self._ends,
            stream=request.max_tokens > 1 and request.likelihood_from is None,
            top=top,
            exact=exact,
            restrict=self._dialect.kind == "vllm",
            likelihood=request.likelihood_from is not None,
            seeds=able.seeds,
            priority=able.priority,
            extra={**self._extra, **hints(request, self._router_hints)},
        )

    def _text(self, request: Request) -> str:
        ids = request.prompt_ids
        if self.capabilities.adds_begin and len(ids) and ids[0] in self.tokenizer.vocabulary.control_ids:
            ids = ids[1:]
        return self.tokenizer.decode(ids)

    async def _deltas(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Sends a request once. Raises Trouble."""
        ask = self._ask(request)
        answer = _Answer(self, ask)
        body = self._dialect.body(ask)
        if not ask.stream:
            for delta in answer.take(await self.client.post(self._dialect.path, body)):
                yield delta
        else:
            async with aclosing(self.client.pieces(self._dialect.path, body)) as messages:
                async for message in messages:
                    if message is None:
                        break
                    for delta in answer.take(message):
                        yield delta
                    if answer.cut:
                        break
        for delta in answer.end():
            yield delta

    def read(self, message: Mapping[str, Any], ask: Ask, seen: int) -> Piece:
        """Reads one message and checks it. Raises Trouble."""
        try:
            piece = self._dialect.read(message, ask, seen)
        except MISSHAPED as error:
            raise Trouble("garbage", f"its answer has another form than {self._dialect.kind}'s ({error})") from None
        self._progress += 1
        self.replied_as = piece.model or self.replied_as
        known = self.capabilities.replies_as
        if known is not None and piece.model is not None and piece.model != known:
            raise Trouble(
                "garbage", f"it answers as {piece.model!r}, and did as {known!r} before: it has another model"
            )
        return checked(piece, ask, seen, self.tokenizer.vocabulary.size)

    def count_prompt(self, piece: Piece) -> None:
        if piece.prompt_tokens is not None:
            self.last_prompt_tokens = piece.prompt_tokens
            self._prompt_tokens += piece.prompt_tokens - (piece.cached or 0)

    # ---------------------------------------------------------------------------------------------------------- health

    async def check(self) -> None:
        """Returns if the server works and has the model. Raises EngineDeadError."""
        try:
            path = self._dialect.health
            if path.startswith("/"):
                await self.client.text(path)  # vLLM answers 503 when its engine is dead
            if self._dialect.kind in ("vllm", "openai"):
                found = await self.client.get("models")
                names = [one["id"] for one in found["data"]]
                if self._model not in names:
                    raise Trouble("missing", f"it has {', '.join(map(str, names))}, and no {self._model}")
        except Trouble as trouble:
            kind = "failed" if trouble.kind == "busy" else trouble.kind
            raise self._dead(Trouble(kind, trouble.text)) from None
        except MISSHAPED:
            raise self._dead(Trouble("garbage", "it does not say which models it has")) from None
        self._down = False

    def _dead(self, trouble: Trouble) -> EngineDeadError:
        self._down = True
        error = EngineDeadError(
            f"{self.name} does not work: {self.client.hide(trouble.text)}. Start it again, or give others with --target-url or "
            "--draft-url; what was committed is in the trace."
        )
        error.reason = _REASONS.get(trouble.kind, "died")
        if "out of memory" in trouble.text.lower():
            error.reason = "out_of_memory"
        return error

    def stats(self) -> EngineStats:
        return EngineStats(
            name=self.name,
            running=self._running,
            waiting=0,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            progress=self._progress,
            alive=not self._closed and not self._down,
            kv_tokens=self.capabilities.kv_tokens,
        )

    async def aclose(self) -> None:
        self._closed = True
        await self.client.aclose()


class _Answer:
    """Turns a server's messages into deltas. ``cut``: it is complete, whatever the server would still send."""

    def __init__(self, engine: HttpEngine, ask: Ask) -> None:
        self._engine = engine
        self._ask = ask
        self._request = ask.request
        self._vocabulary = engine.tokenizer.vocabulary
        self._texts: TextToIds | None = None
        self._seen = self._count = 0
        self._first = True
        self._last: Delta | None = None
        self._cached: int | None = None
        self._stops = frozenset(self._request.stop_ids)
        self.cut = False

    def take(self, message: Mapping[str, Any]) -> Iterator[Delta]:
        piece = self._engine.read(message, self._ask, self._seen)
        self._engine.count_prompt(piece)
        self._cached = piece.cached if piece.cached is not None else self._cached
        if piece.ids is None and not piece.text and piece.finish is None:
            able = self._engine.capabilities
            if able.ids and piece.total is not None and piece.total != self._seen:
                raise Trouble("garbage", f"it counts {piece.total} tokens, and {self._seen} came")
            return
        if self._last is not None:
            if piece.ids or piece.text:
                raise Trouble("garbage", "its answer goes on after its end")
            return
        self._seen += len(piece.ids) if piece.ids is not None else 0
        if piece.ids is None and piece.total is not None:
            self._seen = piece.total
        yield from self._delta(piece, self._encoded(piece) if piece.ids is None else piece.ids)

    def _encoded(self, piece: Piece) -> tuple[int, ...]:
        self._texts = self._texts or TextToIds(self._engine.tokenizer)
        ids = self._texts.feed(piece.text)
        if piece.finish is not None or self._engine.capabilities.ids:
            ids += self._texts.end()
        return tuple(ids)

    def _delta(self, piece: Piece, ids: tuple[int, ...]) -> Iterator[Delta]:
        request = self._request
        ids, finish = self._ended(piece, ids)
        self._count += len(ids)
        if self._count > request.max_tokens and piece.ids is not None:
            raise Trouble("garbage", f"it wrote {self._count} tokens where {request.max_tokens} were asked for")
        sampled = piece.sampled[: len(ids)] if request.sampled_logprobs else ()
        if request.sampled_logprobs and len(sampled) != len(ids):
            raise Trouble("garbage", f"it gives {len(piece.sampled)} log-probabilities for {len(ids)} tokens")
        if not ids and finish is None:
            return  # nothing that is certain yet
        if request.likelihood_from is not None and piece.prompt_logprobs is None:
            raise Trouble("garbage", "it gives no log-probabilities of the prompt")
        delta = Delta(ids, finish, sampled_logprobs=sampled, cached_tokens=piece.cached)
        if self._first:
            self._first = False
            delta = replace(
                delta,
                logprobs=self._logprobs(piece, ids) if request.logprob_ids else None,
                first_entropy=self._entropy(piece) if request.first_entropy else None,
                prompt_logprobs=piece.prompt_logprobs,
            )
        if finish is None:
            yield delta
        else:
            self._last = delta

    def _ended(self, piece: Piece, ids: tuple[int, ...]) -> tuple[tuple[int, ...], Finish | None]:
        """Cuts ids behind a token that ends the output, and says why it ended, if it did."""
        for place, token in enumerate(ids):
            if token in self._vocabulary.end_ids:
                self.cut = place < len(ids) - 1 or piece.finish is None
                return ids[:place], "end"
            if token in self._stops:
                self.cut = place < len(ids) - 1 or piece.finish is None
                return ids[: place + 1], "stop"
        if piece.finish is None:
            return ids, None
        if piece.finish not in ("stop", "length"):
            raise Trouble("failed", f"it ended the request: {piece.finish}")
        return ids, "end" if piece.finish == "stop" else "length"

    def _logprobs(self, piece: Piece, ids: tuple[int, ...]) -> dict[int, float]:
        wanted = self._request.logprob_ids
        decode = self._engine.tokenizer.decode
        if self._ask.top is None:  # the token itself is all that is known
            said = decode(ids[:1]).strip() if ids else piece.text.strip()
            return {token: 0.0 if decode([token]).strip() == said else LOGPROB_MIN for token in wanted}
        if not piece.tops:
            raise Trouble("garbage", "it gives no log-probabilities, though it was asked for them")
        top = piece.tops[0]
        if self._ask.exact and not set(wanted) <= set(top):
            raise Trouble("garbage", "it leaves out log-probabilities that it was asked for")
        if piece.ids is not None:
            return {token: top.get(token, LOGPROB_MIN) for token in wanted}
        found: dict[int, float] = {}
        for token in wanted:
            text = decode([token]).strip()
            shares = [math.exp(value) for name, value in top.items() if isinstance(name, str) and name.strip() == text]
            found[token] = math.log(total) if (total := math.fsum(shares)) > 0 else LOGPROB_MIN
        return found

    def _entropy(self, piece: Piece) -> float | None:
        if not piece.tops:
            return None
        return entropy_of(sorted(piece.tops[0].values(), reverse=True)[:ENTROPY_TOP])

    def end(self) -> Iterator[Delta]:
        """Yields the last delta, which waited for what a server says behind it. Raises Trouble if there was none."""
        if self._last is None:
            raise Trouble("dropped", "its answer broke off before its end")
        cached = self._last.cached_tokens if self._last.cached_tokens is not None else self._cached
        yield replace(self._last, cached_tokens=cached)
