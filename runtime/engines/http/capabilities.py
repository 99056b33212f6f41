"""Says what one server can do, as it was found when it was asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import JsonValue

    from speclrm.runtime.engines.http.dialects import ServerKind

Scores = Literal["exact", "top", "digit"]
"""How a judge's digit is read: by the log-probabilities of all ten (``exact``), by those of the most probable tokens (``top``),
or as the digit that was written, without any (``digit``).
"""
CONNECTIONS: dict[ServerKind, int] = {"vllm": 256, "sglang": 256, "llama.cpp": 4, "ollama": 4, "openai": 64}
"""Requests in flight at a server that does not say how many it runs at once: by default vLLM runs 256, llama.cpp and Ollama
up to four.
"""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """``ids``: it takes and returns token ids. ``top_logprobs``: of how many tokens it tells the probability at each position.
    ``sampled_logprobs``: of each token that it writes, by its id. ``likelihood``: of a prompt's own tokens. ``stops``: it ends
    a request at a token that it was told. ``priority``, ``seeds``: it takes them. ``max_model_len``: None if it does not say.
    ``kv_tokens``: of its cache, None if it does not say. ``replies_as``: the name that its answers give the model.
    ``adds_begin``: it puts a mark of its own before a text.
    """

    server: ServerKind
    ids: bool
    scores: Scores = "digit"
    top_logprobs: int = 0
    sampled_logprobs: bool = False
    likelihood: bool = False
    stops: bool = False
    priority: bool = False
    seeds: bool = True
    max_model_len: int | None = None
    max_num_seqs: int = 64
    kv_tokens: int | None = None
    replies_as: str | None = None
    adds_begin: bool = False
    version: str | None = None

    @classmethod
    def assumed(cls, server: ServerKind, *, max_model_len: int | None = None) -> Capabilities:
        """All that the newest server of a kind can do: what a first request tries."""
        ids = server in ("vllm", "sglang", "llama.cpp")
        return cls(
            server=server,
            ids=ids,
            scores="exact" if server in ("vllm", "sglang") else "top",
            top_logprobs=20 if server != "openai" else 5,
            sampled_logprobs=ids,
            likelihood=server in ("vllm", "sglang"),
            stops=server in ("vllm", "sglang"),
            priority=server == "vllm",
            max_model_len=max_model_len,
            max_num_seqs=CONNECTIONS[server],
        )

    def record(self) -> dict[str, JsonValue]:
        """What a run's record has of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def told(self) -> str:
        """Returns it in one line, for people."""
        version = f" {self.version}" if self.version else ""
        scores = {"exact": "all ten digits", "top": f"the top {self.top_logprobs} tokens", "digit": "the digit alone"}
        parts = [
            "token ids" if self.ids else "text (re-encoded here)",
            f"scores by {scores[self.scores]}",
            *(["likelihood"] if self.likelihood else []),
            *(["priorities"] if self.priority else []),
            *([] if self.seeds else ["no seeds"]),
            f"{self.max_model_len} tokens of context" if self.max_model_len else "context unknown",
            f"up to {self.max_num_seqs} requests at once",
        ]
        return f"{self.server}{version}: {', '.join(parts)}"
