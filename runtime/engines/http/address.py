"""Reads the names and addresses of models that a server has: ``http/MODEL@URL[,URL...]``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from speclrm.runtime.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "http/"
_URL = re.compile(r"@(?=https?://)")
_ENDPOINTS = ("/chat/completions", "/completions", "/models")


class RemoteName(NamedTuple):
    """``name``: ``http/MODEL``, as records and messages have it. ``urls``: of the servers that have it, if given."""

    name: str
    urls: tuple[str, ...]


def is_remote(name: str) -> bool:
    return name.startswith(PREFIX)


def served_name(name: str) -> str:
    """Returns the model's name as its server knows it."""
    return name.removeprefix(PREFIX)


def split(name: str) -> RemoteName:
    """Splits a model's name from the addresses behind it. Raises SettingsError for an address that is none."""
    model, found, addresses = _parts(name)
    if found and not served_name(model):
        raise SettingsError(
            f"{safe(name)} names no model. Write it as http/MODEL@URL, with the name that the server has."
        )
    return RemoteName(model, read_urls(addresses.split(",")) if found else ())


def _parts(name: str) -> tuple[str, bool, str]:
    parts = _URL.split(name, maxsplit=1)
    return (parts[0], True, parts[1]) if len(parts) == 2 else (name, False, "")


def read_urls(addresses: Iterable[str]) -> tuple[str, ...]:
    """Returns the addresses in one form: without a slash or an endpoint at the end, and with the path that they have, ``/v1``
    if they have none.

    Raises:
        SettingsError: one is no address of a server, carries a password, or is there twice.
    """
    found: list[str] = []
    for address in addresses:
        url = _read_url(address.strip())
        if url in found:
            raise SettingsError(f"The address {url} is given twice. Give each server once.")
        found.append(url)
    return tuple(found)


def _read_url(address: str) -> str:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise SettingsError(
            f"{safe(address)!r} is not the address of a server. Write it as http://HOST:PORT/v1 (or https://...), several "
            "separated by commas."
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise SettingsError(
            f"The address {safe(address)} has more than a host and a path. A key goes into the variable OPENAI_API_KEY, or "
            "into headers under [http] in the file that --config names, never into the address."
        )
    path = parts.path.rstrip("/")
    for end in _ENDPOINTS:
        path = path.removesuffix(end)
    netloc = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{netloc}{f':{port}' if port else ''}{path or '/v1'}"


def safe(address: str) -> str:
    """Returns an address without what may be a secret in it: a user, a password, a query."""
    return re.sub(r"[?#].*$", "?...", re.sub(r"//[^/@]*@", "//...@", address))


def engine_name(name: str, url: str) -> str:
    """Returns the name of one server's engine, for events and messages: ``http/MODEL@HOST:PORT``."""
    return f"{name}@{urlsplit(url).netloc}"


def root_of(url: str) -> str:
    """Returns the address under which a server has its own endpoints, beside those of OpenAI's form."""
    return url.removesuffix("/v1")
