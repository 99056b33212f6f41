"""Writes requests in the form that each kind of server takes, and reads what it answers.

Sampling is always said in full: servers take what is left out from the model's generation_config.json, whose top-k or
repetition penalty would change the text without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from speclrm.runtime.engines.http.client import Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speclrm.runtime.engine import Request

ServerKind = Literal["vllm", "sglang", "llama.cpp", "ollama", "openai"]
TOKEN_ID = "token_id:"  # noqa: S105
"""How vLLM writes an id in place of a token (``return_tokens_as_token_ids``)."""
DELTA_TOKENS = 8
"""Tokens between two pieces, where the server can be told: as in the engine in this process."""
LLAMA_TOP = 50
"""Probabilities that llama.cpp is asked for where a score needs all ten digits: it has no list of ids to ask for."""

CHARACTER_TOKENS = 12
"""More than the tokens of one character: it has up to four bytes, and joined ones (flags, families) a few characters."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as it is to be put to a server.

    ``prompt``: ids, or text where the server takes no ids. ``tag``: an id that no other request has. ``ends``: ids of ends of
    text. ``top``: the number of most probable tokens wanted at each position, None for no log-probabilities. ``exact``: those
    of the request's ``logprob_ids`` alone. ``likelihood``: the log-probabilities of the prompt's own ids, too. ``seeds``,
    ``priority``: whether the server takes them. ``extra``: further fields, as they are.
    """

    request: Request
    model: str
    prompt: list[int] | str
    tag: str
    ends: tuple[int, ...]
    stream: bool
    top: int | None = None
    exact: bool = False
    restrict: bool = True
    likelihood: bool = False
    seeds: bool = True
    priority: bool = False
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message of a server adds to an answer.

    ``ids``: None where only ``text`` is known. ``sampled``: log-probabilities of the new tokens; ``tops``: of the most probable
    ones at each of their positions, by id, or by text where the server knows no ids. ``total``: tokens so far, by the
    server's count. ``finish``: ``stop`` or ``length``, or the server's own word for another end.
    """

    ids: tuple[int, ...] | None = None
    text: str = ""
    sampled: tuple[float, ...] = ()
    tops: tuple[Mapping[int | str, float], ...] = ()
    finish: str | None = None
    total: int | None = None
    prompt_tokens: int | None = None
    cached: int | None = None
    model: str | None = None
    prompt_logprobs: tuple[float, ...] | None = None


class Dialect(Protocol):
    """How one kind of server is spoken to. ``ids``: it takes and returns token ids. ``health``: a path that answers while it
    works. ``marked``: its streams end with a mark, and one without it broke off.
    """

    @property
    def kind(self) -> ServerKind: ...

    @property
    def ids(self) -> bool: ...

    @property
    def health(self) -> str: ...

    @property
    def path(self) -> str: ...

    def body(self, ask: Ask) -> dict[str, Any]: ...

    def read(self, message: Mapping[str, Any], ask: Ask, seen: int) -> Piece:
        """Reads a message; ``seen``: tokens of earlier ones. Raises Trouble, or any of ``MISSHAPED`` for one of another form."""
        ...


MISSHAPED = (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return cast("list[Any]", value)


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no object")
    return cast("dict[str, Any]", value)


def _numbers(values: object) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else float(value) for value in _list(values))


def _ids(values: object) -> tuple[int, ...]:
    found = _list(values)
    if not all(type(value) is int for value in found):
        raise TypeError("ids that are no whole numbers")
    return tuple(found)


def _token(name: str) -> int | str:
    return int(name[len(TOKEN_ID) :]) if name.startswith(TOKEN_ID) else name


class OpenAIDialect:
    """Any server with OpenAI's completions: text in, text out. Only fields of OpenAI's own are sent."""

    kind: ServerKind = "openai"
    ids = False
    health = "models"
    path = "completions"

    def body(self, ask: Ask) -> dict[str, Any]:
        request = ask.request
        body: dict[str, Any] = {
            "model": ask.model,
            "prompt": ask.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stream": ask.stream,
        }
        if request.seed is not None and ask.seeds:
            body["seed"] = request.seed
        if ask.top is not None:
            body["logprobs"] = ask.top
        if ask.stream:
            body["stream_options"] = {"include_usage": True}
        return body | dict(ask.extra or {})

    def read(self, message: Mapping[str, Any], ask: Ask, seen: int) -> Piece:
        usage: Mapping[str, Any] = message.get("usage") or {}
        choices = _list(message["choices"])
        if not choices:  # the usage comes after the last piece
            return Piece(text="", model=message.get("model"), **self._used(usage))
        if len(choices) != 1 or choices[0].get("index", 0) != 0:
            raise ValueError("more than one choice")
        return self._choice(choices[0], message, usage, ask, seen)

    def _choice(
        self, choice: Mapping[str, Any], message: Mapping[str, Any], usage: Mapping[str, Any], ask: Ask, seen: int
    ) -> Piece:
        sampled, tops = self._logprobs(choice.get("logprobs"))
        return Piece(
            text=str(choice["text"]),
            sampled=sampled,
            tops=tops,
            finish=choice.get("finish_reason"),
            model=message.get("model"),
            **self._used(usage),
        )

    @staticmethod
    def _logprobs(found: Mapping[str, Any] | None) -> tuple[tuple[float, ...], tuple[Mapping[int | str, float], ...]]:
        if not found:
            return (), ()
        tops = tuple(
            {_token(name): float(value) for name, value in _mapping(one or {}).items()}
            for one in _list(found.get("top_logprobs") or [])
        )
        return _numbers(found.get("token_logprobs") or []), tops

    @staticmethod
    def _used(usage: Mapping[str, Any]) -> dict[str, Any]:
        details: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
        return {
            "total": usage.get("completion_tokens"),
            "prompt_tokens": usage.get("prompt_tokens"),
            "cached": details.get("cached_tokens"),
        }


class VllmDialect(OpenAIDialect):
    """vLLM and its router: ids in, ids out (vllm/entrypoints/openai/completion/protocol.py of 0.32)."""

    kind: ServerKind = "vllm"
    ids = True
    health = "/health"

    def body(self, ask: Ask) -> dict[str, Any]:
        request = ask.request
        body = super().body(ask) | {
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": [*request.stop_ids, *ask.ends],
            "ignore_eos": True,  # the end ids are among the stop ids
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "return_token_ids": True,
            "request_id": ask.tag,
        }
        if ask.stream:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
            body["stream_interval"] = DELTA_TOKENS
        if request.allowed_ids and ask.restrict:
            body["allowed_token_ids"] = list(request.allowed_ids)
        if ask.top is not None:
            body["return_tokens_as_token_ids"] = True
            if ask.exact:
                body["logprob_token_ids"] = list(request.logprob_ids)
        if ask.likelihood:
            body["prompt_logprobs"] = 0
        if ask.priority:
            body["priority"] = request.priority
        return body | dict(ask.extra or {})

    def _choice(
        self, choice: Mapping[str, Any], message: Mapping[str, Any], usage: Mapping[str, Any], ask: Ask, seen: int
    ) -> Piece:
        sampled, tops = self._logprobs(choice.get("logprobs"))
        return Piece(
            ids=_ids(choice["token_ids"]),
            sampled=sampled,
            tops=tops,
            finish=choice.get("finish_reason"),
            model=message.get("model"),
            prompt_logprobs=_of_prompt(choice, ask) if ask.likelihood else None,
            **self._used(usage),
        )


def _of_prompt(choice: Mapping[str, Any], ask: Ask) -> tuple[float, ...] | None:
    entries, start = choice.get("prompt_logprobs"), ask.request.likelihood_from
    if not entries or start is None:
        return None
    return tuple(
        float(entry[str(token)]["logprob"])
        for entry, token in zip(_list(entries)[start:], ask.prompt[start:], strict=True)
    )


class SGLangDialect:
    """SGLang's own endpoint, ids in and out (docs.sglang.io: Sampling Parameters, Native APIs)."""

    kind: ServerKind = "sglang"
    ids = True
    health = "/health"
    path = "/generate"

    def body(self, ask: Ask) -> dict[str, Any]:
        request = ask.request
        sampling: dict[str, Any] = {
            "max_new_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": [*request.stop_ids, *ask.ends],
            "ignore_eos": True,
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        if request.seed is not None and ask.seeds:
            sampling["sampling_seed"] = request.seed
        body: dict[str, Any] = {
            "input_ids": ask.prompt,
            "sampling_params": sampling,
            "stream": ask.stream,
            "rid": ask.tag,
            "return_logprob": ask.top is not None or ask.likelihood,
        }
        if ask.top:
            body["top_logprobs_num"] = ask.top
        if ask.exact:
            body["token_ids_logprob"] = list(request.logprob_ids)
        if ask.likelihood and request.likelihood_from is not None:
            # Of each prompt id the entry says how probable it was given those before it, from this place on.
            body["logprob_start_len"] = request.likelihood_from - 1
        return body | dict(ask.extra or {})

    def read(self, message: Mapping[str, Any], ask: Ask, seen: int) -> Piece:
        about: Mapping[str, Any] = message["meta_info"]
        found, total = _ids(message["output_ids"]), int(about["completion_tokens"])
        whole = seen > 0 and len(found) == total  # some versions send all so far with each message
        finish: Mapping[str, Any] = about.get("finish_reason") or {}
        ids = found[seen:] if whole else found
        matched = finish.get("matched")
        if finish.get("type") == "stop" and type(matched) is int and (not ids or ids[-1] != matched):
            ids, total = (*ids, matched), total + 1
        chosen = _list(about.get("output_token_logprobs") or [])
        tops = _list(about.get("output_token_ids_logprobs" if ask.exact else "output_top_logprobs") or [])
        return Piece(
            ids=ids,
            sampled=tuple(float(entry[0]) for entry in _new(chosen, total, seen)),
            tops=tuple({int(one[1]): float(one[0]) for one in _list(entry or [])} for entry in _new(tops, total, seen)),
            finish=finish.get("type"),
            total=total,
            prompt_tokens=about.get("prompt_tokens"),
            cached=about.get("cached_tokens"),
            prompt_logprobs=_of_input(about, ask) if ask.likelihood else None,
        )


def _new(entries: Sequence[Any], total: int, seen: int) -> Sequence[Any]:
    return entries[seen:] if seen and len(entries) == total else entries


def _of_input(about: Mapping[str, Any], ask: Ask) -> tuple[float, ...] | None:
    start = ask.request.likelihood_from
    entries = about.get("input_token_logprobs")
    if start is None or not entries:
        return None
    wanted = list(ask.prompt[start:])
    entries = _list(entries)[-len(wanted) :]
    if [entry[1] for entry in entries] != wanted:
        raise ValueError("log-probabilities of another prompt")
    return tuple(float(entry[0]) for entry in entries)


class LlamaDialect:
    """llama.cpp's own endpoint, ids in and out (tools/server/README.md). It knows no stop ids: the stream is cut here."""

    kind: ServerKind = "llama.cpp"
    ids = True
    health = "/health"
    path = "/completion"

    def body(self, ask: Ask) -> dict[str, Any]:
        request = ask.request
        body: dict[str, Any] = {
            "prompt": ask.prompt,
            "n_predict": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stream": ask.stream,
            "cache_prompt": True,
            "return_tokens": True,
        }
        if request.seed is not None and ask.seeds:
            body["seed"] = request.seed % (1 << 32)
        if ask.top is not None:
            body["n_probs"] = max(ask.top, LLAMA_TOP if request.logprob_ids else 1)
        return body | dict(ask.extra or {})

    def read(self, message: Mapping[str, Any], ask: Ask, seen: int) -> Piece:
        text = str(message["content"])
        ids: tuple[int, ...] | None = _ids(message.get("tokens") or [])
        total = message.get("tokens_predicted")
        stopped = bool(message.get("stop"))
        missing = 0 if stopped or total is None else total - seen - len(ids or ())
        if 0 < missing < CHARACTER_TOKENS and not text.isascii():
            # It holds a character back until all of its tokens are there, and then names only the last one.
            ids = None
        finish = None
        if stopped:
            finish = "length" if message.get("stop_type") == "limit" else "stop"
        entries = _list(message.get("completion_probabilities") or [])
        timings: Mapping[str, Any] = message.get("timings") or {}
        return Piece(
            ids=ids,
            text=text,
            sampled=tuple(float(one["logprob"]) for one in entries),
            tops=tuple({int(top["id"]): float(top["logprob"]) for top in one["top_logprobs"]} for one in entries),
            finish=finish,
            # The token that ended the text is counted and not among the ids.
            total=None if stopped else total,
            prompt_tokens=message.get("tokens_evaluated") if stopped else None,
            cached=timings.get("cache_n"),
        )


class OllamaDialect:
    """Ollama's own endpoint, text in and out, without its template around the prompt (docs.ollama.com/api/generate)."""

    kind: ServerKind = "ollama"
    ids = False
    health = "/api/version"
    path = "/api/generate"

    def body(self, ask: Ask) -> dict[str, Any]:
        request = ask.request
        options: dict[str, Any] = {
            "num_predict": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
        }
        if request.seed is not None and ask.seeds:
            options["seed"] = request.seed % (1 << 31)
        body: dict[str, Any] = {
            "model": ask.model,
            "prompt": ask.prompt,
            "raw": True,
            "stream": ask.stream,
            "options": options,
        }
        if ask.top is not None:
            body |= {"logprobs": True, "top_logprobs": ask.top}
        extra = dict(ask.extra or {})
        options |= extra.pop("options", {})
        return body | extra

    def read(self, message: Mapping[str, Any], ask: Ask, seen: int) -> Piece:
        entries = _list(message.get("logprobs") or [])
        done = bool(message["done"])
        return Piece(
            text=str(message["response"]),
            sampled=tuple(float(one["logprob"]) for one in entries),
            tops=tuple(
                {str(top["token"]): float(top["logprob"]) for top in _list(one.get("top_logprobs") or [])}
                for one in entries
            ),
            finish=(message.get("done_reason") or "stop") if done else None,
            total=message.get("eval_count") if done else None,
            prompt_tokens=message.get("prompt_eval_count") if done else None,
            model=message.get("model"),
        )


DIALECTS: dict[ServerKind, Dialect] = {
    one.kind: one for one in (VllmDialect(), SGLangDialect(), LlamaDialect(), OllamaDialect(), OpenAIDialect())
}


def checked(piece: Piece, ask: Ask, seen: int, vocabulary: int) -> Piece:
    """Returns the piece if it can be true.

    Raises:
        Trouble: tokens are missing or there twice, ids are no ids of this model, or log-probabilities are none.
    """
    if piece.ids is not None:
        if piece.total is not None and piece.total != seen + len(piece.ids):
            raise Trouble(
                "garbage",
                f"pieces of its answer are missing, repeated or out of order: it counts {piece.total} tokens, and "
                f"{seen + len(piece.ids)} came",
            )
        if any(not 0 <= token < vocabulary for token in piece.ids):
            raise Trouble("garbage", "it sends ids that its model's tokenizer does not have: it has another model")
        allowed = ask.request.allowed_ids
        if allowed and ask.restrict and not {*allowed}.issuperset(piece.ids):
            raise Trouble("garbage", "it samples tokens that it was asked to leave out")
    values = [*piece.sampled, *(value for top in piece.tops for value in top.values()), *(piece.prompt_logprobs or ())]
    if any(math.isnan(value) or value > _ROUNDING for value in values) or any(
        math.fsum(map(math.exp, top.values())) > 1 + _ROUNDING for top in piece.tops
    ):
        raise Trouble("garbage", "its log-probabilities are none: a probability above one, or no number")
    return piece


_ROUNDING = 1e-2
"""By which a sum of probabilities in half precision may be above one."""
