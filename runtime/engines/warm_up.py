"""Makes a request of each kind that a strategy will send: the first of a kind compiles what it needs, which takes seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Request
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from speclrm.runtime.protocols import Limits, StepPrompts

IDS = (1,) * 8
DIGITS = tuple(range(10))
"""Any ten ids."""
TOKENS = 2
"""One comes out of the prompt, the other one behind it."""


def of_each_kind(role: Role, limits: Limits, prompts: StepPrompts, *, drafts: bool, seeded: bool) -> list[Request]:
    """Makes requests as a track sends them (track/track.py, track/generate.py) to the engine of a role.

    ``drafts``: the strategy drafts steps, which the target then scores. ``seeded``: its requests carry seeds.
    """
    plain = Request("write", IDS, TOKENS, limits.temperature, limits.top_p, 0 if seeded else None)
    if role is Role.DRAFT:
        found = [replace(plain, id="draft", sampled_logprobs=limits.confidence)]
        if limits.confidence and limits.first_entropy:
            found.append(replace(plain, id="draft-entropy", sampled_logprobs=True, first_entropy=True))
        return found
    found = [plain, Request("closing", IDS, TOKENS)]
    if drafts and prompts.scorer == "likelihood":
        found.append(Request("likelihood", IDS, 1, likelihood_from=len(IDS) // 2))
        found.append(Request("end-likelihood", IDS, 1, logprob_ids=DIGITS[:1]))
    elif drafts:
        allowed = () if prompts.any_token else DIGITS
        found.append(Request("score", IDS, 1, allowed_ids=allowed, logprob_ids=DIGITS))
    return found
