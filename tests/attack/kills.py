"""Runs of the command line, in processes of their own, that are killed at random moments and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from again import COSTS
from attack.attempts import Fault
from attack.cuts import events_of
from attack.drawn import equality_of, generator
from attack.reports import Report
from attack.stories import differences, stories

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from speclrm.runtime.events import Event

SIGNALS = {signal.SIGKILL: "kill", signal.SIGTERM: "term", signal.SIGINT: "int"}
LIMIT_S = 200.0
TRIES = 3
"""How often one run is killed before it may go to its end."""


def draw_line(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A strategy and its options, as the command line and as a recipe have them."""
    name = draw.choice(["speculative", "speculative", "speculative", "speculative-methods", "parallel", "baseline"])
    options: dict[str, Any] = {"token_budget": draw.choice([300, 600, 1000])}
    if name != "baseline":
        options["tracks"] = draw.choice([1, 2, 3, 5])
        if options["tracks"] > 1 and draw.random() < 0.35:
            options["fast"] = draw.choice([1, 2])
    if name.startswith("spec"):
        options["speculate"] = draw.choice(["always", "always", "auto", "never"])
        options["draft_ahead"] = draw.choice(["auto", "always", "never"])
        options["rewrite_ahead"] = draw.choice(["auto", "always", "never"])
        if draw.random() < 0.3:
            options |= {"scorer": "likelihood", "score_threshold": -0.3}
        elif draw.random() < 0.5:
            options["judge"] = draw.choice(["turn", "inline"])
        if draw.random() < 0.3:
            options["gate_sure"] = -0.1
    return name, options


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "speclrm.cli", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "SPECLRM_CACHE_DIR": str(cwd / "cache"), "COLUMNS": "200"},
    )


def finished(*arguments: str, cwd: Path) -> tuple[int, str]:
    process = command(*arguments, cwd=cwd)
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        return -1, said
    return process.returncode, said


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        for cost in COSTS:
            del row[cost]
    return sorted(rows, key=lambda row: (row["problem"], row["repeat"]))


def kills(seed: int, folder: Path) -> Report:
    """Real processes, real signals: each run ends as the one that nobody touched."""
    draw = generator("kills", seed)
    name, options = draw_line(draw)
    line = [
        name,
        "--target",
        "sim/qwq-32b",
        "--dataset",
        f"sim:{draw.choice(['a70', 'aime-mix'])}?size={draw.choice([2, 4])}",
    ]
    if name.startswith("spec"):
        line += ["--draft", "sim/r1-1.5b"]
    for option, value in options.items():
        line += [f"--{option.replace('_', '-')}={value}"]
    line += ["--display", "none", f"--concurrency={draw.choice([1, 2, 16])}", f"--repeats={draw.choice([1, 1, 2])}"]
    if draw.random() < 0.3:
        line += ["--compress-trace"]
    report = Report("kills", seed, " ".join(line), (name,))
    began = time.monotonic()
    code, said = finished("run", *line, "--output-dir", "whole", cwd=folder)
    took_s = time.monotonic() - began
    if code:
        report.faults.append(Fault("whole", f"exit {code}: {said[-400:]}"))
        return report
    _judged(report, folder, "whole")
    expected = stories(events_of(folder / "whole"))
    told: list[str] = []
    for attempt in range(TRIES + 1):
        lasts = attempt == TRIES
        before = events_of(folder / "run")
        if not before:
            shutil.rmtree(folder / "run", ignore_errors=True)
        start = ["resume", "run", "--display", "none"] if before else ["run", *line, "--output-dir", "run"]
        process = command(*start, cwd=folder)
        number = draw.choice(list(SIGNALS))
        # Half of the time a process does nothing but start.
        after_s = draw.uniform(0.3, 1.0) * took_s
        try:
            said, _ = process.communicate(timeout=LIMIT_S if lasts else after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if lasts else number)
            said, _ = process.communicate(timeout=LIMIT_S)
            if lasts:
                report.faults.append(Fault("hang", f"no end within {LIMIT_S:.0f} s after {told}"))
                return report
            told.append(f"{SIGNALS[number]} after {after_s:.2f} s")
            report.count(f"killed by {SIGNALS[number]}")
            wanted = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15, 0), signal.SIGINT: (130, -2, 0)}[number]
            if process.returncode not in wanted:
                report.faults.append(Fault("exit", f"exit {process.returncode} after {told}: {said[-400:]}"))
            if "Traceback" in said:
                report.faults.append(Fault("traceback", f"after {told}: {said[-800:]}"))
            if events_of_prefix(before, folder / "run"):
                report.faults.append(Fault("trace", f"what was there is not there any more after {told}"))
            continue
        if process.returncode:
            report.faults.append(Fault("refused", f"exit {process.returncode} after {told}: {said[-500:]}"))
            return report
        break
    report.count("resumed" if told else "undisturbed")
    _judged(report, folder, "run")
    equal = equality_of(name, options)
    different = differences(expected, stories(events_of(folder / "run")), equal)
    if equal == "all":
        report.count("compared")
        report.count("equal", not different)
    report.faults += [Fault(kind, f"{text} after {told}") for kind, text in different]
    report.count("same rows", _rows(folder / "whole") == _rows(folder / "run"))
    return report


def events_of_prefix(before: list[Event], folder: Path) -> bool:
    """Whether something that was in the trace is gone."""
    return events_of(folder)[: len(before)] != before


def _judged(report: Report, folder: Path, run: str) -> None:
    for what, arguments in {"check clean": ("trace", "check", run), "replay exact": ("replay", run)}.items():
        code, said = finished(*arguments, cwd=folder)
        report.count(what, code == 0)
        if code:
            report.faults.append(Fault(what.split(maxsplit=1)[0], f"{run}: exit {code}: {said[-600:]}"))
