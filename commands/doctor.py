"""``doctor``: reports what this machine can run."""

from __future__ import annotations

from typing import Annotated

import typer

from speclrm.commands.errors import guard, say
from speclrm.commands.screen import stdout


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Report what this machine can run, with which settings, and what is missing."""

    def start() -> None:
        from speclrm.runtime.machine import doctor as examination

        report = examination.examine()
        if json:
            say(report.model_dump_json(indent=2))
        else:
            from rich.text import Text

            console = stdout()
            marks = {"ok": ("ok  ", "green"), "warn": ("note", "yellow"), "fail": ("FAIL", "red")}
            for finding in report.findings:
                mark, style = marks[finding.status]
                line = Text.assemble((mark, style), f"  {finding.what}: {finding.found}")
                console.print(line, soft_wrap=True, highlight=False)
                if finding.advice:
                    console.print(Text(f"      {finding.advice}"), soft_wrap=True, highlight=False)
        if any(finding.status == "fail" for finding in report.findings):
            raise typer.Exit(1)

    guard(start)
