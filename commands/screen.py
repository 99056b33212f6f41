"""Runs a command's work with its display, its event loop and its engines, and prints the result."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

from speclrm.commands.errors import Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from pathlib import Path

    from rich.console import Console

    from speclrm.app.engines import MakeEngines
    from speclrm.commands.monitor import Monitor
    from speclrm.commands.screen_options import DisplayKind, LogLevel
    from speclrm.runtime.protocols import Sink

T = TypeVar("T")


_provided: ContextVar[MakeEngines | None] = ContextVar("engines", default=None)


@contextmanager
def providing(make: MakeEngines) -> Generator[None, None, None]:
    """Makes commands take their engines from here, inside the block."""
    token = _provided.set(make)
    try:
        yield
    finally:
        _provided.reset(token)


def engines() -> MakeEngines:
    """Returns the function that makes the engines for a command."""
    from speclrm.app.engines import make_engines

    return _provided.get() or make_engines


class Screen:
    """The display during a run: the sinks that follow it, the progress of its stages, and the place of diagnostics."""

    def __init__(self, kind: DisplayKind | None, log_file: Path | None, log_level: LogLevel) -> None:
        from speclrm.commands.display import JsonView, LiveView, PlainView, Terminal
        from speclrm.commands.logs import SHOWN, Unfailing, configure
        from speclrm.commands.monitor import Monitor

        self.console = Terminal(file=cast("Any", Unfailing(sys.stderr)))
        self.kind: DisplayKind = kind or ("rich" if self.console.is_terminal else "plain")
        self.monitor: Monitor = Monitor()
        self.sinks: list[Sink] = [self.monitor]
        self.notify = self._notify
        self._stack = ExitStack()
        self._live = None
        configure(
            log_level,
            file=log_file,
            console=self.console if self.kind == "rich" else None,
            shown=SHOWN if self.kind in ("rich", "plain") else (),
        )
        if self.kind == "rich":
            self._live = LiveView(self.monitor, self.console)
            self.sinks = [self._live]
        elif self.kind == "plain":
            plain = PlainView(self.monitor, self.console)
            self.sinks = [plain]
            self.notify = plain.notify
        elif self.kind == "json":
            self.sinks = [JsonView(self.monitor)]

    def _notify(self, what: str, done: float | None, total: float | None) -> None:
        from speclrm.app.progress import NOTE
        from speclrm.commands.display import visible

        if what.startswith(NOTE):  # a live display would draw the next stage over it
            self.console.print(visible(what, keep="\n"), markup=False, highlight=False, soft_wrap=True)
        else:
            self.monitor.notify(what, done, total)

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def run_async(make: Callable[[], Coroutine[Any, Any, T]], *, virtual: bool = False) -> T:
    """Runs a coroutine under uvloop, or under ``virtual`` time. A signal to end cancels it, and it then ends in good order."""
    import uvloop

    from speclrm.runtime.clock import VirtualTimeLoop
    from speclrm.runtime.gc_tuning import rare_collections

    ended: list[int] = []

    async def work() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(make())

        def end(number: int) -> None:
            # Only the first signal counts: a second one must not cut short the clean-up.
            if not ended:
                ended.append(number)
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, end, number)
        try:
            return await task
        except asyncio.CancelledError:
            if ended:
                raise Ended(ended[0]) from None
            raise

    with (
        rare_collections(),
        asyncio.Runner(loop_factory=VirtualTimeLoop if virtual else uvloop.new_event_loop) as runner,
    ):
        return runner.run(work())


def stdout() -> Console:
    from speclrm.commands.display import Terminal

    console = Terminal()
    # A file or pipe has no width, and programs read folded tables badly.
    return console if console.is_terminal else Terminal(width=160)


def print_paths(console: Console, directory: Path) -> None:
    names = ("trace.jsonl", "results.jsonl", "summary.json")
    line = f"run         {directory}: {', '.join(names)}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def first_error(summary: Any) -> str:
    return next((track.error for row in summary.samples for track in row.tracks if track.error), "unknown")
