"""The command line in this process, or in one of its own, on engines that are handed to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from typer.testing import CliRunner

from speclrm import cli
from speclrm.commands import program
from speclrm.commands.screen import providing
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.engines.scripted import ByteTokenizer, ScriptedEngine, by_step
from speclrm.runtime.protocols import Role
from speclrm.runtime.run_parts import Components

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from pydantic import JsonValue

    from speclrm.app.engines import MakeEngines
    from speclrm.app.options import EngineOptions
    from speclrm.app.progress import Notify
    from speclrm.runtime.engine import Engine, Tokenizer
    from speclrm.runtime.machine.sizing import Work
    from speclrm.runtime.protocols import Problem
    from speclrm.runtime.settings import EngineSettings
    from speclrm.strategies.family import Family

STEPS = ("First [bold]we[/bold] add.\n\n", "Then \x1b[31mwe look.\n\n", "So it is \\boxed{4}.")
ENVIRONMENT = {"COLUMNS": "120", "HF_HUB_OFFLINE": "1", "SPECLRM_SPECULATE": "always"}
"""Scripted engines say nothing of what drafts are worth."""


class ScriptedEngines:
    """Engines for the command line that say the same steps in every track. ``scores``: of the steps, in their order."""

    simulated = False

    def __init__(self, options: EngineOptions, steps: Sequence[str], scores: Sequence[float], token_s: float) -> None:
        self._options = options
        self._steps = steps
        self._scores = scores
        self._token_s = token_s

    @property
    def settings(self) -> Mapping[Role, EngineSettings]:
        return {}

    @property
    def servers(self) -> Mapping[str, JsonValue]:
        return {}

    async def size(self, strategy: Family, work: Work, problems: Sequence[Problem], notify: Notify) -> None:
        notify("loading", None, None)

    async def open(self, stack: AsyncExitStack, notify: Notify) -> Components:
        engines: dict[Role, Engine] = {
            Role.TARGET: ScriptedEngine(by_step(self._steps, scores=self._scores), token_s=self._token_s)
        }
        if self._options.draft:
            engines[Role.DRAFT] = ScriptedEngine(by_step(self._steps), token_s=self._token_s)
        return Components(engines, ExactEquivalence())

    async def tokenizers(self) -> Mapping[Role, Tokenizer]:
        return {Role.TARGET: ByteTokenizer(), Role.DRAFT: ByteTokenizer()}


def scripted(steps: Sequence[str] = STEPS, scores: Sequence[float] = (9, 3, 8), token_s: float = 0.001) -> MakeEngines:
    """Makes scripted engines for whatever options."""

    def make(options: EngineOptions, dataset: str, seed: int) -> ScriptedEngines:
        return ScriptedEngines(options, steps, scores, token_s)

    return make


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


def invoke(*arguments: str, cwd: Path, engines: MakeEngines | None = None, **environment: str) -> Done:
    """The command in this process, in a folder and on engines that are given; an unexpected error is raised."""
    try:
        with chdir(cwd), providing(engines) if engines else nullcontext():
            done = CliRunner().invoke(program.app, arguments, prog_name="speclrm", env=environment)
    finally:
        structlog.reset_defaults()  # the command's log goes to a stream that is closed by now
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def speclrm(
    *arguments: str, cwd: Path, token_s: float = 0.001, scores: Sequence[float] = (9, 3, 8), **environment: str
) -> Done:
    """The command on scripted engines, in this process."""
    folders = {"SPECLRM_CACHE_DIR": str(cwd / "cache")}
    engines = scripted(scores=scores, token_s=token_s)
    return invoke(*arguments, cwd=cwd, engines=engines, **folders | ENVIRONMENT | environment)


def start(
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str],
    process: Mapping[str, Any] | None = None,
    **script: Any,
) -> subprocess.Popen[str]:
    """The command on scripted engines, in a process of its own: what needs signals. ``script``: of ``scripted``; ``process``:
    of ``Popen``.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(script), *arguments],
        cwd=cwd,
        env={**os.environ, "SPECLRM_CACHE_DIR": str(cwd / "cache"), **environment},
        **(pipes | dict(process or {})),
    )


if __name__ == "__main__":
    with providing(scripted(**json.loads(sys.argv.pop(1)))):
        cli.main()
