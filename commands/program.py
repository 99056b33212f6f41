"""The program ``speclrm``: puts the commands together.

Heavy modules are imported inside the commands, so that help and errors come at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from speclrm import __version__
from speclrm.commands import (
    advise,
    bench,
    calibrate,
    compare,
    demo,
    doctor,
    evaluate,
    faults,
    grade,
    merge,
    original_scripts,
    replay,
    resume,
    runs,
)
from speclrm.commands import run as run_command
from speclrm.commands.config_file import configurable
from speclrm.commands.models import models_app
from speclrm.commands.trace import trace_app


def with_dashes(name: str) -> str:
    """Accepts options and commands with underscores too, as the original scripts do."""
    return name.replace("_", "-")


app = typer.Typer(
    name="speclrm",
    help="Step-level speculative reasoning: a small draft model writes each step, a large target model scores and "
    "rewrites, many tracks think in parallel and vote.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"token_normalize_func": with_dashes},
)
app.add_typer(models_app, name="models")
app.add_typer(trace_app, name="trace")


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


for name, function in {
    "run": run_command.run,
    "resume": resume.resume,
    "replay": replay.replay,
    "runs": runs.runs,
    "merge": merge.merge,
    "eval": evaluate.evaluate,
    "compare": compare.compare,
    "grade": grade.grade,
    "calibrate": calibrate.calibrate,
    "advise": advise.advise,
    "demo": demo.demo,
    "doctor": doctor.doctor,
}.items():
    app.command(name)(configurable(name)(function))
app.command("faults")(faults.faults)
bench.add_to(app)
original_scripts.add_to(app)
