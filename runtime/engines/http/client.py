"""Sends requests to one server: a pool of kept-alive connections, streams of pieces, and what went wrong in one word.

aiohttp and not httpx: at 100 requests in flight httpx took 4 to 10 ms of processor time a request, and at 2,000 it did not end
(benchmarks/studies/http_clients.py).
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from speclrm.runtime.engines.http.address import root_of
from speclrm.runtime.engines.http.secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

CONNECT_LIMIT_S = 10.0
"""Seconds until a server that does not take the connection counts as gone."""
IDLE_LIMIT_S = 300.0
"""Seconds without a byte after which a request counts as lost. A long prompt in a long queue takes less."""
ASK_LIMIT_S = 20.0
"""Seconds that a question about the server itself may take."""
KEPT_ALIVE_S = 4.0
"""Seconds that an idle connection is kept. uvicorn, under vLLM and SGLang, closes its own after five."""
BODY_MAX = 64 << 20
"""Bytes of an answer that are read at most: the log-probabilities of a long prompt take a few million."""
QUOTED_MAX = 300
RETRY_AFTER_MAX_S = 300.0

Kind = Literal["unreachable", "dropped", "silent", "busy", "failed", "refused", "forbidden", "missing", "garbage"]
"""``unreachable``: no connection. ``dropped``: it ended in the middle. ``silent``: it brought nothing for too long. ``busy``:
the server asks to wait. ``failed``: an error of the server's own. ``refused``: this request is wrong. ``forbidden``: the key
is. ``missing``: nothing is at that address. ``garbage``: the answer is none."""

_KINDS: dict[int, Kind] = {
    **dict.fromkeys((401, 403), "forbidden"),
    **dict.fromkeys((404, 405), "missing"),
    **dict.fromkeys((408, 425, 429, 502, 503, 504, 529), "busy"),
}


class Trouble(Exception):
    """What went wrong with one request. ``text``: without secrets. ``retry_after_s``: as the server asks, if it does."""

    def __init__(self, kind: Kind, text: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.kind: Kind = kind
        self.text = text
        self.status = status
        self.retry_after_s = retry_after_s


class Client:
    """One server. ``url``: of its endpoints in OpenAI's form. It belongs to the loop of its first request."""

    def __init__(self, url: str, secrets: Secrets | None = None, *, idle_limit_s: float = IDLE_LIMIT_S) -> None:
        self.url = url
        self._secrets = secrets or Secrets()
        self._idle_limit_s = idle_limit_s
        self._session: aiohttp.ClientSession | None = None
        self._proxy = _proxy_for(url)

    def hide(self, text: str) -> str:
        """Returns the text without this server's secrets."""
        return self._secrets.hide(text)

    def _address(self, path: str) -> str:
        """A path that begins with a slash stands under the server's root, any other beside its OpenAI endpoints."""
        return f"{root_of(self.url)}{path}" if path.startswith("/") else f"{self.url}/{path}"

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE_S),
                headers=self._secrets.headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S, sock_read=self._idle_limit_s),
                auto_decompress=True,
                read_bufsize=1 << 20,
            )
        return self._session

    async def get(self, path: str) -> Any:
        """Returns the JSON at a path. Raises Trouble."""
        return await self._whole("GET", path, None)

    async def text(self, path: str) -> str:
        """Returns the text at a path. Raises Trouble."""
        async with self._limited(), self._sent("GET", path, None) as response:
            return (await _read(response)).decode(errors="replace")

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Returns the JSON that answers a small question. Raises Trouble."""
        return await self._whole("POST", path, body)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the whole answer of a request for text. Raises Trouble."""
        async with self._sent("POST", path, body) as response:
            return self._object(await _read(response))

    async def pieces(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Yields the pieces of a stream as they come, as server-sent events or as lines of JSON, and None for the mark of its
        end, if it has one. Closing it early closes the connection, which aborts the request in the server.

        Raises:
            Trouble: the stream could not be opened, or broke off, or holds something else.
        """
        async with self._sent("POST", path, body) as response:
            kind = response.headers.get("Content-Type", "")
            if "html" in kind:
                raise self._garbage(await _read(response))
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > BODY_MAX:
                    raise Trouble("garbage", "it sent a line without an end")
                for line in lines:
                    if (found := self._piece(line)) is not _NOTHING:
                        yield cast("dict[str, Any] | None", found)
            if rest.strip() and (found := self._piece(rest)) is not _NOTHING:
                yield cast("dict[str, Any] | None", found)

    def _piece(self, line: bytes) -> object:
        line = line.strip()
        if line.startswith(b"data:"):
            line = line[5:].strip()
            if line == b"[DONE]":
                return None
        elif not line.startswith(b"{"):
            if not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
                return _NOTHING
            raise self._garbage(line)
        found = self._object(line)
        if (error := found.get("error")) is not None:
            raise Trouble("failed", self._said(error))
        return found

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except ValueError:
            raise self._garbage(data) from None
        if not isinstance(found, dict):
            raise self._garbage(data)
        return cast("dict[str, Any]", found)

    async def _whole(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        async with self._limited(), self._sent(method, path, body) as response:
            data = await _read(response)
            try:
                return json.loads(data)
            except ValueError:
                raise self._garbage(data) from None

    @asynccontextmanager
    async def _limited(self) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                yield
        except TimeoutError:
            raise Trouble("silent", f"it did not answer within {ASK_LIMIT_S:.0f} s") from None

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Sends a request and yields the response to it, whose status is good."""
        import aiohttp

        session = self._opened()
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = None if data is None else {"Content-Type": "application/json"}
        try:
            # A redirect would carry the key to wherever it points.
            async with session.request(
                method, self._address(path), data=data, headers=headers, proxy=self._proxy, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise self._refusal(response, await _read(response))
                yield response
        except aiohttp.ClientConnectorError as error:
            raise Trouble("unreachable", self.hide(str(error.os_error) or "no connection")) from None
        except aiohttp.ConnectionTimeoutError:
            raise Trouble("unreachable", f"it took no connection within {CONNECT_LIMIT_S:.0f} s") from None
        except (aiohttp.SocketTimeoutError, TimeoutError):
            raise Trouble("silent", f"it sent nothing for {self._idle_limit_s:.0f} s") from None
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise Trouble("dropped", f"it closed the connection ({type(error).__name__})") from None
        except (aiohttp.ClientError, ValueError) as error:  # their texts may quote headers
            raise Trouble("garbage", f"its answer is no HTTP ({type(error).__name__})") from None

    def _refusal(self, response: aiohttp.ClientResponse, data: bytes) -> Trouble:
        status = response.status
        try:
            found = json.loads(data)
            inner = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
            said = self._said(inner.get("error") or inner.get("message") or inner.get("detail") or inner)
        except ValueError:
            said = self._quoted(data)
        kind = _KINDS.get(status, "failed" if status >= 500 else "refused" if status >= 400 else "garbage")
        text = f"HTTP {status}" + (f": {said}" if said else "")
        return Trouble(kind, text, status=status, retry_after_s=_wait(response.headers.get("Retry-After")))

    def _said(self, error: object) -> str:
        """Returns an error as a server words it, in one line."""
        if isinstance(error, dict):
            error = cast("dict[str, Any]", error).get("message", cast("dict[str, Any]", error))
        text = error if isinstance(error, str) else json.dumps(error)
        return self.hide(" ".join(text.split()))[:QUOTED_MAX] if text not in ("{}", "null") else ""

    def _quoted(self, data: bytes) -> str:
        text = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", data[:8192].decode(errors="replace"), flags=re.S)
        return self.hide(" ".join("".join(c if c.isprintable() else " " for c in text).split()))[:QUOTED_MAX]

    def _garbage(self, data: bytes) -> Trouble:
        html = data.lstrip()[:64].lower().startswith((b"<!doctype html", b"<html"))
        what = "a web page" if html else "no JSON"
        quoted = self._quoted(data)
        return Trouble("garbage", f"it answers with {what}" + (f": {quoted!r}" if quoted else ""))

    async def aclose(self) -> None:
        """Closes all connections, which aborts what is under way."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


_NOTHING = object()


def _proxy_for(url: str) -> str | None:
    """Returns the proxy that the environment names for a server. aiohttp would look it up in a thread for each request, and read
    keys from ``.netrc``.
    """
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = await response.content.read(BODY_MAX)
    while not response.content.at_eof():
        more = await response.content.read(BODY_MAX)
        data += more
        if len(data) > BODY_MAX:
            raise Trouble("garbage", "its answer has no end")
        if not more:
            break
    return data


def _wait(header: str | None) -> float | None:
    """Returns the seconds that ``Retry-After`` asks to wait: a number of them, or a date (RFC 9110, section 10.2.3)."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), RETRY_AFTER_MAX_S) if seconds == seconds else None
