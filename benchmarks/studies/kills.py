"""Kills simulated runs at random moments, resumes them, and compares every figure of their summaries with an undisturbed run's.

    python benchmarks/studies/kills.py [--runs 10] [--kills 2]

Each run is a process of its own that gets SIGKILL. Left out of the comparison are times, and what a break changes in truth:
the prompt tokens that a cold cache does not find, how many requests shared an iteration, and which of two tracks voted
first. Where the target writes alone, a track is one long request, which a resumed run makes again: there requests with
their prompts, and the winner among tracks without scores, are left out as well. The exit code is 1 if any other figure
differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUN = (
    *("--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b", "--tracks", "2", "--token-budget", "1500"),
    *("--speculate", "always", "--draft-ahead", "never", "--rewrite-ahead", "never", "--display", "none"),
)
"""Work ahead of scores is a matter of time, also without a break."""
TIMES = ("seconds", "queue_s", "engine_s", "busy_s", "idle", "idle_ready", "waited_s")
CACHE = ("cached", "cache_hit", "all", "all_flops", "batch")
NAMES = ("run",)
WRITES = ("requests", "operations", "prompt", "winner")
ALONE = ("baseline", "parallel")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "speclrm.cli", *arguments]


def figures(folder: Path, strategy: str) -> dict[str, Any]:
    """Returns the figures of a run's summary by their places, those left out aside; samples by their names."""
    out = (*TIMES, *CACHE, *NAMES, *(WRITES if strategy in ALONE else ()))
    summary = json.loads((folder / "summary.json").read_text())
    rows = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    samples = {f"{row['problem']}/{row['repeat']}": row | {"votes": _sorted(row["votes"])} for row in rows}
    found: dict[str, Any] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():  # pyright: ignore[reportUnknownVariableType]
                if name not in out:
                    walk(inner, f"{place}/{name}")
        else:
            found[place] = value

    walk({**summary, "samples": samples}, "")
    return found


def _sorted(votes: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    return sorted((answer, sorted(tracks)) for answer, tracks in votes)


def killed(folder: Path, begin: list[str], lines: list[int]) -> int:
    """Runs a command, kills it each time that its trace has so many lines, resumes it to the end, and returns how many
    kills hit.
    """
    trace = folder / "trace.jsonl"
    hits = 0
    for many in lines:
        what = command("resume", str(folder), "--display", "none") if trace.exists() else begin
        process = subprocess.Popen(what, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if trace.exists() and trace.read_bytes().count(b"\n") >= many:
                process.send_signal(signal.SIGKILL)
                hits += 1
                break
            time.sleep(0.005)
        process.wait()
    done = subprocess.run(
        command("resume", str(folder), "--display", "none"), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return hits


def compare(strategy: str, problems: int, runs: int, kills: int, seed: int, folder: Path) -> list[str]:
    """Returns one line a run, with what differs. ``folder``: an empty one for all runs."""
    begin = command("run", strategy, *RUN, "--dataset", f"sim:aime-mix?size={problems}", "--output-dir")
    subprocess.run([*begin, str(folder / "whole")], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = figures(folder / "whole", strategy)
    length = (folder / "whole" / "trace.jsonl").read_bytes().count(b"\n")
    draw = random.Random(seed)
    lines: list[str] = []
    for number in range(runs):
        place = folder / str(number)
        at = sorted(draw.randrange(2, length) for _ in range(kills))
        hits = killed(place, [*begin, str(place)], at)
        one = figures(place, strategy)
        wrong = [name for name in sorted(whole.keys() | one.keys()) if whole.get(name) != one.get(name)]
        told = "".join(f"\n    {name}: {whole.get(name)} -> {one.get(name)}" for name in wrong)
        lines.append(f"run {number}: killed {hits} times at {at} of {length} events; {len(wrong)} figures differ{told}")
        print(lines[-1], flush=True)
    return lines


SAME = "; 0 figures differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=2, help="of each run")
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--strategy", default="speculative")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = compare(given.strategy, given.problems, given.runs, given.kills, given.seed, Path(folder))
    sys.exit(any(SAME not in line for line in lines))


if __name__ == "__main__":
    main()
