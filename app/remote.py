"""Finds the servers that an invocation names, asks what they can do, and refuses what they cannot before anything runs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from speclrm.app.progress import note
from speclrm.runtime.engines.http.address import served_name
from speclrm.runtime.engines.http.client import Client
from speclrm.runtime.engines.http.probing import Server, probe
from speclrm.runtime.engines.http.secrets import Secrets
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.machine.sizing import check_length
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import JsonValue

    from speclrm.app.options import EngineOptions
    from speclrm.app.progress import Notify
    from speclrm.runtime.engine import Tokenizer
    from speclrm.runtime.engines.http.capabilities import Capabilities
    from speclrm.runtime.engines.http.engine import HttpEngine
    from speclrm.runtime.machine.sizing import Work
    from speclrm.strategies.family import Family


def tokenizer_name(options: EngineOptions, role: Role) -> str:
    """Returns the model whose tokenizer a role's server has."""
    chosen: str | None = getattr(options, f"{role.value}_tokenizer")
    return chosen or served_name(getattr(options, role.value))


async def probe_all(
    options: EngineOptions, names: Mapping[Role, str], tokenizers: Mapping[Role, Tokenizer], notify: Notify
) -> dict[Role, list[HttpEngine]]:
    """Asks every server of these roles what it can do, and tells. Their connections are closed again until the first request.

    Raises:
        UsageError: one cannot be used.
    """
    found: dict[Role, list[HttpEngine]] = {}
    async with AsyncExitStack() as stack:
        for role, name in names.items():
            urls: tuple[str, ...] = getattr(options, f"{role.value}_url")
            if not urls:
                raise SettingsError(
                    f"{name} is on a server, and no address of one is given. Give --{role.value}-url http://HOST:PORT/v1, or "
                    f"--{role.value} {name}@http://HOST:PORT/v1."
                )
            server = Server(
                name,
                role.value,
                tokenizers[role],
                getattr(options, f"{role.value}_connections"),
                getattr(options, f"{role.value}_args"),
                options.router_hints,
            )
            clients = [Client(url, Secrets.of(role.value)) for url in urls]
            for client in clients:
                stack.push_async_callback(client.aclose)
            notify(f"asking {len(urls)} server{'s' if len(urls) > 1 else ''} of the {role.value}", None, None)
            results = await asyncio.gather(*(probe(server, client) for client in clients), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            found[role] = [engine for engine in results if not isinstance(engine, BaseException)]
            for engine, url in zip(found[role], urls, strict=True):
                note(notify, f"the {role.value} {served_name(name)} at {url} is {engine.capabilities.told()}")
    return found


def refuse_what_lacks(
    engines: Mapping[Role, Iterable[HttpEngine]], strategy: Family, work: Work, *, drafts: bool
) -> None:
    """Raises SettingsError where a strategy needs what a server cannot do, with the options that would work, and CapacityError
    where its context is too short.
    """
    for role, several in engines.items():
        for engine in several:
            lacking = _lacking(engine.capabilities, strategy, role, drafts=drafts)
            if lacking:
                what, instead = zip(*lacking, strict=True)
                raise SettingsError(
                    f"The {role.value}'s server {engine.client.url} ({engine.capabilities.server}) does not give "
                    f"{' or '.join(what)}, which these options need. Use {' and '.join(instead)}, or another server."
                )
            if engine.capabilities.max_model_len is not None:
                check_length(engine.name, engine.capabilities.max_model_len, work)


def _lacking(able: Capabilities, strategy: Family, role: Role, *, drafts: bool) -> list[tuple[str, str]]:
    """Returns what is needed and not there, each with what would work instead."""
    lacking: list[tuple[str, str]] = []
    limits, prompts = strategy.limits, strategy.prompts
    if role is Role.TARGET and drafts:
        if prompts.scorer == "likelihood" and not able.likelihood:
            lacking.append(("the likelihood of a prompt", "--scorer judge"))
        elif prompts.scorer == "judge" and able.scores == "digit" and strategy.recipe.score_method == "average":
            lacking.append(("log-probabilities of the digits", "--score-method greedy"))
    if role is Role.DRAFT:
        if limits.confidence and not able.sampled_logprobs:
            lacking.append(
                ("the probability of each token by its id", "no --gate-sure, --gate-doubt or --gate-entropy")
            )
        elif limits.first_entropy and able.top_logprobs < 20:
            lacking.append(("the twenty most probable tokens", "no --gate-entropy"))
    return lacking


def records(engines: Mapping[Role, Iterable[HttpEngine]]) -> dict[str, JsonValue]:
    """Returns what a run's record says of its servers, by role."""
    return {
        role.value: [{"url": engine.client.url, **engine.capabilities.record()} for engine in several]
        for role, several in engines.items()
    }
