"""The command line on scripted engines, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FAKE = """
import sys
from contextlib import AsyncExitStack
from speclrm import api, cli
from speclrm.evaluators.grading import ExactEquivalence
from speclrm.runtime.engines.scripted import ScriptedEngine, by_step
from speclrm.runtime.protocols import Role
from speclrm.runtime.runtime import Parts

STEPS = ["First [bold]we[/bold] add.\\n\\n", "Then \\x1b[31mwe look.\\n\\n", "So it is \\\\boxed{4}."]

async def size(options, chosen, work, notify, problems=()):
    notify("loading", None, None)
    return api._Sized({}, {})

async def start(stack, options, sized, notify):
    engines = {Role.TARGET: ScriptedEngine(by_step(STEPS, scores=SCORES), token_s=TOKEN_S)}
    if options.draft:
        engines[Role.DRAFT] = ScriptedEngine(by_step(STEPS), token_s=TOKEN_S)
    return Parts(engines, ExactEquivalence())

api._size, api._open = size, start
cli.main()
"""


ENVIRONMENT = {"COLUMNS": "120", "HF_HUB_OFFLINE": "1", "SPECLRM_SPECULATE": "always"}
"""Scripted engines say nothing of what drafts are worth."""


def speclrm(
    *arguments: str, cwd: Path, token_s: float = 0.001, scores: tuple[float, ...] = (9, 3, 8), **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command on scripted engines, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", FAKE.replace("TOKEN_S", str(token_s)).replace("SCORES", str(scores)), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SPECLRM_CACHE_DIR": str(cwd / "cache"), **ENVIRONMENT} | environment,
    )
