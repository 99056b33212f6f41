"""Asks a server once, before a run, who it is, which model it has, and what it can do.

Each ability is tried with a small request, since versions and routers differ in what they take. What is wrong with an address, a
key or a model is told in a paragraph.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from speclrm.runtime.engine import Request
from speclrm.runtime.engines.http.address import engine_name, served_name
from speclrm.runtime.engines.http.capabilities import Capabilities
from speclrm.runtime.engines.http.client import Client, Trouble
from speclrm.runtime.engines.http.dialects import DIALECTS, MISSHAPED, ServerKind
from speclrm.runtime.engines.http.engine import HttpEngine
from speclrm.runtime.engines.http.secrets import KEY_VARIABLE
from speclrm.runtime.errors import EngineError, ModelError, SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speclrm.runtime.engine import Delta, Tokenizer
    from speclrm.runtime.engines.http.hints import RouterHints

PROBE_TEXT = "One and one is two. Two and two is"
PROBE_TOKENS = 12
SHOWN_MAX = 8
TOKENIZER_TEXT = "Naïve  step 12:\n\n\tx² + 3·y = 45,678 — q.e.d. ¿Sí? 漢字 \\boxed{-7/8}"
"""Text on which tokenizers of different models differ: spaces, digits, accents, marks."""
_OWNERS: dict[str, ServerKind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp", "library": "ollama"}
"""By ``owned_by`` in the list of models."""
_GAUGE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.M)
_LOADING_S = (0.5, 1.0, 2.0)
"""Waits for a server that says that it is busy or still loads, before it is given up."""


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is asked. ``options``: the names of the options of its role, for what is told. ``connections``: requests in
    flight, if set.
    """

    name: str
    role: str
    tokenizer: Tokenizer
    connections: int | None = None
    extra: Mapping[str, Any] | None = None
    router_hints: RouterHints = "none"

    @property
    def model(self) -> str:
        return served_name(self.name)


async def probe(server: Server, client: Client) -> HttpEngine:
    """Returns the engine for a server, with what was found of it.

    Raises:
        UsageError: it cannot be reached, does not take the key, has no such model, or cannot do what any run needs.
    """
    try:
        model = await _model(server, client)
        kind = await _kind(model, client)
        able = replace(Capabilities.assumed(kind), max_model_len=_length(model))
        able = await _described(able, client)
        return await _Probe(server, client, able).engine()
    except Trouble as trouble:
        raise refusal(server, client, trouble) from None
    except MISSHAPED as error:
        raise refusal(server, client, Trouble("garbage", f"its answer has an unknown form ({error})")) from None


def refusal(server: Server, client: Client, trouble: Trouble) -> UsageError:
    """Returns what is wrong with a server, where it can be known before a run, and what to do."""
    where, said = f"The {server.role}'s server {client.url}", client.hide(trouble.text).rstrip(".")
    option = f"--{server.role}-url"
    match trouble.kind:
        case "unreachable" | "silent" | "dropped":
            return SettingsError(
                f"{where} cannot be used: {said}. Start it, or give the address of one that runs ({option} http://HOST:PORT/v1)."
            )
        case "forbidden":
            return SettingsError(
                f"{where} does not take the key ({said}). Set the variable {KEY_VARIABLE}, or headers under [http] in the file "
                "that --config names."
            )
        case "missing":
            return SettingsError(
                f"{where} has nothing there ({said}). An address in OpenAI's form ends in /v1 with most servers: give it with "
                f"{option}."
            )
        case "busy":
            return SettingsError(
                f"{where} turns requests away ({said}). Wait until it has loaded its model or has room."
            )
        case _:
            return SettingsError(
                f"{where} is no server of completions in OpenAI's form: {said}. Check its address ({option}) and its log."
            )


async def _patiently(client: Client, path: str) -> Any:
    """Returns what is at a path, after short waits if the server is still loading."""
    for wait_s in _LOADING_S:
        try:
            return await client.get(path)
        except Trouble as trouble:
            if trouble.kind != "busy":
                raise
            await asyncio.sleep(wait_s)
    return await client.get(path)


async def _model(server: Server, client: Client) -> dict[str, Any]:
    """Returns what the server says of the model. Raises SettingsError if it has another."""
    found = await _patiently(client, "models")
    entries = [cast("dict[str, Any]", one) for one in found["data"]]
    for one in entries:
        if server.model in (one["id"], one["id"].removesuffix(":latest")):
            return one
    names = [str(one["id"]) for one in entries]
    shown = ", ".join(names[:SHOWN_MAX]) + (f" and {len(names) - SHOWN_MAX} others" if len(names) > SHOWN_MAX else "")
    first = names[0] if names else "MODEL"
    raise ModelError(
        f"The server {client.url} has no model {server.model!r}. It has {shown or 'none at all'}. Name one of them, for instance "
        f"--{server.role} http/{first}@{client.url}."
    )


async def _kind(model: Mapping[str, Any], client: Client) -> ServerKind:
    if (kind := _OWNERS.get(str(model.get("owned_by", "")).lower())) is not None:
        return kind
    for path, field, kind in (
        ("/get_model_info", "model_path", "sglang"),
        ("/props", "default_generation_settings", "llama.cpp"),
        ("/api/version", "version", "ollama"),
    ):
        with suppress(Trouble, TypeError):
            if field in await client.get(path):
                return cast("ServerKind", kind)
    return "openai"


def _length(model: Mapping[str, Any]) -> int | None:
    about = model.get("meta")
    for found in (model.get("max_model_len"), about.get("n_ctx") if isinstance(about, dict) else None):  # pyright: ignore
        if isinstance(found, int) and found > 0:
            return found
    return None


async def _described(able: Capabilities, client: Client) -> Capabilities:
    """Adds what a kind of server says of itself at an address of its own, if it does."""
    with suppress(Trouble, *MISSHAPED):
        if able.server == "vllm":
            able = replace(able, version=str((await client.get("/version"))["version"]))
            if (found := _GAUGE.search(await client.text("/metrics"))) is not None:
                facts = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
                able = replace(able, kv_tokens=int(facts["num_gpu_blocks"]) * int(facts["block_size"]))
        elif able.server == "llama.cpp":
            facts = await client.get("/props")
            length = int(facts["default_generation_settings"]["n_ctx"])
            able = replace(able, max_model_len=length, max_num_seqs=int(facts["total_slots"]))
            able = replace(able, version=facts.get("build_info"))
        elif able.server == "sglang":
            facts = await client.get("/get_server_info")
            able = replace(able, version=facts.get("version"))
            if isinstance(length := facts.get("context_length"), int):
                able = replace(able, max_model_len=length)
            if isinstance(tokens := facts.get("max_total_num_tokens"), int):
                able = replace(able, kv_tokens=tokens)
        elif able.server == "ollama":
            able = replace(able, version=str((await client.get("/api/version"))["version"]))
    return able


class _Probe:
    """Tries what a server can do, one request after the other."""

    def __init__(self, server: Server, client: Client, able: Capabilities) -> None:
        self._server = server
        self._client = client
        self._able = able
        self._ids = server.tokenizer.encode(PROBE_TEXT)

    def _engine(self, **changes: Any) -> HttpEngine:
        server = self._server
        self._able = replace(self._able, **changes)
        return HttpEngine(
            engine_name(server.name, self._client.url),
            self._client,
            DIALECTS[self._able.server],
            self._able,
            server.tokenizer,
            server.model,
            connections=server.connections,
            extra=server.extra,
            router_hints=server.router_hints,
        )

    async def engine(self) -> HttpEngine:
        await self._compare_tokenizers()
        await self._writes()
        await self._scores()
        if self._able.ids:
            if not await self._takes(Request("probe/sampled", self._ids, 2, sampled_logprobs=True)):
                self._able = replace(self._able, sampled_logprobs=False)
            if not await self._takes(Request("probe/likelihood", self._ids, 1, likelihood_from=len(self._ids) - 2)):
                self._able = replace(self._able, likelihood=False)
        return self._engine()

    async def _takes(self, request: Request, **changes: Any) -> bool:
        """Whether the server answers such a request, and well. ``changes`` to what it is taken for are kept if it does."""
        before = self._able
        try:
            await _whole(self._engine(**changes), request)
        except EngineError:
            self._able = before
            return False
        return True

    async def _writes(self) -> None:
        """Lets it write a few tokens, first with all that its kind can take, then with less."""
        request = Request("probe/write", self._ids, PROBE_TOKENS, temperature=0.7, top_p=0.9, seed=1, priority=1)
        fewer: list[dict[str, Any]] = [{}]
        if self._able.priority:
            fewer.append({"priority": False})
        fewer.append({"priority": False, "seeds": False})
        if self._able.ids and self._able.server == "vllm":  # a router, or an old version, that has no ids
            fewer.append(
                {"server": "openai", "ids": False, "seeds": True, "scores": "top", "top_logprobs": 5, "stops": False}
            )
        error: EngineError | None = None
        for changes in fewer:
            try:
                engine = self._engine(**changes)
                deltas, model, prompt_tokens = await _observed(engine, request)
            except EngineError as failed:
                if isinstance(failed.__cause__, Trouble) and failed.__cause__.kind == "refused":
                    error = failed
                    continue
                raise SettingsError(
                    f"The {self._server.role}'s server {self._client.url} answers, but not as servers of completions do. {failed}"
                ) from None
            if not any(delta.ids for delta in deltas):
                raise SettingsError(
                    f"The {self._server.role}'s server {self._client.url} wrote nothing where {PROBE_TOKENS} tokens were asked "
                    f"for. Check that {self._server.model} is a model that writes text."
                )
            begins = not self._able.ids and prompt_tokens == len(self._ids) + 1
            self._able = replace(self._able, replies_as=model, adds_begin=begins)
            self._compare_lengths(prompt_tokens)
            return
        raise SettingsError(
            f"The {self._server.role}'s server {self._client.url} refuses a plain request for text. {error} It needs an endpoint "
            "for completions; one for chats alone does not do."
        )

    async def _scores(self) -> None:
        """Finds how a digit can be read."""
        encode = self._server.tokenizer.encode
        digits = tuple(encode(str(digit))[-1] for digit in range(10))
        request = Request("probe/score", self._ids, 1, allowed_ids=digits, logprob_ids=digits)
        if self._able.scores == "exact" and await self._takes(request):
            return
        for top in (20, 5):
            if await self._takes(request, scores="top", top_logprobs=min(top, self._able.top_logprobs or top)):
                return
        if not await self._takes(request, scores="digit", top_logprobs=0, sampled_logprobs=False, likelihood=False):
            raise SettingsError(
                f"The {self._server.role}'s server {self._client.url} does not answer a request for one token. Look into its log."
            )

    # -------------------------------------------------------------------------------------------------------- the model

    async def _compare_tokenizers(self) -> None:
        """Compares ids of one text, where the server tells its own. Raises ModelError if they differ."""
        if not self._able.ids:
            return
        body: dict[str, Any] = {"content": TOKENIZER_TEXT, "add_special": False, "with_pieces": False}
        if self._able.server != "llama.cpp":
            body = {"model": self._server.model, "prompt": TOKENIZER_TEXT, "add_special_tokens": False}
        try:
            found = (await self._client.ask("/tokenize", body))["tokens"]
        except (Trouble, *MISSHAPED):
            return  # a router has none
        if list(found) != self._server.tokenizer.encode(TOKENIZER_TEXT):
            raise self._other_model("it makes other ids of a text")

    def _compare_lengths(self, prompt_tokens: int | None) -> None:
        """Compares the length of a prompt, which is all that a server without ids tells of its tokenizer."""
        if prompt_tokens is None:
            return
        if prompt_tokens - len(self._ids) not in ((0,) if self._able.ids else (0, 1)):
            raise self._other_model(f"a prompt of {len(self._ids)} tokens is {prompt_tokens} there")

    def _other_model(self, how: str) -> ModelError:
        role = self._server.role
        return ModelError(
            f"The server {self._client.url} has another model than the tokenizer here belongs to: {how}. Give the model that the "
            f"server has, as a folder, a repository or a known name: --{role}-tokenizer NAME."
        )


async def _whole(engine: HttpEngine, request: Request) -> list[Delta]:
    return [delta async for delta in engine.stream(request)]


async def _observed(engine: HttpEngine, request: Request) -> tuple[list[Delta], str | None, int | None]:
    """Returns the deltas, the name that the answer gives the model, and the length of the prompt by its count."""
    deltas = await _whole(engine, request)
    return deltas, engine.replied_as, engine.last_prompt_tokens
