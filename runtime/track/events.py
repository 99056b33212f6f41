"""Publishes what became of a track's requests: each is accounted for once, and nothing that the trace has is repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from speclrm.runtime.errors import told
from speclrm.runtime.events import (
    DropReason,
    Event,
    OperationDropped,
    Scorer,
    StopReason,
    WriteKind,
)
from speclrm.runtime.unchecked_events import make_drafted, make_scored, make_written

if TYPE_CHECKING:
    from collections.abc import Callable

    from speclrm.runtime.events import Operation, Purpose
    from speclrm.runtime.protocols import Role, Score, Step
    from speclrm.runtime.replay.playback import SamplePlayback
    from speclrm.runtime.scheduling.requests import RequestState
    from speclrm.runtime.track.requests import TrackRequests


class _Where(TypedDict):
    problem: str
    repeat: int
    track: str


class TrackEvents:
    """Publishes the events of one track.

    ``where``: the fields that all of them have. ``stop_reason``: why the task that runs the track is cancelled, if it is.
    """

    __slots__ = ("_record", "_requests", "_told", "_told_all", "emit", "stop_reason", "where")

    def __init__(self, requests: TrackRequests, emit: Callable[[Event], object], record: SamplePlayback | None) -> None:
        self.emit = emit
        self.stop_reason: StopReason = "cancelled"
        self.where: _Where = {"problem": requests.problem, "repeat": requests.repeat, "track": requests.track}
        self._requests = requests
        self._record = record
        self._told = self._told_all = False

    def stopping(self, reason: StopReason) -> None:
        """Notes why the track is about to be cancelled.

        If the trace has this stop, the same requests are reported as abandoned as then, wherever the loop is now.
        """
        self.stop_reason = reason
        track = self._requests.track
        if reason == "stopped" and self._record is not None and self._record.coming(track) is not None:
            for event in self._record.stopped(track):
                self.emit(event)
            self._told = True
            self._told_all = self._record.coming(track) is not None

    def reason(self, error: BaseException) -> DropReason:
        return "error" if isinstance(error, Exception) else self.stop_reason

    def drop(self, request_state: RequestState, role: Role, purpose: Purpose, error: BaseException) -> None:
        """Accounts for a request that ended with ``error``."""
        self.dropped(request_state.report(), role, purpose, self.reason(error), error=error)

    def dropped(
        self,
        operation: Operation,
        role: Role,
        purpose: Purpose,
        reason: DropReason,
        index: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Accounts for a request that was abandoned. ``index``: its step, if that is not the next one."""
        if self._told and self._record is not None and (self._told_all or self._record.has(operation.id)):
            return  # the trace has it
        self.emit(
            OperationDropped(
                **self.where,
                step=self._requests.index if index is None else index,
                role=role.value,
                purpose=purpose,
                reason=reason,
                operation=operation,
                error=told(error) if isinstance(error, Exception) else None,
            )
        )

    def drafted(self, step: Step, operations: tuple[Operation, ...]) -> None:
        requests, sure = self._requests, step.confidence
        self.emit(
            make_drafted(
                problem=requests.problem,
                repeat=requests.repeat,
                track=requests.track,
                step=step.index,
                text=step.text,
                ids=step.ids,
                ended=step.ended,
                operations=operations,
                mean_logprob=sure and sure.mean_logprob,
                first_entropy=sure and sure.first_entropy,
                left=step.left,
            )
        )

    def scored(
        self,
        step: Step,
        score: Score,
        request_state: RequestState,
        scorer: Scorer,
        digits: tuple[float, ...] = (),
        said: str = "",
    ) -> None:
        requests = self._requests
        self.emit(
            make_scored(
                problem=requests.problem,
                repeat=requests.repeat,
                track=requests.track,
                step=step.index,
                value=score.value,
                mass=score.mass,
                digits=digits,
                said=said,
                scorer=scorer,
                operations=(request_state.report(kept=(), digits=bool(digits)),),
            )
        )

    def written(self, kind: WriteKind, step: Step, operations: tuple[Operation, ...]) -> None:
        requests = self._requests
        self.emit(
            make_written(
                problem=requests.problem,
                repeat=requests.repeat,
                track=requests.track,
                step=step.index,
                write_kind=kind,
                text=step.text,
                ids=step.ids,
                ended=step.ended,
                operations=operations,
            )
        )
