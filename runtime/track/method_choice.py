"""Asks the target which methods fit, before a sample's tracks are planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from speclrm.runtime.engine import Request
from speclrm.runtime.errors import EngineDeadError, EngineError, UsageError, told
from speclrm.runtime.events import Event, Operation, OperationDropped
from speclrm.runtime.scheduling.requests import RequestState
from speclrm.runtime.scheduling.scheduler import priority
from speclrm.runtime.seeds import derive_seed, operation_id
from speclrm.runtime.tokens.prompts import question_ids
from speclrm.runtime.tokens.steps import split_ending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from speclrm.runtime.protocols import Question
    from speclrm.runtime.scheduling.requests import RequestLane

PLAN_TRACK = "plan"
"""Stands for the track's name in the operation's id: there is no track yet."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of the target. ``text``: None if the engine gave none; ``error`` then says why in one line."""

    text: str | None
    operations: tuple[Operation, ...] = ()
    error: str | None = None


async def ask(
    question: Question,
    problem: str,
    repeat: int,
    *,
    order: int,
    seed: int | None,
    lane: RequestLane,
    emit: Callable[[Event], object],
    room: Callable[[], Awaitable[None]],
) -> Reply:
    """Returns the target's greedy reply. Raises EngineDeadError; a request that fails alone gives an empty reply."""
    await room()
    tokenizer = lane.engine.tokenizer
    name = operation_id(problem, repeat, PLAN_TRACK, 0, "choose")
    request_state = RequestState(
        Request(
            id=name,
            prompt_ids=question_ids(tokenizer, question),
            max_tokens=question.max_tokens,
            seed=derive_seed(seed, name),
            priority=priority("choose", order),
        ),
        lane.engine.name,
    )
    lane.recall(request_state)

    def dropped(reason: Literal["cancelled", "error"], error: str | None = None) -> None:
        emit(
            OperationDropped(
                problem=problem,
                repeat=repeat,
                track=PLAN_TRACK,
                step=0,
                role="target",
                purpose="choose",
                reason=reason,
                operation=request_state.report(),
                error=error,
            )
        )

    try:
        await lane.run(request_state)
    except (EngineError, UsageError) as error:
        dropped("error", told(error))
        if isinstance(error, EngineDeadError):
            raise
        return Reply(None, error=told(error))
    except BaseException:
        dropped("cancelled")
        raise
    ids, _ = split_ending(request_state.ids, tokenizer.vocabulary)
    return Reply(tokenizer.decode(ids), (request_state.report(kept=()),))
