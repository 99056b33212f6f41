"""A program that owns engines, to be killed by a test: prints ``loading`` and ``running`` as it gets there.

With ``unseen`` it has not yet looked for the process of its engine when it is killed.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from speclrm.runtime.engine import Request
from speclrm.runtime.engines import vllm_start
from speclrm.runtime.engines.vllm_start import start_engines
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.machine.sizing import Work, engine_settings, read_facts
from speclrm.runtime.protocols import Role
from speclrm.runtime.tokens.tokenizer import load_tokenizer


async def main(path: Path) -> None:
    work = Work(tracks=4, prompt_tokens=64, token_budget=512, max_step_tokens=64, suffix_tokens=64)
    settings = engine_settings(read_machine(), {Role.TARGET: read_facts("tiny", path)}, work)
    tokenizer = load_tokenizer(path)
    engines = await start_engines(
        settings,
        {Role.TARGET: tokenizer},
        log_path=path.parent / "owner.log",
        notify=lambda what: print("loading", flush=True),
    )
    engine = engines[Role.TARGET]
    print("running", flush=True)
    while True:
        request = Request("r", tokenizer.encode("Solve"), 500, 1.0)
        async for _ in engine.stream(request):
            pass


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
    if "unseen" in sys.argv:
        vllm_start.engine_cores = set
    asyncio.run(main(Path(sys.argv[1])))
