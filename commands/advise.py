"""``advise``: where drafts pay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from speclrm.commands.errors import guard
from speclrm.commands.number_lists import positive, whole_numbers
from speclrm.commands.screen import stdout
from speclrm.runtime.errors import UsageError

if TYPE_CHECKING:
    from speclrm.app.advice import Advice, AdviceOptions


def advise(
    target: Annotated[str, typer.Option(help="Target model.")] = "sim/qwq-32b",
    draft: Annotated[str, typer.Option(help="Draft model.")] = "sim/r1-1.5b",
    tracks: Annotated[str, typer.Option(help="Numbers of concurrent tracks, separated by commas.")] = "1,5,20,110",
    acceptance: Annotated[
        str, typer.Option(help="Shares of drafted steps that are kept, above 0 up to 1, separated by commas.")
    ] = "0.46,0.72,0.86",
    context: Annotated[int, typer.Option(min=1, help="Mean context of a track, in tokens.")] = 1000,
    step_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 32,
    token_budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a track; gains are then to the end of the slowest track.",
            show_default="while all tracks work",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Forecast where drafts pay: tokens a second over the target alone, by devices, tracks and share of drafts kept.

    The formula is that of `--speculate auto`. Costs are those of simulated engines, or of a pair that was measured on this
    machine: by `speclrm calibrate`, or before its first run with `--speculate auto`.
    """

    def start() -> None:
        from speclrm.app.advice import AdviceOptions, advise

        shares = positive("--acceptance", acceptance)
        if max(shares) > 1:
            raise UsageError(f"--acceptance {acceptance!r}: a share is 1 at most.")
        options = AdviceOptions(
            target=target,
            draft=draft,
            tracks=tuple(whole_numbers("--tracks", tracks)),
            acceptance=tuple(shares),
            context=context,
            step_tokens=step_tokens,
            token_budget=token_budget,
        )
        found = advise(options)
        if json:
            from speclrm.commands.display import print_json

            print_json(found.model_dump(mode="json"))
        else:
            _print(found, options)

    guard(start)


def _print(found: Advice, options: AdviceOptions) -> None:
    from rich.table import Table

    when = "while all tracks work" if options.token_budget is None else "to the end of the slowest track"
    console = stdout()
    console.print(
        f"Forecast for {options.target} with drafts by {options.draft}, costs {found.costs}: tokens a second over the target "
        f"alone, {when}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("devices")
    kept = [f"{share:g} kept" for share in options.acceptance]
    for name in ("tracks", "target alone", "drafts pay from", *kept):
        table.add_column(name, justify="right")
    for row in found.rows:
        table.add_row(
            row.placement,
            str(row.tracks),
            f"{row.alone:.0f} tok/s",
            "never" if row.pays_from is None else f"{row.pays_from:.2f}",
            *(f"{gain:.2f}x" for gain in row.gains.values()),
        )
    console.print(table)
