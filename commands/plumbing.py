"""What commands share: the screen, the loop, and one paragraph for each error."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer

from speclrm.runtime.errors import SpecLRMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from rich.console import Console

    from speclrm.display import Monitor
    from speclrm.runtime.protocols import Sink

T = TypeVar("T")
DisplayKind = Literal["rich", "plain", "json", "none"]
LogLevel = Literal["debug", "info", "warning", "error"]


class Screen:
    """The display for the time of a run: what follows it, what is told of stages, and where diagnostics go."""

    def __init__(self, kind: DisplayKind | None, log_file: Path | None, log_level: LogLevel) -> None:
        from speclrm.display import JsonView, LiveView, Monitor, PlainView, Terminal
        from speclrm.logs import configure

        self.console = Terminal(stderr=True)
        self.kind: DisplayKind = kind or ("rich" if self.console.is_terminal else "plain")
        self.monitor: Monitor = Monitor()
        self.sinks: list[Sink] = [self.monitor]
        self.notify = self.monitor.notify
        self._stack = ExitStack()
        self._live = None
        configure(log_level, file=log_file, console=self.console if self.kind == "rich" else None)
        if self.kind == "rich":
            self._live = LiveView(self.monitor, self.console)
        elif self.kind == "plain":
            plain = PlainView(self.monitor, self.console)
            self.sinks = [plain]
            self.notify = plain.notify
        elif self.kind == "json":
            self.sinks = [JsonView(self.monitor)]

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _Ended(BaseException):
    """The run was ended from outside; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_async(make: Callable[[], Coroutine[Any, Any, T]], *, virtual: bool = False) -> T:
    """Runs under uvloop, or under ``virtual`` time. SIGINT and SIGTERM cancel the work, which then ends in good order."""
    import uvloop

    from speclrm.runtime.clock import VirtualTimeLoop
    from speclrm.runtime.collector import rare_collections

    ended: list[int] = []

    async def work() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(make())

        def end(number: int) -> None:
            # Only the first counts: a second one must not cut short what the first one set going.
            if not ended:
                ended.append(number)
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        try:
            return await task
        except asyncio.CancelledError:
            if ended:
                raise _Ended(ended[0]) from None
            raise

    with (
        rare_collections(),
        asyncio.Runner(loop_factory=VirtualTimeLoop if virtual else uvloop.new_event_loop) as runner,
    ):
        return runner.run(work())


def guard(start: Callable[[], None]) -> None:
    """Every error that we raise on purpose becomes one paragraph and an exit code, any other one a traceback."""
    try:
        start()
    except SpecLRMError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except _Ended as ended:
        name = signal.Signals(ended.number).name
        complain(f"ended by {name}; what was committed is in the run's trace.")
        sys.stdout.flush()
        raise typer.Exit(128 + ended.number) from None
    except KeyboardInterrupt:
        complain("ended by SIGINT.")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except typer.Exit:
        raise
    except Exception:  # noqa: BLE001  # the last resort
        say(traceback.format_exc(), err=True)  # an error that nobody expected may quote anything
        raise typer.Exit(1) from None


def complain(text: str) -> None:
    from speclrm.display import Terminal, harmless

    lines = [harmless(line, 4000) for line in text.split("\n")]  # a table has several
    Terminal(stderr=True).print("speclrm: " + "\n".join(lines), highlight=False, soft_wrap=True)


def say(text: object = "", *, err: bool = False) -> None:
    """A line on stdout, or on stderr."""
    from speclrm.display import visible

    typer.echo(visible(str(text)), err=err)


def checked(kind: type[T], **values: Any) -> T:
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        problems = "; ".join(
            f"--{'-'.join(map(str, item['loc'])).replace('_', '-')} {item['input']!r}: {item['msg']}"
            for item in error.errors()
        )
        raise UsageError(f"{problems}.") from None


def read_threshold(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--score-threshold {text!r} is neither a number nor auto.") from None


def read_seed(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--seed {text!r} is neither a whole number nor none.") from None


def stdout() -> Console:
    from speclrm.display import Terminal

    console = Terminal()
    # In a file or pipe there is no width to keep to, and a folded table is hard to read by programs.
    return console if console.is_terminal else Terminal(width=160)


def print_paths(console: Console, directory: Path) -> None:
    names = ("trace.jsonl", "results.jsonl", "summary.json")
    line = f"run         {directory}: {', '.join(names)}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_calibration(console: Console, result: Any) -> None:
    counts: dict[int, int] = {}
    for score in result.scores:
        counts[round(score)] = counts.get(round(score), 0) + 1
    spread = " ".join(f"{digit}:{count}" for digit, count in sorted(counts.items()))
    judged = f"; digits had {result.mass:.0%} of the judge's probability" if result.scorer == "judge" else ""
    for line in (
        f"calibration {len(result.scores)} scores of drafted steps, from {result.scores[0]:.2f} to {result.scores[-1]:.2f}, "
        f"rounded {spread}{judged}",
        f"threshold   {result.threshold:.3f} keeps {result.acceptance:.0%} of them",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_measured(console: Console, report: Any) -> None:
    """What the engines cost and what the scores are worth, of an ``api.CalibrationReport``."""
    from rich.table import Table

    judge, world = report.judge, report.preset.world
    worth = "all ended alike" if judge.auroc is None else f"AUROC {judge.auroc:.2f}"
    error = "" if judge.calibration_error is None else f", expected calibration error {judge.calibration_error:.2f}"
    kept = " ".join(f"{threshold:g}:{share:.0%}" for threshold, share in judge.thresholds if 0 < share < 1)
    lines = (
        f"judge       {judge.steps} scores against their sample's outcome ({judge.right} right): {worth}{error}",
        f"kept at     {kept or 'all or nothing at every half point'}",
        f"steps       {world.draft_step:.1f} tokens drafted, {world.target_step:.1f} rewritten; {world.steps:.1f} a track",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in (
        "engine",
        "iteration",
        "new token",
        "1k of context",
        "sampling",
        "request",
        "beside other",
        "fit off by",
    ):
        table.add_column(name)
    for role, fit in report.preset.engines.items():
        cost = fit.cost
        times = (cost.w, cost.p, 1000 * cost.k, cost.s, cost.request_s)
        table.add_row(
            role,
            *(f"{1000 * time:.3g} ms" for time in times),
            f"{fit.share:.0%}",
            f"{fit.residual:.0%} of {fit.measurements}",
        )
    console.print(table)
    name = report.preset_file if report.preset_file.parent.name != "presets" else report.preset_file.stem
    line = (
        f"preset      {report.preset_file}; used by `--target sim/{name} --draft sim/{name}` and `--dataset sim:{name}`"
    )
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def first_error(summary: Any) -> str:
    return next((track.error for row in summary.samples for track in row.tracks if track.error), "unknown")
