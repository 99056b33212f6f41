"""A server of completions in vLLM's form behind a client that opens no socket: bytes go from one coroutine to another."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import aclosing, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from speclrm.runtime.engine import Request
from speclrm.runtime.engines.http.capabilities import Capabilities
from speclrm.runtime.engines.http.client import Client
from speclrm.runtime.engines.http.dialects import DIALECTS
from speclrm.runtime.engines.http.engine import HttpEngine
from speclrm.runtime.engines.http.retries import Retries
from speclrm.runtime.errors import EngineDeadError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from simulation.engines import Outages, Weather

    from speclrm.runtime.engine import Delta

MODEL = "m"
URL = "http://server/v1"
ADDRESS: Any = SimpleNamespace(ssl=None, host="server", port=80)
IDLE_S = 60.0
"""Seconds without a byte after which the client gives a request up."""
Message = dict[str, Any]
Answer = tuple[int, dict[str, str], "AsyncGenerator[bytes, None]"]


class Server:
    """What stands behind one address."""

    def __init__(self, name: str, outages: Outages, weather: Weather) -> None:
        self.name = name
        self.outages = outages
        self._weather = weather
        self.open = 0
        self._ends = outages.inner.tokenizer.vocabulary.end_ids

    def engine(self) -> HttpEngine:
        """Returns an engine that speaks to it."""
        inner = self.outages.inner
        able = Capabilities(
            server="vllm",
            ids=True,
            scores="exact",
            top_logprobs=20,
            sampled_logprobs=True,
            stops=True,
            priority=True,
            max_model_len=inner.max_model_len,
            max_num_seqs=inner.max_num_seqs,
            kv_tokens=inner.kv_tokens,
            replies_as=MODEL,
        )
        client = Client(URL, idle_limit_s=IDLE_S)
        client._session = Session(self)  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        engine = HttpEngine(self.name, client, DIALECTS["vllm"], able, inner.tokenizer, MODEL)
        engine._retries = Retries(random.Random(f"{self._weather.seed}/{self.name}"))  # pyright: ignore[reportPrivateUsage]
        return engine

    async def answer(self, path: str, body: Message | None) -> Answer:
        """Takes a request. Raises what aiohttp raises where no answer begins."""
        if self.outages.down and not self.outages.rise():
            raise aiohttp.ClientConnectorError(ADDRESS, OSError(111, "refused"))
        if body is None:
            await self.outages.thawed()
            found = {"data": [{"id": MODEL}]} if path.endswith("models") else {}
            return 200, {}, _whole(found)
        number = self.outages.begin()
        kind, draw = self._weather.kind_for(self.name, number)
        if kind is not None and (refused := self._refusal(kind, draw)) is not None:
            return refused
        pieces = self._messages(body, kind, draw)
        if not body.get("stream"):
            return 200, {"Content-Type": "application/json"}, self._at_once(pieces)
        return 200, {"Content-Type": "text/event-stream"}, self._events(pieces, kind, draw)

    def _refusal(self, kind: str, draw: random.Random) -> Answer | None:
        injected = self._weather.injected
        match kind:
            case "refused":
                injected["http refused"] += 1
                status = draw.choice([400, 429, 500, 503, 503])
                wait = (
                    {"Retry-After": draw.choice(["0", "1", "20", "soon"])}
                    if status != 400 and draw.random() < 0.5
                    else {}
                )
                return status, wait, _whole({"error": {"message": "not now"}})
            case "garbage" if draw.random() < 0.4:
                injected["http page"] += 1
                return 200, {"Content-Type": "text/html"}, _bytes(b"<html><body>Bad gateway</body></html>")
            case _:
                return None

    # ------------------------------------------------------------------------------------------------------------ answers

    async def _at_once(self, pieces: AsyncGenerator[Message, None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces) as messages:
            async for message in messages:
                yield json.dumps(message).encode()
                return

    async def _events(
        self, pieces: AsyncGenerator[Message, None], kind: str | None, draw: random.Random
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces) as messages:
            async for message in messages:
                data = f"data: {json.dumps(message)}\n\n".encode()
                if kind == "late" and draw.random() < 0.5:  # torn anywhere, as the net tears
                    self._weather.injected["http torn"] += 1
                    cut = draw.randrange(len(data))
                    yield data[:cut]
                    await asyncio.sleep(draw.uniform(0.0, 0.5))
                    data = data[cut:]
                yield data
        if kind != "cut" or draw.random() < 0.5:
            yield b"data: [DONE]\n\n"

    async def _messages(self, body: Message, kind: str | None, draw: random.Random) -> AsyncGenerator[Message, None]:
        """Yields the messages of an answer, changed as ``kind`` says."""
        request = self._request(body)
        place, number, total = draw.choice([0, 0, 1, 2]), 0, 0
        held: Message | None = None
        self.open += 1
        try:
            async with aclosing(self.outages.inner.stream(request)) as deltas:
                async for delta in deltas:
                    await self.outages.thawed()
                    total += len(delta.ids)
                    message = self._message(request, body, delta, total)
                    if kind is None or number != place:
                        yield message
                        if held is not None:
                            yield held
                            held = None
                    else:
                        for one in await self._changed(message, kind, draw):
                            if kind == "empty":
                                held = one
                            else:
                                yield one
                    number += 1
        except EngineDeadError:
            if draw.random() < 0.5:
                yield {"error": {"message": "EngineCore encountered an issue"}}
                return
            raise aiohttp.ServerDisconnectedError from None
        finally:
            self.open -= 1

    async def _changed(self, message: Message, kind: str, draw: random.Random) -> list[Message]:
        """``empty`` is here a piece that comes behind the next one."""
        self._weather.injected[f"http {'swapped' if kind == 'empty' else kind}"] += 1
        choice: Message = message["choices"][0]
        match kind:
            case "slow" | "late":
                await asyncio.sleep(draw.uniform(0.0, 0.5) * min(IDLE_S, self._weather.stall_s))
            case "hang":
                await asyncio.sleep(10 * IDLE_S)
            case "cut":
                raise draw.choice(
                    [aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError]
                )()
            case "garbage":
                return draw.choice(
                    [[{"choices": []}, {"nothing": 1}], [{**message, "model": "other"}], [{"choices": [7]}]]
                )
            case "counts":
                message["usage"]["completion_tokens"] += draw.choice([-1, 1, 100])
            case "long":
                choice["token_ids"] = [*choice["token_ids"], *[97] * draw.choice([1, 500])]
            case "logprobs":
                choice["logprobs"] = None
            case "nan":
                if choice["logprobs"]:
                    choice["logprobs"]["token_logprobs"] = [float("nan")] * len(choice["token_ids"])
                    for one in choice["logprobs"]["top_logprobs"]:
                        one.update(dict.fromkeys(one, 2.0))
            case "dropped":
                return []
            case "doubled":
                return [message, message]
            case _:
                pass
        return [message]

    def _request(self, body: Message) -> Request:
        logprobs = body.get("logprobs")
        return Request(
            id=body["request_id"].rpartition("#")[0],
            prompt_ids=body["prompt"],
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            seed=body.get("seed"),
            stop_ids=tuple(one for one in body["stop_token_ids"] if one not in self._ends),
            allowed_ids=tuple(body.get("allowed_token_ids", ())),
            logprob_ids=tuple(body.get("logprob_token_ids", ())),
            sampled_logprobs=logprobs == 0,
            priority=body.get("priority", 0),
        )

    def _message(self, request: Request, body: Message, delta: Delta, total: int) -> Message:
        logprobs: Message | None = None
        if delta.logprobs is not None:
            top = {f"token_id:{token}": value for token, value in delta.logprobs.items()}
            logprobs = {"token_logprobs": [delta.logprobs.get(one, -9.0) for one in delta.ids], "top_logprobs": [top]}
        elif request.sampled_logprobs:
            logprobs = {"token_logprobs": list(delta.sampled_logprobs), "top_logprobs": []}
        choice = {
            "index": 0,
            "text": "",
            "token_ids": list(delta.ids),
            "logprobs": logprobs,
            "finish_reason": {"stop": "stop", "end": "stop", "length": "length", None: None}[delta.finish],
        }
        usage: Message = {"prompt_tokens": len(request.prompt_ids), "completion_tokens": total}
        if delta.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": delta.cached_tokens}
        return {"model": MODEL, "choices": [choice], "usage": usage}


async def _whole(found: Message) -> AsyncGenerator[bytes, None]:
    yield json.dumps(found).encode()


async def _bytes(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


# --------------------------------------------------------------------------------------------------------- the client's side


class Session:
    """Stands for ``aiohttp.ClientSession``, as far as our client uses it."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def request(self, method: str, url: str, *, data: bytes | None, **_: object) -> _Exchange:
        return _Exchange(self._server, urlsplit(url).path, None if data is None else json.loads(data))

    async def close(self) -> None:
        pass


class _Exchange:
    """One request and its response, which is its own content."""

    def __init__(self, server: Server, path: str, body: Message | None) -> None:
        self._server, self._path, self._body = server, path, body
        self.status = 0
        self.headers: dict[str, str] = {}
        self.content = self
        self._data: AsyncGenerator[bytes, None] | None = None
        self._over = False

    async def __aenter__(self) -> _Exchange:
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(IDLE_S):
                self.status, self.headers, self._data = await self._server.answer(self._path, self._body)
        except TimeoutError:
            raise aiohttp.SocketTimeoutError("silent") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._data is not None:
            with suppress(aiohttp.ClientError):
                await self._data.aclose()

    async def iter_any(self) -> AsyncGenerator[bytes, None]:
        while (chunk := await self._next()) is not None:
            yield chunk

    async def _next(self) -> bytes | None:
        assert self._data is not None
        try:
            async with asyncio.timeout(IDLE_S):
                return await anext(self._data)
        except StopAsyncIteration:
            self._over = True
            return None
        except TimeoutError:
            raise aiohttp.SocketTimeoutError("silent") from None

    async def read(self, most: int) -> bytes:
        return b"".join([chunk async for chunk in self.iter_any()])

    def at_eof(self) -> bool:
        return self._over
