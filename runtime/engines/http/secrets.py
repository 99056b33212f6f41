"""Holds what servers must be told and nobody else may read: keys and headers."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from speclrm.runtime.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_VARIABLE = "OPENAI_API_KEY"
HIDDEN = "***"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRET_MIN = 4
"""A shorter value is no secret, and to hide it would garble a message."""
_PLAIN = frozenset({"user-agent", "accept", "content-type", "accept-language"})
"""Headers whose values are no secrets."""

_headers: dict[str, dict[str, str]] = {}


def set_headers(headers: Mapping[str, str], role: str = "") -> None:
    """Sets the headers for servers of one role, or of all. They are kept in this process alone, and in no record.

    Raises SettingsError for a name or a value that cannot be a header; the value is not quoted.
    """
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not value.isprintable():
            raise SettingsError(
                f'{name!r} cannot be sent as an HTTP header. Write [http] headers as NAME = "value" pairs.'
            )
    _headers[role] = dict(headers)


def forget_headers() -> None:
    """Forgets all headers that were set."""
    _headers.clear()


class Secrets:
    """The headers for one server, and how to take their values out of a text."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self.headers = dict(headers or {})
        found: set[str] = set()
        for name, value in self.headers.items():
            if name.lower() not in _PLAIN:
                found |= {value, *value.split()}
        self._hidden = sorted((value for value in found if len(value) >= _SECRET_MIN), key=len, reverse=True)

    @classmethod
    def of(cls, role: str) -> Secrets:
        """Those of a role's servers: what was set for it, else for all, and the key of the environment."""
        headers = {**_headers.get("", {}), **_headers.get(role, {})}
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if key and not any(name.lower() == "authorization" for name in headers):
            if not key.isprintable() or not key.isascii():
                raise SettingsError(f"The variable {KEY_VARIABLE} holds what cannot be a key. Set it to the key alone.")
            headers["Authorization"] = f"Bearer {key}"
        return cls(headers)

    def hide(self, text: str) -> str:
        """Returns a text of the server's, or about it, without any secret."""
        for value in self._hidden:
            text = text.replace(value, HIDDEN)
        return text

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.headers)})"
