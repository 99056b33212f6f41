"""The final report of a run on the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from speclrm.commands.display import print_report
from speclrm.evaluators.metrics import ModeCounts, RunSummary
from speclrm.runtime.ledger import EngineUse, FlopCounts, TokenCounts


def printed(summary: RunSummary) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    print_report(console, summary)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_the_report_shows_the_ledger_a_column_a_model() -> None:
    lines = printed(
        RunSummary(
            tokens={
                "draft": TokenCounts(generated=40, kept=20, rejected=10, useless=10, prompt=100, cached=75),
                "target": TokenCounts(generated=60, kept=50, judge=10, prompt=200, cached=100),
            },
            flops={"draft": FlopCounts(decode=80, all=130), "target": FlopCounts(decode=1200, all=3200)},
            decode_flops=1280,
            all_flops=3330,
            engines={
                "draft": EngineUse(idle=0.6, idle_ready=0.01, batch=2.5),
                "target": EngineUse(idle=0.05, idle_ready=0.0, batch=7.0, preemptions=3),
            },
            modes=ModeCounts(speculated=7, eager=2, written=5, changes=3),
            draft_share=2 / 7,
            chains=2,
            chain_length=35.0,
            seconds=10.0,
            stood_up=4,
        )
    )
    for line in (
        "modes 7 steps speculated (2 ahead of scores), 5 left to the target; tracks changed 3 times",
        "chains 35.0 tokens kept by 2 tracks with an answer, on average; 28.6% of all kept by the draft",
        "FLOPs 1.28e+03 to decode, 3.33e+03 with what was read of prompts",
        "room tracks gave theirs to older ones 4 times",
        "tokens draft target",
        "generated 40 60",
        "a second 4.0 6.0",
        "kept 20 50",
        "rejected 10",
        "useless 10",
        "judge 10",
        "discarded 50.0% 0.0%",
        "cached 75.0% 50.0%",
        "all FLOPs 130 3.2e+03",
        "engine idle 60.0% 5.0%",
        "though a track was ready 1.0% 0.0%",
        "mean batch 2.5 7.0",
        "preemptions 3",
    ):
        assert line in lines, line


def test_what_a_trace_does_not_tell_has_no_line() -> None:
    lines = printed(RunSummary(tokens={"target": TokenCounts(generated=6, kept=6, prompt=2)}, seconds=1.0))
    assert "generated 6" in lines
    for word in ("useless", "FLOPs", "idle", "batch", "modes", "room", "chains"):
        assert not [line for line in lines if word in line], word
