"""``models``: lists, downloads and locates model weights."""

from __future__ import annotations

from typing import Annotated

import typer

from speclrm.commands.config_file import configurable
from speclrm.commands.errors import guard, say
from speclrm.commands.screen import Screen, run_async, stdout
from speclrm.commands.screen_options import Display

models_app = typer.Typer(help="List, download and locate model weights.", no_args_is_help=True)


def models_list() -> None:
    """List the models with a short name, and which of them are here."""

    def start() -> None:
        from rich.table import Table

        from speclrm.runtime.models import store

        table = Table(box=None, pad_edge=False)
        for name in ("name", "parameters", "download", "here", "on the hub"):
            table.add_column(name, overflow="fold")
        for status in store.list_models():
            known = status.model
            size = f"{known.index.bytes / 1e6:.0f} MB, {known.bytes / 1e6:.0f} on disk"
            table.add_row(known.name, known.parameters, size, str(status.path or "no"), known.hub)
        stdout().print(table)

    guard(start)


def models_pull(
    names: Annotated[list[str], typer.Argument(help="Known names or Hugging Face repositories.")],
    display: Display = None,
) -> None:
    """Download models; one that is here already is not downloaded again."""

    def start() -> None:
        from speclrm.runtime.models import store

        for name in names:
            store.find_local(name)  # all names are checked before anything is fetched
        with Screen(display, None, "warning") as screen:
            for name in names:
                path = run_async(lambda name=name: store.pull(name, screen.notify))
                say(path)

    guard(start)


def models_path(name: Annotated[str, typer.Argument(help="A model's name.")]) -> None:
    """Print the folder of a model that is here."""

    def start() -> None:
        from speclrm.runtime.errors import ModelError
        from speclrm.runtime.models import store

        path = store.find_local(name)
        if path is None:
            raise ModelError(f"Model {name} is not here. Fetch it with `speclrm models pull {name}`.")
        say(path)

    guard(start)


models_app.command("list")(models_list)
models_app.command("pull")(configurable("models-pull")(models_pull))
models_app.command("path")(models_path)
