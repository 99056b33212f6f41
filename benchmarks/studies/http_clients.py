"""Compares HTTP clients, and the HTTP engine on the one it uses, against a server in another process that answers at once.

Each request streams one answer of ``--pieces`` server-sent events over a connection that is kept alive. The processor
time of this process is what a client costs; the wall clock also has the server's.

    python benchmarks/studies/http_clients.py [--in-flight 1 100 2000] [--clients httpx aiohttp engine] [--requests 4000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import uvloop

from speclrm.runtime.engine import Request
from speclrm.runtime.engines.http.capabilities import Capabilities
from speclrm.runtime.engines.http.client import Client
from speclrm.runtime.engines.http.dialects import DIALECTS
from speclrm.runtime.engines.http.engine import HttpEngine
from speclrm.runtime.engines.scripted import ByteTokenizer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

PROMPT = list(range(1000, 1600))
OPENED_AT_ONCE, OPENING_S = 1000, 1.0
"""Connections that are opened together, and seconds until the next ones are."""
BODY: dict[str, Any] = {"model": "m", "prompt": PROMPT, "max_tokens": 64, "stream": True}


def answer(pieces: int) -> bytes:
    """One whole response: pieces of eight tokens, as vLLM streams them."""
    chunks: list[bytes] = []
    for number in range(pieces):
        choice = {"index": 0, "text": "", "token_ids": [65 + number] * 8, "logprobs": None, "finish_reason": None}
        if number == pieces - 1:
            choice["finish_reason"] = "length"
        chunks.append(b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n")
    chunks.append(b"data: [DONE]\n\n")
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


class Server(asyncio.Protocol):
    """Answers every request with the same bytes as soon as it is whole."""

    def __init__(self, response: bytes) -> None:
        self._response = response
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(self._response)


def serve(port: Connection, pieces: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(answer(pieces)), "127.0.0.1", 0, backlog=4096)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


async def measured(one: Callable[[], Awaitable[None]], requests: int, in_flight: int) -> dict[str, float]:
    """Measures ``requests`` of them, once ``in_flight`` callers are at work."""
    waits: list[float] = []
    begun, over = False, asyncio.Event()

    async def worker(number: int) -> None:
        # A listening socket holds 4,096 connections that were not accepted yet; those beyond are lost without a word.
        await asyncio.sleep(number // OPENED_AT_ONCE * OPENING_S)
        while not over.is_set():
            asked = time.perf_counter()
            await one()
            waits.append(time.perf_counter() - asked)
            if begun and len(waits) >= requests:
                over.set()

    async with asyncio.TaskGroup() as group:
        for number in range(in_flight):
            group.create_task(worker(number))
        await asyncio.sleep((in_flight // OPENED_AT_ONCE + 1) * OPENING_S)
        waits.clear()
        begun, wall, cpu = True, time.perf_counter(), time.process_time()
        await over.wait()
        wall, cpu, requests = time.perf_counter() - wall, time.process_time() - cpu, len(waits)
    return {
        "requests_per_s": round(requests / wall),
        "cpu_ms_a_request": round(1000 * cpu / requests, 3),
        "median_ms": round(1000 * statistics.median(waits), 2),
        "p99_ms": round(1000 * statistics.quantiles(waits, n=100)[98], 2),
    }


async def with_httpx(url: str, requests: int, in_flight: int) -> dict[str, float]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def one() -> None:
            async with client.stream("POST", f"{url}/completions", json=BODY) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        json.loads(line[6:])

        return await measured(one, requests, in_flight)


async def with_aiohttp(url: str, requests: int, in_flight: int) -> dict[str, float]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def one() -> None:
            async with client.post(f"{url}/completions", json=BODY) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        json.loads(line[6:])

        return await measured(one, requests, in_flight)


async def with_engine(url: str, requests: int, in_flight: int) -> dict[str, float]:
    client = Client(url)
    engine = HttpEngine(
        "http/m", client, DIALECTS["vllm"], Capabilities.assumed("vllm", max_model_len=8192), ByteTokenizer(), "m"
    )
    request = Request("r", PROMPT, 64)

    async def one() -> None:
        async for _ in engine.stream(request):
            pass

    try:
        return await measured(one, requests, in_flight)
    finally:
        await engine.aclose()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--pieces", type=int, default=4)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 100, 2000])
    parser.add_argument("--clients", nargs="+", choices=["httpx", "aiohttp", "engine"], default=["aiohttp", "engine"])
    given = parser.parse_args()
    clients = {"httpx": with_httpx, "aiohttp": with_aiohttp, "engine": with_engine}
    receive, send = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(send, given.pieces), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{receive.recv()}/v1"
    try:
        for client in map(clients.__getitem__, given.clients):
            for in_flight in given.in_flight:
                requests = min(given.requests, 1000) if in_flight == 1 else given.requests
                found = uvloop.run(client(url, requests, in_flight))
                print(json.dumps({"client": client.__name__[5:], "in_flight": in_flight, **found}), flush=True)
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
