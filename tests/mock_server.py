"""A small server of completions that speaks the dialects of real ones, from their published forms, and misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from speclrm.runtime.engine import Tokenizer

Message = dict[str, Any]


def says(text: str) -> Callable[[str], str]:
    """A model that always writes the same, from where its prompt ends if that holds a part of it already."""

    def write(prompt: str) -> str:
        for length in range(len(text), 0, -1):
            if prompt.endswith(text[:length]):
                return text[length:]
        return text

    return write


@dataclass
class MockServer:
    """``write``: what follows a prompt. ``score``: the digit that a request for one token gets. ``piece``: tokens in a message.

    ``lacks``: fields that it refuses with 400. ``before``: called with each request for text and its number, from 0; a response
    that it returns is sent instead. ``mangle``: changes the messages of an answer. ``drop_after``: messages after which it closes
    the connection of an answer. ``wait_s``: before each message. ``checked``: called when it is asked for its health.
    """

    tokenizer: Tokenizer
    kind: str = "vllm"
    model: str = "m"
    write: Callable[[str], str] = field(default_factory=lambda: says("Two and two is four.\n\nSo it is 4."))
    score: int = 7
    piece: int = 4
    max_model_len: int = 4096
    key: str | None = None
    lacks: Sequence[str] = ()
    logprobs_max: int = 20
    tokenize: Callable[[str], list[int]] | None = None
    before: Callable[[int, Message], web.Response | None] | None = None
    mangle: Callable[[list[Message]], list[Message]] = list
    drop_after: Callable[[int], int | None] = lambda number: None
    models: web.Response | None = None
    healthy: bool = True
    checked: Callable[[], None] = lambda: None
    wait_s: float = 0.0
    url: str = ""
    port: int = 0
    bodies: list[Message] = field(default_factory=list[Message])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    aborted: int = 0
    running: int = 0
    most_running: int = 0

    # ----------------------------------------------------------------------------------------------------------- the life

    @asynccontextmanager
    async def started(self, port: int = 0) -> AsyncGenerator[MockServer]:
        app = web.Application(middlewares=[self._checked], client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/props", self._props)
        app.router.add_get("/get_server_info", self._info)
        app.router.add_post("/tokenize", self._tokenize)
        for path in ("/v1/completions", "/generate", "/completion", "/api/generate"):
            app.router.add_post(path, self._complete)
        # An answer under way is ended when the client goes away, as real servers do.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.port = port or runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        given = request.headers.get("Authorization")
        if self.key is not None and given != f"Bearer {self.key}":
            # As some do, it quotes what it was given.
            return web.json_response({"error": {"message": f"Incorrect API key provided: {given}"}}, status=401)
        return await handler(request)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if self.models is not None:
            return self.models
        owner = {"vllm": "vllm", "sglang": "sglang", "llama.cpp": "llamacpp", "ollama": "library"}.get(self.kind, "me")
        one: Message = {"id": self.model, "object": "model", "owned_by": owner}
        if self.kind == "vllm":
            one["max_model_len"] = self.max_model_len
        return web.json_response({"object": "list", "data": [one]})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        self.checked()
        return web.json_response({}, status=200 if self.healthy else 503)

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "0.40"}) if self.kind == "ollama" else web.Response(status=404)

    async def _props(self, request: web.Request) -> web.StreamResponse:
        if self.kind != "llama.cpp":
            return web.Response(status=404)
        facts = {"default_generation_settings": {"n_ctx": self.max_model_len}, "total_slots": 4, "build_info": "b1"}
        return web.json_response(facts)

    async def _info(self, request: web.Request) -> web.StreamResponse:
        if self.kind != "sglang":
            return web.Response(status=404)
        return web.json_response({"version": "0.5", "context_length": self.max_model_len, "max_total_num_tokens": 9000})

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body.get("content", body.get("prompt"))
        return web.json_response({"tokens": (self.tokenize or self.tokenizer.encode)(text)})

    # ------------------------------------------------------------------------------------------------------------ answers

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        if (said := self.before and self.before(number, body)) is not None:
            return said
        for name in self.lacks:
            if body.get(name) is not None and (name, body[name]) != ("priority", 0):
                return web.json_response({"error": {"message": f"{name} is not supported"}}, status=400)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._answer(request, body, number)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: Message, number: int) -> web.StreamResponse:
        messages = self.mangle(self.messages(body))
        if not body.get("stream", False):
            await asyncio.sleep(self.wait_s)
            return web.json_response(messages[0])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        limit = self.drop_after(number)
        for place, message in enumerate(messages):
            if limit is not None and place >= limit:
                assert request.transport is not None
                request.transport.abort()
                return response
            await asyncio.sleep(self.wait_s)
            line = json.dumps(message)
            await response.write((f"{line}\n" if self.kind == "ollama" else f"data: {line}\n\n").encode())
        if self.kind in ("vllm", "openai", "sglang"):
            await response.write(b"data: [DONE]\n\n")
        return response

    def messages(self, body: Message) -> list[Message]:
        prompt: str | list[int] = body["input_ids"] if "input_ids" in body else body["prompt"]
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
        given = len(self.tokenizer.encode(text)) if isinstance(prompt, str) else len(prompt)
        sampling: Message = body.get("sampling_params") or body.get("options") or body
        limit = sampling.get(
            "max_tokens", sampling.get("max_new_tokens", sampling.get("n_predict", sampling.get("num_predict")))
        )
        stops: set[int] = set(sampling.get("stop_token_ids") or ())
        vocabulary = self.tokenizer.vocabulary
        whole = [*self.tokenizer.encode(self.write(text)), min(vocabulary.end_ids)]
        if limit == 1:
            whole = self.tokenizer.encode(str(self.score))
        ids: list[int] = []
        finish = "length"
        for token in whole[:limit]:
            ids.append(token)
            if token in stops or token in vocabulary.end_ids:
                finish = "stop"
                break
        pieces = [ids[start : start + self.piece] for start in range(0, len(ids), self.piece)] or [[]]
        if not body.get("stream", False):
            pieces = [ids]
        made: list[Message] = []
        total = 0
        for place, piece in enumerate(pieces):
            total += len(piece)
            last = finish if place == len(pieces) - 1 else None
            made.append(getattr(self, f"_{self.kind.replace('.', '_')}")(body, piece, total, last, given, ids))
        if self.kind in ("vllm", "openai") and body.get("stream") and body.get("stream_options"):
            usage = {"prompt_tokens": given, "completion_tokens": total, "prompt_tokens_details": {"cached_tokens": 16}}
            made.append({"model": self.model, "choices": [], "usage": usage})
        return made

    def _tops(self, token: int, count: int) -> dict[int, float]:
        """The sampled token, and the digits around the score, most probable first."""
        digits = [self.tokenizer.encode(str(digit))[-1] for digit in range(10)]
        order = sorted(range(10), key=lambda digit: (abs(digit - self.score), digit))
        values = {digits[digit]: math.log(0.9 * 0.5 ** (rank + 1)) for rank, digit in enumerate(order)}
        if token not in values:
            values = {token: math.log(0.5), **{one: value - 10 for one, value in values.items()}}
        return dict(list(values.items())[: max(1, count)])

    def _text_of(self, piece: list[int]) -> str:
        return self.tokenizer.decode([one for one in piece if one not in self.tokenizer.vocabulary.end_ids])

    def _openai(
        self, body: Message, piece: list[int], total: int, finish: str | None, given: int, ids: list[int]
    ) -> Message:
        choice: Message = {"index": 0, "text": self._text_of(piece), "finish_reason": finish, "logprobs": None}
        if (top := body.get("logprobs")) is not None:
            wanted = body.get("logprob_token_ids")

            def name(token: int) -> str:
                return f"token_id:{token}" if body.get("return_tokens_as_token_ids") else self.tokenizer.decode([token])

            tops = [self._tops(token, 10 if wanted else min(top, self.logprobs_max)) for token in piece]
            choice["logprobs"] = {
                "tokens": [name(token) for token in piece],
                "token_logprobs": [found.get(token, -3.0) for token, found in zip(piece, tops, strict=True)],
                "top_logprobs": [{name(one): value for one, value in found.items()} for found in tops],
            }
        message: Message = {"id": "c", "model": self.model, "choices": [choice]}
        if not body.get("stream") or self.kind == "vllm":
            message["usage"] = {"prompt_tokens": given, "completion_tokens": total}
        return message

    def _vllm(
        self, body: Message, piece: list[int], total: int, finish: str | None, given: int, ids: list[int]
    ) -> Message:
        message = self._openai(body, piece, total, finish, given, ids)
        choice = message["choices"][0]
        if body.get("return_token_ids"):
            choice["token_ids"] = piece
        if body.get("prompt_logprobs") is not None:
            entries = [{str(token): {"logprob": -0.5, "rank": 1}} for token in body["prompt"]]
            choice["prompt_logprobs"] = [None, *entries[1:]]
        return message

    def _sglang(
        self, body: Message, piece: list[int], total: int, finish: str | None, given: int, ids: list[int]
    ) -> Message:
        about: Message = {"prompt_tokens": given, "completion_tokens": total, "cached_tokens": 8, "finish_reason": None}
        if finish:
            about["finish_reason"] = {"type": finish} | ({"matched": ids[-1]} if finish == "stop" else {})
        if body.get("return_logprob"):
            about["output_token_logprobs"] = [[-0.5, token, None] for token in ids[:total]]
            if wanted := body.get("token_ids_logprob"):
                found = [self._tops(token, 10) for token in ids[:total]]
                about["output_token_ids_logprobs"] = [[[one[token], token, None] for token in wanted] for one in found]
            if (start := body.get("logprob_start_len")) is not None:
                about["input_token_logprobs"] = [
                    [None if not start else -0.5, one, None] for one in body["input_ids"][start:]
                ]
        return {"text": "", "output_ids": ids[:total], "meta_info": about}

    def _llama_cpp(
        self, body: Message, piece: list[int], total: int, finish: str | None, given: int, ids: list[int]
    ) -> Message:
        message: Message = {
            "content": self._text_of(piece),
            "tokens": piece,
            "tokens_predicted": total,
            "stop": bool(finish),
        }
        if finish:
            message |= {"stop_type": "eos" if finish == "stop" else "limit", "tokens_evaluated": given}
        if body.get("n_probs"):
            message["completion_probabilities"] = [
                {
                    "id": token,
                    "logprob": self._tops(token, 10).get(token, -3.0),
                    "top_logprobs": [{"id": one, "logprob": value} for one, value in self._tops(token, 10).items()],
                }
                for token in piece
            ]
        return message

    def _ollama(
        self, body: Message, piece: list[int], total: int, finish: str | None, given: int, ids: list[int]
    ) -> Message:
        message: Message = {"model": self.model, "response": self._text_of(piece), "done": bool(finish)}
        if finish:
            message |= {"done_reason": finish, "prompt_eval_count": given, "eval_count": total}
        if body.get("logprobs"):
            message["logprobs"] = [
                {
                    "token": self.tokenizer.decode([token]),
                    "logprob": -0.5,
                    "top_logprobs": [
                        {"token": self.tokenizer.decode([one]), "logprob": value}
                        for one, value in self._tops(token, body.get("top_logprobs", 0)).items()
                    ],
                }
                for token in piece
            ]
        return message


def without(messages: list[Message], place: int) -> list[Message]:
    return messages[:place] + messages[place + 1 :]


def twice(messages: list[Message], place: int) -> list[Message]:
    return [*messages[: place + 1], *messages[place:]]


def swapped(messages: list[Message], place: int) -> list[Message]:
    return [*messages[:place], messages[place + 1], messages[place], *messages[place + 2 :]]


@contextmanager
def serving(*servers: MockServer) -> Generator[None]:
    """Runs servers in a thread, for commands that have a loop of their own."""
    ready, over = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server.started())
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join(10)
