"""A program that runs a strategy on tiny engines into a folder, to be killed by a test."""

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
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from speclrm.runtime.engine import Engine

PROBLEMS = [Problem("a", "What is two and two?", "4"), Problem("b", "What is one and two?", "3")]
OPTIONS = {"tracks": 3, "token_budget": 160, "max_step_tokens": 16, "score_threshold": 4.0}


async def main(models: Path, directory: Path) -> None:
    work = Work(tracks=16, prompt_tokens=1024, token_budget=256, max_step_tokens=64, suffix_tokens=128)
    facts = {role: read_facts(f"tiny-{role}", models / role.value) for role in Role}
    settings = engine_settings(read_machine(), facts, work)
    tokenizers = {role: load_tokenizer(one.path) for role, one in settings.items()}
    started = await start_engines(settings, tokenizers, log_path=models / "run_owner.log")
    engines: dict[Role, Engine] = dict(started.items())
    async with Runtime(parts(engines)) as runtime:
        await runtime.run(PROBLEMS, make_strategy("speculative", **OPTIONS), directory=directory)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
