"""Provides an engine that costs nothing, so that only the runtime's own cost remains."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Delta, EngineStats, Request, Vocabulary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from speclrm.runtime.engine import Message

_BLANK_LINE, _END = 0x1E, 0x04
"""Control characters that no text has stand for a blank line and for the end of a turn."""
STEP_TOKENS = 32
"""Tokens of a drafted step: what 1.5B models write on average between two blank lines (docs/simulation.md)."""
DELTA_TOKENS = 8
"""Tokens of a delta, as requested from vLLM (runtime/engines/vllm.py)."""


class CheapTokenizer:
    """Maps each byte of Latin-1 to a token, in one call each way, which is about as cheap as possible. Other characters
    become question marks.
    """

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(
            size=256,
            fingerprint="cheap",
            blank_line_ids=frozenset({_BLANK_LINE}),
            newline_ids=frozenset({ord("\n")}),
            end_ids=frozenset({_END}),
            special_ids=frozenset({_END}),
        )

    def encode(self, text: str) -> list[int]:
        return list(text.replace("\n\n", chr(_BLANK_LINE)).encode("latin-1", "replace"))

    def encode_marked(self, text: str) -> list[int]:
        return self.encode(text)

    def begin(self, text: str, marked: str = "") -> list[int]:
        return self.encode(text + marked)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("latin-1").replace(chr(_BLANK_LINE), "\n\n")

    def render(self, messages: Sequence[Message], *, continue_final: bool = False) -> list[int]:
        text = "".join(f"{message['role']}: {message['content']}{chr(_END)}" for message in messages)
        return self.encode(text[:-1] if continue_final else f"{text}assistant: ")


def _deltas(letter: str) -> tuple[Delta, ...]:
    ids = (*[ord(letter)] * (STEP_TOKENS - 1), _BLANK_LINE)
    chunks = [ids[start : start + DELTA_TOKENS] for start in range(0, STEP_TOKENS, DELTA_TOKENS)]
    first, *middle, last = chunks
    return (Delta(first, cached_tokens=0), *map(Delta, middle), Delta(last, "stop"))


class EmptyEngine:
    """Answers at once: a score with full marks, a step of ``STEP_TOKENS`` in deltas of ``DELTA_TOKENS``.

    Before each delta the loop gets a turn, as with every engine that takes time; so all tracks run together. ``scored`` is
    called at each score.
    """

    def __init__(
        self,
        name: str,
        *,
        max_num_seqs: int = 256,
        max_model_len: int = 100_000,
        scored: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.tokenizer = CheapTokenizer()
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self._steps = tuple(_deltas(letter) for letter in "abcdefghij")
        self._running = 0
        self._progress = 0
        self._output_tokens = 0
        self._score: Delta | None = None
        self._scored = scored
        self._closed = False

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        self._running += 1
        try:
            if request.allowed_ids:
                await asyncio.sleep(0)
                best = request.allowed_ids[-1]
                if self._score is None or self._score.ids != (best,):
                    logprobs = {**dict.fromkeys(request.logprob_ids, -5.0), best: -0.1}
                    self._score = Delta((best,), "length", logprobs, 0)
                self._progress += 1
                self._output_tokens += 1
                self._scored()
                yield self._score
                return
            number = request.id.rsplit("/", 2)[1]  # a step that repeats the one before would end its track
            for delta in self._steps[int(number[-1])]:
                await asyncio.sleep(0)
                self._progress += 1
                self._output_tokens += DELTA_TOKENS
                yield delta
        finally:
            self._running -= 1

    def stats(self) -> EngineStats:
        return EngineStats(
            name=self.name,
            running=self._running,
            waiting=0,
            prompt_tokens=0,
            output_tokens=self._output_tokens,
            progress=self._progress,
            alive=not self._closed,
        )

    async def aclose(self) -> None:
        self._closed = True
