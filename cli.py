"""The commands: parse, call the api, print. No logic of its own.

Heavy modules are imported inside the commands, so that help and errors come at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from speclrm import __version__
from speclrm.runtime.errors import SpecLRMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rich.console import Console

    from speclrm.display import Monitor
    from speclrm.runtime.protocols import Sink

T = TypeVar("T")
DisplayKind = Literal["rich", "plain", "json", "none"]
LogLevel = Literal["debug", "info", "warning", "error"]

app = typer.Typer(
    name="speclrm",
    help="Step-level speculative reasoning: a small draft model writes each step, a large target model scores and "
    "rewrites, many tracks think in parallel and vote.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="Names to local weights: list, pull, path.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")

Draft = Annotated[str | None, typer.Option(help="Draft model: a known name, a hub repository, or a folder.")]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    typer.Option(help="Data type of the engines; auto goes by the processor."),
]
KvCache = Annotated[
    float | None, typer.Option(help="GiB of key-value cache for each engine.", show_default="by the work")
]
EngineLog = Annotated[Path | None, typer.Option(help="Where the engines write their own log.")]
Display = Annotated[
    DisplayKind | None,
    typer.Option(
        help="rich: live view; plain: lines; json: one JSON object a sample on stdout; none: only the report.",
        show_default="rich on a terminal, plain elsewhere",
    ),
]
LogFile = Annotated[Path | None, typer.Option(help="Diagnostics as JSON lines into this file instead of stderr.")]
LogLevelOption = Annotated[LogLevel, typer.Option(help="Least level of diagnostics.")]
ScoreMethod = Annotated[
    Literal["greedy", "average"] | None,
    typer.Option(help="The judge's best digit, or the expected one.", show_default="greedy"),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"speclrm {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    strategy: Annotated[str, typer.Argument(help="baseline, or speculative.")],
    dataset: Annotated[str, typer.Option(help="reasoning-gym:TASK[?option=value], or a JSONL file.")],
    target: Annotated[
        str | None, typer.Option(help="Target model: a known name, a hub repository, or a folder.")
    ] = None,
    draft: Draft = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; must be new or empty.", show_default="runs/<time>-<strategy>")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Samples of each problem.")] = 1,
    tracks: Annotated[int | None, typer.Option(help="Tracks of each sample.", show_default="by the strategy")] = None,
    methods: Annotated[str | None, typer.Option(help="Method codes for the tracks, such as A,C,M.")] = None,
    score_threshold: Annotated[
        str | None, typer.Option(help="0 to 9, or auto: what `calibrate` kept.", show_default="7")
    ] = None,
    score_method: ScoreMethod = None,
    token_budget: Annotated[int | None, typer.Option(help="Committed tokens of a track.", show_default="8192")] = None,
    max_step_tokens: Annotated[int | None, typer.Option(help="A step is cut there.", show_default="512")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.", show_default="0.6")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", show_default="0.95")] = None,
    step_limit: Annotated[int | None, typer.Option(help="Steps of a track.", show_default="none")] = None,
    closing: Annotated[
        bool, typer.Option(help="Ask a track that used up its budget for its answer, in one short write.")
    ] = True,
    seed: Annotated[str, typer.Option(help="A number, or none.")] = "0",
    concurrency: Annotated[int, typer.Option(min=1, help="Samples at work at once.")] = 16,
    dtype: Dtype = "auto",
    kv_cache_gib: KvCache = None,
    engine_log: EngineLog = None,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Solve the problems of a dataset, write a trace, and grade the answers."""

    def start() -> None:
        from speclrm import api

        options = _checked(
            api.RunOptions,
            strategy=strategy,
            dataset=dataset,
            target=target,
            draft=draft,
            output_dir=output_dir,
            limit=limit,
            repeats=repeats,
            tracks=tracks,
            methods=None if methods is None else tuple(code.strip().upper() for code in methods.split(",")),
            score_threshold=_threshold(score_threshold),
            score_method=score_method,
            token_budget=token_budget,
            max_step_tokens=max_step_tokens,
            temperature=temperature,
            top_p=top_p,
            step_limit=step_limit,
            closing=closing,
            seed=_seed(seed),
            concurrency=concurrency,
            dtype=dtype,
            kv_cache_gib=kv_cache_gib,
            engine_log=engine_log,
        )
        with _Screen(display, log_file, log_level) as screen:
            report = _run_async(
                lambda: api.run(options, sinks=screen.sinks, notify=screen.notify, plan=screen.monitor.plan)
            )
        if screen.kind == "json":
            from speclrm.display import print_json

            print_json({"kind": "summary", **report.summary.model_dump(mode="json", exclude={"samples"})})
        else:
            from speclrm.display import print_report

            console = _stdout()
            print_report(console, report.summary)
            _print_paths(console, report.directory)
        if report.summary.outcomes and set(report.summary.outcomes) == {"error"}:
            raise SpecLRMError(f"Every track failed. The first error: {_first_error(report.summary)}")

    _guard(start)


@app.command()
def calibrate(
    target: Annotated[str, typer.Argument(help="The model that judges.")],
    draft: Draft = None,
    dataset: Annotated[
        str, typer.Option(help="Problems to look at; not those to be solved later.")
    ] = "reasoning-gym:chain_sum?min_terms=3&max_terms=3&max_digits=2",
    limit: Annotated[int, typer.Option(min=1, help="Problems.")] = 4,
    tracks: Annotated[int, typer.Option(min=1, help="Tracks of each.")] = 2,
    token_budget: Annotated[int, typer.Option(min=1, help="Tokens of a track.")] = 256,
    max_step_tokens: Annotated[int, typer.Option(min=1, help="A step is cut there.")] = 128,
    score_method: Annotated[Literal["greedy", "average"], typer.Option(help="As in `run`.")] = "average",
    acceptance: Annotated[float, typer.Option(help="The share of drafts to keep.")] = 0.6,
    dtype: Dtype = "auto",
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """See how a target scores a draft's steps, and keep a threshold for `run --score-threshold auto`."""

    def start() -> None:
        from speclrm import api

        options = _checked(
            api.CalibrateOptions,
            target=target,
            draft=draft,
            dataset=dataset,
            limit=limit,
            tracks=tracks,
            token_budget=token_budget,
            max_step_tokens=max_step_tokens,
            score_method=score_method,
            acceptance=acceptance,
            dtype=dtype,
        )
        with _Screen(display, log_file, log_level) as screen:
            result = _run_async(
                lambda: api.calibrate(options, sinks=screen.sinks, notify=screen.notify, plan=screen.monitor.plan)
            )
        if screen.kind == "json":
            from speclrm.display import print_json

            print_json({"kind": "calibration", **result.model_dump(mode="json")})
        else:
            _print_calibration(_stdout(), result)
            kept = api.calibration_path(result.target, result.draft, result.score_method)
            typer.echo(f"kept in     {kept}; used by `run --score-threshold auto --score-method {result.score_method}`")

    _guard(start)


@app.command()
def demo(
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the two runs go.", show_default="runs/<time>-demo")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Target model.", show_default="a known 0.5B model")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft model.", show_default="a known 135M model")] = None,
    dataset: Annotated[str | None, typer.Option(help="Problems.", show_default="sums of three numbers")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems.", show_default="6")] = None,
    tracks: Annotated[int | None, typer.Option(min=1, help="Tracks of each.", show_default="3")] = None,
    display: Display = None,
    log_file: LogFile = None,
    log_level: LogLevelOption = "warning",
) -> None:
    """Calibrate, solve a few problems with a draft and a target, then with the target alone, and compare."""

    def start() -> None:
        from speclrm import demo as demonstration

        given = {"target": target, "draft": draft, "dataset": dataset, "limit": limit, "tracks": tracks}
        options = demonstration.DemoOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        directory = output_dir or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-demo"
        with _Screen(display, log_file, log_level) as screen:
            comparison = _run_async(
                lambda: demonstration.compare(
                    options, directory, sinks=screen.sinks, notify=screen.notify, plan=screen.monitor.plan
                )
            )
        from speclrm.display import print_report

        console = _stdout()
        _print_calibration(console, comparison.calibration)
        console.print()
        print_report(console, comparison.speculative, f"{options.draft} drafts, {options.target} scores and rewrites")
        console.print()
        print_report(console, comparison.alone, f"{options.target} alone, as many tracks at once")
        console.print()
        for line in demonstration.verdict(comparison):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for name in ("speculative", "baseline"):
            _print_paths(console, directory / name)

    _guard(start)


@models_app.command("list")
def models_list() -> None:
    """The models with a short name, and which of them are here."""

    def start() -> None:
        from rich.table import Table

        from speclrm.runtime import models

        table = Table(box=None, pad_edge=False)
        for name in ("name", "parameters", "download", "here", "on the hub"):
            table.add_column(name, overflow="fold")
        for status in models.list_models():
            known = status.model
            size = f"{known.index.bytes / 1e6:.0f} MB, {known.bytes / 1e6:.0f} on disk"
            table.add_row(known.name, known.parameters, size, str(status.path or "no"), known.hub)
        _stdout().print(table)

    _guard(start)


@models_app.command("pull")
def models_pull(
    names: Annotated[list[str], typer.Argument(help="Known names or hub repositories.")], display: Display = None
) -> None:
    """Fetch models; one that is here already is not fetched again."""

    def start() -> None:
        from speclrm.runtime import models

        for name in names:
            models.find_local(name)  # all names are checked before anything is fetched
        with _Screen(display, None, "warning") as screen:
            for name in names:
                path = _run_async(lambda name=name: models.pull(name, screen.notify))
                typer.echo(path)

    _guard(start)


@models_app.command("path")
def models_path(name: Annotated[str, typer.Argument(help="A model's name.")]) -> None:
    """Print the folder of a model that is here."""

    def start() -> None:
        from speclrm.runtime import models
        from speclrm.runtime.errors import ModelError

        path = models.find_local(name)
        if path is None:
            raise ModelError(f"Model {name} is not here. Fetch it with `speclrm models pull {name}`.")
        typer.echo(path)

    _guard(start)


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False) -> None:
    """What this machine can run, with which settings, what is missing, and what it costs."""

    def start() -> None:
        from speclrm.runtime import doctor as examination

        report = examination.examine()
        if json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            from rich.text import Text

            console = _stdout()
            marks = {"ok": ("ok  ", "green"), "warn": ("note", "yellow"), "fail": ("FAIL", "red")}
            for finding in report.findings:
                mark, style = marks[finding.status]
                line = Text.assemble((mark, style), f"  {finding.what}: {finding.found}")
                console.print(line, soft_wrap=True, highlight=False)
                if finding.advice:
                    console.print(Text(f"      {finding.advice}"), soft_wrap=True, highlight=False)
        if any(finding.status == "fail" for finding in report.findings):
            raise typer.Exit(1)

    _guard(start)


def main() -> None:
    """The entry point of the ``speclrm`` command."""
    app()


# ------------------------------------------------------------------------------------------------------------- plumbing


class _Screen:
    """The display for the time of a run: what follows it, what is told of stages, and where diagnostics go."""

    def __init__(self, kind: DisplayKind | None, log_file: Path | None, log_level: LogLevel) -> None:
        from rich.console import Console

        from speclrm.display import JsonView, LiveView, Monitor, PlainView
        from speclrm.logs import configure

        self.console = Console(stderr=True)
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
            self.sinks.append(plain)
            self.notify = plain.notify
        elif self.kind == "json":
            self.sinks.append(JsonView(self.monitor))

    def __enter__(self) -> _Screen:
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


def _run_async(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs under uvloop. SIGINT and SIGTERM cancel the work, which then ends in good order."""
    import uvloop

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

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def _guard(start: Callable[[], None]) -> None:
    """Every error that we raise on purpose becomes one paragraph and an exit code."""
    try:
        start()
    except SpecLRMError as error:
        _complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except _Ended as ended:
        name = signal.Signals(ended.number).name
        _complain(f"ended by {name}; what was committed is in the run's trace.")
        sys.stdout.flush()
        raise typer.Exit(128 + ended.number) from None
    except KeyboardInterrupt:
        _complain("ended by SIGINT.")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None


def _complain(text: str) -> None:
    from rich.console import Console

    from speclrm.display import harmless

    Console(stderr=True).print(f"speclrm: {harmless(text, 4000)}", markup=False, highlight=False, soft_wrap=True)


def _checked(kind: type[T], **values: Any) -> T:
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        problems = "; ".join(
            f"--{'-'.join(map(str, item['loc'])).replace('_', '-')} {item['input']!r}: {item['msg']}"
            for item in error.errors()
        )
        raise UsageError(f"{problems}.") from None


def _threshold(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--score-threshold {text!r} is neither a number from 0 to 9 nor auto.") from None


def _seed(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--seed {text!r} is neither a whole number nor none.") from None


def _stdout() -> Console:
    from rich.console import Console

    console = Console()
    # In a file or pipe there is no width to keep to, and a folded table is hard to read by programs.
    return console if console.is_terminal else Console(width=160)


def _print_paths(console: Console, directory: Path) -> None:
    names = ("trace.jsonl", "results.jsonl", "summary.json")
    line = f"run         {directory}: {', '.join(names)}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_calibration(console: Console, result: Any) -> None:
    counts: dict[int, int] = {}
    for score in result.scores:
        counts[round(score)] = counts.get(round(score), 0) + 1
    spread = " ".join(f"{digit}:{count}" for digit, count in sorted(counts.items()))
    for line in (
        f"calibration {len(result.scores)} scores of drafted steps, from {result.scores[0]:.2f} to {result.scores[-1]:.2f}, "
        f"rounded {spread}; digits had {result.mass:.0%} of the judge's probability",
        f"threshold   {result.threshold:.3f} keeps {result.acceptance:.0%} of them",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _first_error(summary: Any) -> str:
    return next((track.error for row in summary.samples for track in row.tracks if track.error), "unknown")


if __name__ == "__main__":
    main()
