"""Brings the options that say where models are into one form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speclrm.runtime.engines.http.address import PREFIX, is_remote, read_urls, split
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Mapping


def with_addresses(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns engine options in their one form: the model as ``http/MODEL``, its servers in ``target_url`` or ``draft_url``.

    Raises:
        SettingsError: an address is none, or is given twice over.
    """
    found = dict(given)
    for role in Role:
        name, option = found.get(role.value), f"{role.value}_url"
        urls = found.get(option) or ()
        urls = read_urls(urls.split(",") if isinstance(urls, str) else urls)
        if isinstance(name, str) and is_remote(name):
            name, inside = split(name)
            if inside and urls and inside != urls:
                raise SettingsError(
                    f"The {role.value}'s servers stand in its name and in --{role.value}-url. Give them once."
                )
            urls = inside or urls
        elif urls and isinstance(name, str):
            if name.startswith("sim/"):
                raise SettingsError(f"{name} is simulated and has no server. Leave --{role.value}-url out.")
            name = PREFIX + name.removeprefix("vllm/")
        elif urls:
            raise SettingsError(
                f"--{role.value}-url says where a model is, and not which one. Give --{role.value} MODEL, too."
            )
        if urls:
            found[role.value], found[option] = name, urls
    return found


def check_replicas(options: Mapping[str, Any]) -> None:
    """Raises SettingsError where engine options ask for replicas that this program does not start."""
    for role in Role:
        name: str | None = options[role.value]
        replicas: int = options[f"{role.value}_replicas"]
        flag = f"--{role.value}-replicas {replicas}"
        if replicas == 1:
            continue
        if name is None:
            raise SettingsError(
                f"{flag}: there is no {role.value} model. Give --{role.value} MODEL, or leave the option out."
            )
        if is_remote(name):
            raise SettingsError(
                f"{flag}: {name} is on a server, and this program starts none there. Start as many servers, and give their "
                f"addresses to --{role.value}-url, separated by commas."
            )
        if options["shared_device"]:
            raise SettingsError(
                f"{flag}: --shared-device is one device with one engine of each role. Leave one of the two options out."
            )
