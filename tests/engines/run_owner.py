"""A program that runs a strategy into a folder, to be killed by a test, and resumes it if it is there. One tiny engine serves
both roles: it starts in half the time of two.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from typing import TYPE_CHECKING

from support import make_strategy, parts

from speclrm.runtime.engines.vllm_start import start_engines
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.machine.sizing import Work, engine_settings, read_facts
from speclrm.runtime.protocols import Problem, Role
from speclrm.runtime.replay.recorded_run import read_past
from speclrm.runtime.run_parts import Resumption
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.tokens.tokenizer import load_tokenizer
from speclrm.runtime.trace.reader import read_trace

if TYPE_CHECKING:
    from speclrm.runtime.engine import Engine
    from speclrm.runtime.settings import EngineSettings

PROBLEMS = [Problem("a", "What is two and two?", "4"), Problem("b", "What is one and two?", "3")]
OPTIONS = {"tracks": 3, "token_budget": 160, "max_step_tokens": 16, "score_threshold": 4.0}


def sized(models: Path) -> EngineSettings:
    work = Work(tracks=16, prompt_tokens=1024, token_budget=256, max_step_tokens=64, suffix_tokens=128)
    facts = {Role.TARGET: read_facts("tiny", models / Role.TARGET.value)}
    return engine_settings(read_machine(), facts, work)[Role.TARGET]


async def main(models: Path, directory: Path) -> None:
    settings = sized(models)
    tokenizer = load_tokenizer(settings.path)
    started = await start_engines({Role.TARGET: settings}, {Role.TARGET: tokenizer}, log_path=models / "run_owner.log")
    engines: dict[Role, Engine] = dict.fromkeys(Role, started[Role.TARGET])
    chosen = make_strategy("speculative", **OPTIONS)
    trace = directory / "trace.jsonl"
    resumption = None
    if trace.exists():
        resumption = Resumption(read_past(directory), lambda _: (chosen, 0), lambda: read_trace(trace))
    async with Runtime(parts(engines)) as runtime:
        await runtime.run(PROBLEMS, chosen, directory=directory, resumption=resumption)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
