"""Rebuilds the engines' replies from a trace, as the loop saw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speclrm.runtime.events import (
    MethodsChosen,
    OperationDropped,
    StepDrafted,
    StepScored,
    StepWritten,
    TrackFinished,
    VoteUpdated,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from speclrm.runtime.engine import Request
    from speclrm.runtime.events import Event, Operation


@dataclass(frozen=True, slots=True)
class RecordedReply:
    """The part of a request that one event has. ``index``: of the event among its sample's.

    ``ids``: of this share; ``operation.ahead`` come after them. ``digits``: log-probabilities of 0 to 9. ``dropped``:
    the loop abandoned the request, or it failed with ``error``; then nothing was answered. ``piece``: the request came
    to its end, and was abandoned with a later one.
    """

    index: int
    operation: Operation
    ids: Sequence[int] = ()
    digits: tuple[float, ...] = ()
    dropped: bool = False
    error: str | None = None
    piece: bool = False

    def logprobs(self, request: Request) -> dict[int, float] | None:
        values = self.digits or self.operation.logprobs
        return dict(zip(request.logprob_ids, values, strict=True)) if values and request.logprob_ids else None


def answers(events: Iterable[Event]) -> dict[str, list[RecordedReply]]:
    """Returns the shares of each operation, by its id, in order."""
    found: dict[str, list[RecordedReply]] = {}
    for index, event in enumerate(events):
        for share in _replies(index, event):
            found.setdefault(share.operation.id, []).append(share)
    return found


def _replies(index: int, event: Event) -> Iterable[RecordedReply]:
    match event:
        case StepDrafted() | StepWritten():
            rest = event.ids
            if isinstance(event, StepWritten) and event.write_kind == "closing":
                # The forced beginning of a closing comes before what the model wrote.
                kept = sum(op.output_tokens - len(op.tail) for op in event.operations)
                rest = rest[len(rest) - kept :]
            for operation in event.operations:
                kept = operation.output_tokens - len(operation.tail)
                yield RecordedReply(index, operation, (*rest[:kept], *operation.tail))
                rest = rest[kept:]
        case StepScored():
            for operation in event.operations:
                yield RecordedReply(index, operation, operation.tail, event.digits)
        case MethodsChosen():
            for operation in event.operations:
                yield RecordedReply(index, operation, operation.tail)
        case OperationDropped():
            # One that ended at the end of its step has no finish, but ids. What failed is the piece behind it.
            piece = event.operation.finish is not None or bool(event.operation.tail)
            yield RecordedReply(
                index,
                event.operation,
                event.operation.tail,
                dropped=True,
                error=None if piece else event.error,
                piece=piece,
            )
        case _:
            pass


def verdicts_of(events: Sequence[Event]) -> Mapping[tuple[str, str], bool]:
    """Returns what the votes say about pairs of answers: equal to the first of a class, or not."""
    given: dict[str, str] = {}
    found: dict[tuple[str, str], bool] = {}
    for event in events:
        if isinstance(event, TrackFinished) and event.answer is not None:
            given[event.track] = event.answer
        if isinstance(event, VoteUpdated):
            for place, members in enumerate(event.classes):
                for member in members:
                    for other in event.classes[:place]:
                        found[given[other[0]], given[member]] = False
                    found[given[members[0]], given[member]] = True
    return found
