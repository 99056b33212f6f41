"""Defines every error that SpecLRM raises on purpose.

    SpecLRMError
    ├── UsageError            the caller's input: exit code 2 under the command line
    │   ├── SettingsError     an option or a combination of options
    │   ├── DatasetError      a dataset's name, file or row
    │   ├── ModelError        a model's name, download or files
    │   │   └── TurnNotShownError its chat template leaves out what was said
    │   ├── CapacityError     the work does not fit this machine or this model
    │   ├── RunDirectoryError an output directory that holds something else, or cannot be written
    │   ├── ResultsError      results to evaluate that are missing, or of another kind
    │   └── ResumeError       a run that cannot be resumed or replayed as asked
    ├── EngineError           an engine failed
    │   ├── EngineDeadError   it is gone; no further request can succeed
    │   ├── EngineStalledError it showed no progress for too long
    │   └── RequestError      one request was refused; others may continue
    ├── GraderError           the workers that judge answers failed
    ├── TraceError            a trace could not be written
    │   └── TraceReadError    a trace could not be read: also a UsageError
    ├── TooManyErrors         a run was stopped because too many tracks failed
    └── RuntimeClosedError    a call was under way when its runtime was closed

A message names the thing, the place, what was expected, and what to do next. The command line prints it as one
paragraph without a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

FailureReason = Literal["died", "hung", "overloaded", "out_of_memory", "garbage", "refused"]
"""Why an engine as a whole failed: its process or its connection is gone; it shows no progress; it keeps turning work away; its
memory ran out; its answers are none; it no longer takes our key, or has another model.
"""


class SpecLRMError(Exception):
    """Root of all errors that SpecLRM raises on purpose."""

    exit_code = 1


class UsageError(SpecLRMError):
    """The caller asked for something that cannot be done as asked."""

    exit_code = 2


class SettingsError(UsageError):
    """An option, or a combination of options, is out of range or contradictory."""


class DatasetError(UsageError):
    """A dataset is unknown, or its file or one of its rows is unreadable."""


class ModelError(UsageError):
    """A model is unknown, cannot be fetched, or its files are broken."""


class TurnNotShownError(ModelError):
    """A model's chat template leaves out the last turn of a conversation."""


class CapacityError(UsageError):
    """The work does not fit this machine's memory or the model's context."""


class RunDirectoryError(UsageError):
    """An output directory cannot be used: it already holds something, or not what is needed, or cannot be written."""


class ResultsError(UsageError):
    """Results that were asked for are missing, cannot be read, or do not belong together."""


class ResumeError(UsageError):
    """A run cannot be resumed or replayed as asked: what is recorded does not fit what happens now."""


class EngineError(SpecLRMError):
    """An engine failed to answer, or to start."""

    reason: FailureReason = "died"


class EngineDeadError(EngineError):
    """The engine is gone; no further request can succeed, unless it is an engine that may come back."""


class EngineStalledError(EngineError):
    """The engine showed no progress within the limit."""

    reason: FailureReason = "hung"


class RequestError(EngineError):
    """The engine refused or failed one request; others may continue."""


class GraderError(SpecLRMError):
    """The worker processes that judge answers failed as a whole."""


class TraceError(SpecLRMError):
    """A trace could not be written."""


class TraceReadError(TraceError, UsageError):
    """A trace could not be read: what was given is broken, of another kind, or newer than this program."""


class TooManyErrors(SpecLRMError):
    """A run was stopped because too many of its tracks failed."""


class RuntimeClosedError(SpecLRMError):
    """A call was under way when the block around its runtime was left."""


def told(error: BaseException) -> str:
    """Returns an error in one line, as events carry it: its type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def retold(line: str) -> Exception:
    """Returns the error that an event's line describes: of its own type if that is one of ours, else a stand-in of that name."""
    name, _, message = line.partition(": ")
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, SpecLRMError)):
        kind = type(name, (Exception,), {})
    return kind(message)


def ends_attempt(line: str | None) -> bool:
    """Returns whether an event's error is one after which no track could continue."""
    return line is not None and line.partition(": ")[0] in ("EngineDeadError", "TraceError", "TooManyErrors")


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the error to report: one of ours before any other."""
    flat = list(_flatten(errors))
    return next((error for error in flat if isinstance(error, SpecLRMError)), flat[0])


def _flatten(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _flatten(part)
    else:
        yield error
