"""``merge``: makes one run of its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speclrm.commands.errors import guard
from speclrm.commands.screen import print_paths, run_async, stdout


def merge(
    shards: Annotated[
        list[Path], typer.Argument(help="Folders of the shards: their --output-dir.", metavar="RUN_DIR...")
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder of the merged run; must be new or empty.")],
    override: Annotated[
        bool,
        typer.Option("--override", help="Merge shards of other settings or models too, and record the differences."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Merge the shards of a run (`run --shard K/N`) into one run, which `eval`, `compare` and `replay` take.

    The shards are only read. Their times stay as they are, as if all shards had started at once.
    """

    def start() -> None:
        from speclrm.app.merge import merge as merge_shards
        from speclrm.commands.display import print_json, print_report

        summary = run_async(lambda: merge_shards(output_dir, shards, override=override), virtual=False)
        if json:
            print_json(summary.model_dump(mode="json", exclude={"samples"}))
        else:
            print_report(stdout(), summary)
            print_paths(stdout(), output_dir)

    guard(start)
