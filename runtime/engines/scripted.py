r"""Provides an engine that answers from a script, for tests and examples: no model, no randomness, time as the script says.

    engine = ScriptedEngine(by_step(["First step.\n\n", r"So it is \boxed{4}."], scores=[8, 3]))

Its tokens are bytes, so any text can be scripted and read back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Delta, EngineStats, Finish, Message, Request, Vocabulary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from speclrm.runtime.engine import Tokenizer

_SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>")
_FIRST_SPECIAL = 256
_BLANK_LINE = _FIRST_SPECIAL + len(_SPECIAL)


class ByteTokenizer:
    """Maps each byte to a token, plus one for the blank line and the marks of a chat.

    ``thinking``: whether the model counts as one that thinks between marks.
    """

    def __init__(self, *, thinking: bool = False, fingerprint: str = "bytes") -> None:
        special = {text: _FIRST_SPECIAL + index for index, text in enumerate(_SPECIAL)}
        self._special = special
        self.vocabulary = Vocabulary(
            size=_BLANK_LINE + 1,
            fingerprint=fingerprint,
            blank_line_ids=frozenset({_BLANK_LINE}),
            newline_ids=frozenset({ord("\n")}),
            end_ids=frozenset({special["<|end|>"]}),
            special_ids=frozenset(special.values()),
            think_open=special["<think>"] if thinking else None,
            think_close=special["</think>"] if thinking else None,
        )

    def encode(self, text: str) -> list[int]:
        return self._encode(text, {})

    def encode_marked(self, text: str) -> list[int]:
        return self._encode(text, self._special)

    @staticmethod
    def _encode(text: str, marks: Mapping[str, int]) -> list[int]:
        ids: list[int] = []
        rest = text
        while rest:
            for mark, token in (*marks.items(), ("\n\n", _BLANK_LINE)):
                if rest.startswith(mark):
                    ids.append(token)
                    rest = rest[len(mark) :]
                    break
            else:
                ids.extend(rest[0].encode())
                rest = rest[1:]
        return ids

    def begin(self, text: str, marked: str = "") -> list[int]:
        return [*self.encode(text), *self.encode_marked(marked)]

    def decode(self, ids: Sequence[int]) -> str:
        data = bytearray()
        for token in ids:
            if token < _FIRST_SPECIAL:
                data.append(token)
            elif token == _BLANK_LINE:
                data.extend(b"\n\n")
            else:
                data.extend(_SPECIAL[token - _FIRST_SPECIAL].encode())
        return data.decode(errors="replace")

    def render(self, messages: Sequence[Message], *, continue_final: bool = False) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [self._special[f"<|{message['role']}|>"], *self.encode(message["content"]), self._special["<|end|>"]]
        return ids[:-1] if continue_final else [*ids, self._special["<|assistant|>"]]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request.

    ``text``: all that the model would write, marks included; limits and stop ids cut it. ``score``: for a request
    restricted to digits, the expected digit, 0 to 9; ``mass``: the probability of all digits together. ``logprobs``:
    natural-log probabilities of the tokens in turn, the last one again for all that follow; ``entropy``: of the first,
    in nats; ``likelihood``: the log-probability of each id of the prompt that is asked about. ``wait_s``: before the
    first token. ``error``: raised instead of an answer.
    """

    text: str = ""
    score: float | None = None
    mass: float = 1.0
    logprobs: Sequence[float] = (0.0,)
    entropy: float = 0.0
    likelihood: float = 0.0
    wait_s: float = 0.0
    token_s: float | None = None
    error: Exception | None = None


Script = Callable[[Request, str], Reply]
"""Answers a request; its second argument is the text of the prompt ids."""


def by_step(steps: Sequence[str], *, scores: Sequence[float] = (), closing: str = "0}") -> Script:
    """Returns a script with the same steps and scores for each track, chosen by the step's number in the request's id.

    For a request that asks for a likelihood the score is the likelihood. A whole write (no stop ids) gets all steps
    from there on. A request beyond the last step gets an end.
    """

    def script(request: Request, prompt: str) -> Reply:
        _, step, kind = request.id.rsplit("/", 2)
        index = int(step)
        match kind.partition(".")[0]:
            case "score":
                return Reply(score=scores[index], likelihood=scores[index])
            case "closing":
                return Reply(closing)
            case "write":
                return Reply("".join(steps[index:]))
            case _:
                return Reply(steps[index] if index < len(steps) else "")

    return script


@dataclass(slots=True)
class _Counters:
    running: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    progress: int = 0
    requests: list[Request] = field(default_factory=list[Request])
    aborted: list[str] = field(default_factory=list[str])


class ScriptedEngine:
    """Answers by a script, at ``token_s`` seconds a token. All requests run side by side.

    ``requests`` lists what was asked, ``aborted`` the ids of requests that were left before their end.
    """

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        tokenizer: Tokenizer | None = None,
        token_s: float = 0.01,
        chunk_tokens: int = 8,
        max_model_len: int = 100_000,
        max_num_seqs: int = 256,
    ) -> None:
        self.name = name
        self.tokenizer: Tokenizer = tokenizer or ByteTokenizer()
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self._script = script
        self._token_s = token_s
        self._chunk_tokens = chunk_tokens
        self._counters = _Counters()
        self.closed = False

    @property
    def requests(self) -> Sequence[Request]:
        return self._counters.requests

    @property
    def aborted(self) -> Sequence[str]:
        return self._counters.aborted

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        counters = self._counters
        counters.requests.append(request)
        counters.running += 1
        counters.prompt_tokens += len(request.prompt_ids)
        finished = False
        try:
            reply = self._script(request, self.tokenizer.decode(request.prompt_ids))
            if reply.wait_s:
                await asyncio.sleep(reply.wait_s)
            if reply.error is not None:
                raise reply.error
            token_s = self._token_s if reply.token_s is None else reply.token_s
            ids, finish = self._output(request, reply)
            logprobs = self._logprobs(request, reply)
            likelihood = self._likelihood(request, reply)
            # An answer without tokens still needs an end.
            for start in range(0, max(len(ids), 1), self._chunk_tokens):
                chunk = ids[start : start + self._chunk_tokens]
                await asyncio.sleep(token_s * len(chunk))
                counters.output_tokens += len(chunk)
                counters.progress += 1
                last = start + self._chunk_tokens >= len(ids)
                finished = last
                yield Delta(
                    tuple(chunk),
                    finish if last else None,
                    logprobs if start == 0 else None,
                    0 if start == 0 else None,
                    self._sampled(reply, start, start + len(chunk)) if request.sampled_logprobs else (),
                    reply.entropy if request.first_entropy and start == 0 else None,
                    likelihood if start == 0 else None,
                )
        finally:
            counters.running -= 1
            if not finished:
                counters.aborted.append(request.id)

    def _output(self, request: Request, reply: Reply) -> tuple[list[int], Finish]:
        if request.allowed_ids:
            best = max(self._logprobs(request, reply).items(), key=lambda item: item[1])[0]
            return [best], "length"
        ids = self.tokenizer.encode_marked(reply.text)
        stops = set(request.stop_ids)
        for index, token in enumerate(ids):
            if index == request.max_tokens:
                return ids[:index], "length"
            if token in self.tokenizer.vocabulary.end_ids:
                return ids[:index], "end"
            if token in stops:
                return ids[: index + 1], "stop"
        return ids, "length" if len(ids) >= request.max_tokens else "end"

    def _logprobs(self, request: Request, reply: Reply) -> Mapping[int, float]:
        """Puts all mass on the two digits around the score, so that their expectation is the score."""
        if not request.logprob_ids:
            return {}
        score = 0.0 if reply.score is None else reply.score
        low = min(int(score), 8)
        floor = 1e-9
        shares = {low: 1 - (score - low), low + 1: score - low}
        return {
            token: math.log(max(shares.get(digit, 0.0) * reply.mass, floor))
            for digit, token in enumerate(request.logprob_ids)
        }

    @staticmethod
    def _sampled(reply: Reply, start: int, end: int) -> tuple[float, ...]:
        last = len(reply.logprobs) - 1
        return tuple(reply.logprobs[min(place, last)] for place in range(start, end))

    @staticmethod
    def _likelihood(request: Request, reply: Reply) -> tuple[float, ...] | None:
        if request.likelihood_from is None:
            return None
        return (reply.likelihood,) * (len(request.prompt_ids) - request.likelihood_from)

    def stats(self) -> EngineStats:
        counters = self._counters
        return EngineStats(
            name=self.name,
            running=counters.running,
            waiting=0,
            prompt_tokens=counters.prompt_tokens,
            output_tokens=counters.output_tokens,
            progress=counters.progress,
            alive=not self.closed,
        )

    async def aclose(self) -> None:
        self.closed = True
