"""Kills one of two vLLM servers of the target while a run is under way, and starts it again.

    python tests/engines/two_servers.py --target FOLDER --draft MODEL [--problems 8] [--token-budget 160]

The servers are vLLM's own, the draft runs in the program's process. Prints what became of the run as one line of JSON: samples
lost, seconds from the kill to the next step of the target, seconds until the server was used again, whether the trace is well
and its replay exact. Exit code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from servers import VllmServer, vllm_server

NAME = "served"
WAIT_LIMIT_S = 1800.0
AGAIN_S = 15.0
"""Seconds from the kill until the server is started again."""


def events(folder: Path) -> list[dict[str, Any]]:
    trace = folder / "trace.jsonl"
    if not trace.exists():
        return []
    return [json.loads(line) for line in trace.read_text().splitlines(keepends=True) if line.endswith("\n")]


def written_by_target(found: list[dict[str, Any]]) -> int:
    """Steps that the target has scored or written."""
    return sum(event["kind"] in ("step_scored", "step_written") for event in found)


def speclrm(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("speclrm")), *arguments]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="the folder of the target's model")
    parser.add_argument("--draft", required=True, help="the draft's model")
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--token-budget", type=int, default=160)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as there, ExitStack() as stack:
        folder = Path(there)
        found = attempt(stack, folder, given)
        print(json.dumps(found))
    right = found["samples"] == given.problems and found["check"] and found["replay"] and found["failed"]
    return 0 if right and found["recovered"] else 1


def attempt(stack: ExitStack, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    data = folder / "problems.jsonl"
    rows = [
        {"id": str(n), "problem": f"What is {n} + {n + 7}?", "answer": str(2 * n + 7)} for n in range(given.problems)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = (stack.enter_context(vllm_server(given.target, folder / f"{n}.log")) for n in (1, 2))
    run = folder / "run"
    tokenizer = ("--target-tokenizer", str(given.target))
    program = subprocess.Popen(
        speclrm(
            *("run", "speculative", "--dataset", str(data), "--tracks", "2", "--concurrency", "3"),
            *("--target", f"http/{NAME}@{first.url},{second.url}", *tokenizer, "--draft", given.draft),
            *("--token-budget", str(given.token_budget), "--max-step-tokens", "48", "--speculate", "always"),
            *("--display", "plain", "--output-dir", str(run)),
        )
    )
    stack.callback(program.kill)
    until = time.monotonic() + WAIT_LIMIT_S
    while written_by_target(events(run)) < 6 and program.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    killed_s = time.monotonic()
    first.kill()
    threading.Thread(target=again, args=(first,), daemon=True).start()
    next_s = None
    while next_s is None and program.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
        found = events(run)
        failed = next((n for n, event in enumerate(found) if event["kind"] == "engine_failed"), len(found))
        if written_by_target(found[failed:]):
            next_s = time.monotonic() - killed_s
    code = program.wait(WAIT_LIMIT_S)
    every = events(run)
    back = [event for event in every if event["kind"] == "engine_recovered"]
    return {
        "exit": code,
        "samples": sum(event["kind"] == "sample_finished" for event in every),
        "next_step_s": next_s,
        "failed": [(e["engine"], e["reason"], e["requests"]) for e in every if e["kind"] == "engine_failed"],
        "recovered": [(e["engine"], round(e["down_s"], 1)) for e in back],
        "used_again": any(
            operation["engine"] == back[0]["engine"]
            for event in every
            if back and event["seq"] > back[0]["seq"]
            for operation in event.get("operations", [])
        ),
        "check": subprocess.run(speclrm("trace", "check", str(run)), check=False).returncode == 0,
        "replay": subprocess.run(speclrm("replay", str(run)), check=False).returncode == 0,
    }


def again(server: VllmServer) -> None:
    time.sleep(AGAIN_S)
    server.start()


if __name__ == "__main__":
    sys.exit(main())
