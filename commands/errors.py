"""Turns errors into one paragraph and an exit code: those that are raised on purpose, and those of a disk."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, TypeVar, cast

import typer

from speclrm.runtime.errors import SpecLRMError, UsageError
from speclrm.runtime.files import is_disk_error, reason, remedy

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

T = TypeVar("T")


class Ended(BaseException):
    """A signal ended the run; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def guard(start: Callable[[], None]) -> None:
    """Runs a command's work; errors become one paragraph and an exit code."""
    interrupted: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    usual = signal.getsignal(signal.SIGINT)
    if usual in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(signal.SIGINT, interrupt)
    try:
        _start_alone(start)
        sys.stdout.flush()
    except SpecLRMError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except Ended as ended:
        name = signal.Signals(ended.number).name
        complain(f"ended by {name}; what was committed is in the run's trace.")
        raise typer.Exit(128 + ended.number) from None
    except KeyboardInterrupt:
        complain("ended by SIGINT.")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(1) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001  # the last resort
        if interrupted:  # an import may wrap it in an error of its own
            complain("ended by SIGINT.")
            raise typer.Exit(130) from None
        if not isinstance(error, OSError) or not is_disk_error(error):
            say(traceback.format_exc(), err=True)  # an unexpected error may quote anything
            raise typer.Exit(1) from None
        where = "The output" if error.filename is None else os.fsdecode(error.filename)
        complain(f"{where} cannot be read or written: {reason(error)}. {remedy(error)}, then run the command again.")
        raise typer.Exit(2) from None
    finally:
        signal.signal(signal.SIGINT, usual)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # the interpreter would try again at its end, and change the exit code
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _start_alone(start: Callable[[], None]) -> None:
    """Raises the error itself where a group of tasks wraps a single one."""
    try:
        start()
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            error = error.exceptions[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        raise error from None


def complain(text: str) -> None:
    """Writes one paragraph to stderr."""
    from speclrm.commands.display import Terminal, harmless
    from speclrm.commands.logs import Unfailing

    lines = [harmless(line, 4000) for line in text.split("\n")]  # a table has several lines
    # The terminal may be closed, or the disk full that stderr goes to.
    console = Terminal(file=cast("Any", Unfailing(sys.stderr)))
    console.print("speclrm: " + "\n".join(lines), highlight=False, soft_wrap=True)


def say(text: object = "", *, err: bool = False) -> None:
    """Writes a line to stdout, or to stderr."""
    from speclrm.commands.display import visible

    typer.echo(visible(str(text)), err=err)


def checked(kind: type[T], **values: Any) -> T:
    """Makes options of a class. Raises UsageError, which names each wrong one."""
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        problems = "; ".join(
            # Of one of several values its option is named.
            f"--{'-'.join(part for part in item['loc'] if isinstance(part, str)).replace('_', '-')} {item['input']!r}: "
            f"{item['msg']}"
            for item in error.errors()
        )
        raise UsageError(f"{problems}.") from None
