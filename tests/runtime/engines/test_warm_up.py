"""Each kind of request that tracks send is sent once before the first of them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from support import make_strategy, play

from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.engines.warm_up import of_each_kind
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speclrm.runtime.engine import Request

STEPS = ["First we add.\n\n", "", "Then we look.\n\n", "We go on.\n\n"] * 3


def kinds(requests: Iterable[Request]) -> set[tuple[object, ...]]:
    """What of a request decides how its tokens are sampled and what is computed beside them."""
    return {
        (
            request.temperature,
            request.top_p,
            request.seed is not None or not request.temperature,  # without a temperature nothing is drawn
            bool(request.allowed_ids),
            bool(request.logprob_ids),
            request.sampled_logprobs,
            request.first_entropy,
            request.likelihood_from is not None,
        )
        for request in requests
    }


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 1.0, "temperature": 1.0},
        {"gate_sure": -0.1},
        {"gate_entropy": 1.5},
        {"scorer": "likelihood", "score_threshold": -0.2},
        {"fidelity": "original"},
    ],
)
def test_no_kind_that_tracks_send_is_left_out_and_none_is_sent_that_they_do_not(
    options: dict[str, Any], seed: int | None
) -> None:
    found: dict[Role, set[tuple[object, ...]]] = defaultdict(set)
    scores = [-0.1, -0.5, -0.1] if "scorer" in options else [9.0, 2.0, 9.0]
    chosen = make_strategy("speculative", tracks=1, token_budget=60, **options)
    warm = {
        role: kinds(of_each_kind(role, chosen.limits, chosen.prompts, drafts=True, seeded=seed is not None))
        for role in Role
    }
    for speculate in ("always", "never"):  # both happen under a controller
        engines = {role: ScriptedEngine(by_step(STEPS, scores=scores * 4), name=role.value) for role in Role}
        play(
            make_strategy("speculative", tracks=1, token_budget=60, speculate=speculate, **options),
            target=by_step(STEPS),
            engines=engines,
            seed=seed,
        )
        for role in Role:
            found[role] |= kinds(engines[role].requests)
    for role in Role:
        assert found[role] <= warm[role]
    if (
        "gate_entropy" not in options and "fidelity" not in options
    ):  # there every first piece asks for it; no closing there
        assert found == warm


def test_a_target_alone_is_asked_for_no_score() -> None:
    chosen = make_strategy("parallel")
    sent = of_each_kind(Role.TARGET, chosen.limits, chosen.prompts, drafts=False, seeded=True)
    assert [request.id for request in sent] == ["write", "closing"]
