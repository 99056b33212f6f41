"""Builds a track's requests: id, prompt, limits, seed and priority.

Everything that a request depends on is read when it is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speclrm.runtime.clock import clock
from speclrm.runtime.engine import Request
from speclrm.runtime.errors import CapacityError
from speclrm.runtime.scheduling.requests import RequestState
from speclrm.runtime.scheduling.scheduler import priority
from speclrm.runtime.seeds import derive_seed, operation_id
from speclrm.runtime.tokens.context import Context, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from speclrm.runtime.events import Purpose
    from speclrm.runtime.protocols import Limits, Role, Step
    from speclrm.runtime.scheduling.admission import Reservation
    from speclrm.runtime.scheduling.requests import RequestLane
    from speclrm.runtime.state import TrackState
    from speclrm.runtime.tokens.context import Ids


class TrackRequests:
    """Builds one track's requests from its contexts.

    ``contexts``: the track's ids, as each model sees them. ``reservation``: of KV cache, once it has one.
    ``ready_s``: when, on the loop's clock, the track could have continued.
    """

    __slots__ = (
        "_begun",
        "_now_s",
        "_openings",
        "_order",
        "_seed",
        "_state",
        "_translated",
        "contexts",
        "lanes",
        "limits",
        "problem",
        "ready_s",
        "repeat",
        "reservation",
        "track",
    )

    def __init__(
        self,
        *,
        problem: str,
        repeat: int,
        track: str,
        order: int,
        seed: int | None,
        limits: Limits,
        lanes: Mapping[Role, RequestLane],
        prompts: Mapping[Role, Sequence[int]],
        openings: Mapping[Role, Sequence[int]],
        state: Callable[[], TrackState],
    ) -> None:
        self.problem, self.repeat, self.track = problem, repeat, track
        self.limits = limits
        self.lanes = lanes
        self.contexts = {role: Context(lanes[role].engine.tokenizer, ids) for role, ids in prompts.items()}
        self.reservation: Reservation | None = None
        self.ready_s: float | None = None
        self._order = order
        self._seed = seed
        self._openings = openings
        self._state = state
        self._translated: dict[Role, tuple[Step, Sequence[int]]] = {}
        self._begun = False
        self._now_s = clock()

    @property
    def state(self) -> TrackState:
        return self._state()

    @property
    def index(self) -> int:
        """The number of the next step."""
        return len(self.state.steps)

    def ready(self) -> None:
        """Notes that the track can continue now."""
        self.ready_s = self._now_s()

    def name(self, kind: str, *, index: int | None = None, part: int = 0) -> str:
        """Returns the id of an operation. ``kind``: its purpose, with ``-ahead`` appended for work ahead."""
        return operation_id(self.problem, self.repeat, self.track, self.index if index is None else index, kind, part)

    def opening(self, role: Role) -> Sequence[int]:
        """Returns the ids that come before the first step in every request but those that write it."""
        if not self._begun:
            self._begun = bool(self.state.steps)
        return () if self._begun else self._openings[role]

    def ids_for(self, step: Step, role: Role) -> Sequence[int]:
        """Returns the step in a model's ids. Text is encoded only for a model that did not write it, and only once."""
        if step.role is role:
            return step.ids
        held = self._translated.get(role)
        if held is None or held[0] is not step:
            source = self.contexts[step.role].tokenizer
            held = step, translate(step.ids, step.text, source, self.contexts[role].tokenizer)
            self._translated[role] = held
        return held[1]

    def append(self, step: Step) -> None:
        """Appends a committed step to all contexts."""
        for role, context in self.contexts.items():
            if opening := self.opening(role):
                context.append(opening)
            context.append(self.ids_for(step, role))
        self._translated.clear()

    def request_state(
        self,
        role: Role,
        purpose: Purpose,
        ids: Ids,
        max_tokens: int,
        *,
        temperature: float | None = None,
        stop_ids: tuple[int, ...] = (),
        allowed_ids: tuple[int, ...] = (),
        logprob_ids: tuple[int, ...] = (),
        sampled_logprobs: bool = False,
        first_entropy: bool = False,
        likelihood_from: int | None = None,
        part: int = 0,
        index: int | None = None,
        ahead: bool = False,
    ) -> RequestState:
        """Builds a request without sending it. ``temperature``: None for the recipe's, with its ``top_p``.

        Raises:
            CapacityError: the context has no room for another token.
        """
        name = self.name(f"{purpose}-ahead" if ahead else purpose, index=index, part=part)
        # Work ahead may be requested while the track waits for its first reservation.
        place = 0 if self.reservation is None else self.reservation.places.get(role, 0)
        engine = self.lanes[role].engines[place]
        room = engine.max_model_len - len(ids)
        if room <= 0:
            fits = "Use a smaller --token-budget" if room + self.limits.token_budget > 0 else "Leave the problem out"
            raise CapacityError(
                f"{name}: the context has {len(ids)} tokens and {engine.name} takes {engine.max_model_len}. "
                f"{fits}, or use a model with a longer context."
            )
        request = Request(
            id=name,
            prompt_ids=ids,
            max_tokens=min(max_tokens, room),
            temperature=self.limits.temperature if temperature is None else temperature,
            top_p=self.limits.top_p if temperature is None else 1.0,
            seed=derive_seed(self._seed, name),
            stop_ids=stop_ids,
            allowed_ids=allowed_ids,
            logprob_ids=logprob_ids,
            sampled_logprobs=sampled_logprobs,
            first_entropy=first_entropy,
            likelihood_from=likelihood_from,
            priority=priority(purpose, self._order, ahead=ahead),
        )
        request_state = RequestState(request, engine.name, place, self.ready_s)
        self.lanes[role].recall(request_state)
        return request_state
