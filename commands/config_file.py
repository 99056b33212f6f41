"""Reads an option's value from the command line, else the environment, else a TOML file, else takes the default."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast, get_args, get_origin

import typer
from typer.models import OptionInfo

from speclrm.commands.errors import complain, say
from speclrm.runtime.engines.http.secrets import set_headers
from speclrm.runtime.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT = "SPECLRM_"
REPEATED = ("target_arg", "draft_arg", "set_")
"""Options that may be given more than once on the command line."""
HTTP_TABLE = "http"
"""The table with headers for servers."""
_options: dict[str, set[str]] = {}
"""The options of each command, by the names that a configuration file uses."""


def configurable(name: str, inherits: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds an environment variable to each option of a command, and the option ``--config`` to the command.

    ``inherits``: another command, whose table in the file also holds for this one.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        parameters = [_with_variable(parameter) for parameter in signature.parameters.values()]
        _options[name] = {parameter.name for parameter in parameters if _option(parameter) is not None}

        def read(context: typer.Context, value: Path | None) -> Path | None:
            return _read(name, inherits, context, value)

        config = typer.Option(
            "--config",
            help="TOML file with settings: one key per option, one table per command.",
            callback=read,
            is_eager=True,
            envvar=f"{ENVIRONMENT}CONFIG",
            metavar="FILE",
            rich_help_panel="Settings",
        )
        parameters.append(
            inspect.Parameter(
                "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, config]
            )
        )

        @functools.wraps(function)
        def command(**values: Any) -> None:
            del values["config"]  # it was handled before the other options were read
            function(**values)

        shaped = cast("Any", command)
        shaped.__signature__ = signature.replace(parameters=parameters)
        shaped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _read_headers(path: Path, table: dict[str, Any]) -> None:
    """Keeps the headers for servers. They have no option: command lines are kept in histories and shown in lists of processes."""
    for key, headers in table.items():
        role = {"headers": "", "target_headers": "target", "draft_headers": "draft"}.get(key.replace("-", "_"))
        if role is None:
            _refuse(
                f"--config {path}: [{HTTP_TABLE}] has no setting {key!r}. It has headers, target-headers and draft-headers."
            )
        if not isinstance(headers, dict) or not all(
            isinstance(value, str) for value in cast("dict[str, Any]", headers).values()
        ):
            _refuse(f'--config {path}: [{HTTP_TABLE}] {key} is no table of texts. Write {key} = {{ NAME = "VALUE" }}.')
        try:
            set_headers(cast("dict[str, str]", headers), role)
        except SettingsError as error:
            _refuse(f"--config {path}: {error}")


def _option(parameter: inspect.Parameter) -> OptionInfo | None:
    if get_origin(parameter.annotation) is not Annotated:
        return None
    return next((item for item in get_args(parameter.annotation)[1:] if isinstance(item, OptionInfo)), None)


def _with_variable(parameter: inspect.Parameter) -> inspect.Parameter:
    option = _option(parameter)
    kept = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    if option is None:
        return kept
    own = copy.copy(option)
    own.envvar = ENVIRONMENT + parameter.name.upper()
    own.show_envvar = False  # one sentence for all: the variables are named after the options
    return kept.replace(annotation=Annotated[get_args(parameter.annotation)[0], own])


def _read(command: str, inherits: str | None, context: typer.Context, path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        _refuse(f"--config {path} cannot be read: {error.strerror}. Give a TOML file, or leave it out.")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        _refuse(f"--config {path} is not TOML: {error}.")
    every = {option for options in _options.values() for option in options}
    values: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    others: list[str] = []
    for key, value in content.items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            tables[name] = cast("dict[str, Any]", value)
        elif name not in every:
            _refuse(f"--config {path}: there is no setting {key!r}.{_close(name, every)}")
        elif name in _options[command]:
            values[name] = _plain(path, key, value)
        else:
            others.append(f"{key} (of {_owners(name)})")
    known = {name.replace("-", "_"): name for name in _options}
    _read_headers(path, tables.pop(HTTP_TABLE, {}))
    for table, keys in tables.items():
        if table not in known:
            _refuse(f"--config {path}: there is no command {table!r}. There are: {', '.join(sorted(_options))}.")
        for key in keys:
            name = key.replace("-", "_")
            if name not in _options[known[table]]:
                owners = _owners(name)
                other = f" It is one of {owners}." if owners else _close(name, _options[known[table]])
                _refuse(f"--config {path}: [{table}] has no setting {key!r}.{other}")
    for owner in filter(None, (inherits, command)):
        for key, value in tables.get(owner.replace("-", "_"), {}).items():
            if (name := key.replace("-", "_")) in _options[command]:
                values[name] = _plain(path, key, value)
    if others and not context.resilient_parsing:
        say(f"note: --config {path} has settings that `{command}` does not: {', '.join(others)}", err=True)
    context.default_map = values
    return path


def _plain(path: Path, key: str, value: Any) -> Any:
    """Turns a list of a file into command-line form: comma-separated, or one value per repeated option."""
    if isinstance(value, list):
        items = [str(item) for item in cast("list[Any]", value)]
        return items if key.replace("-", "_") in REPEATED else ",".join(items)
    if not isinstance(value, str | int | float | bool):
        _refuse(f"--config {path}: {key} is {type(value).__name__}, not text, a number, true or false.")
    return value if isinstance(value, bool) else str(value)


def _owners(name: str) -> str:
    """Names the commands that have a setting, in words; empty if there is none."""
    owners = [command for command in _options if name in _options[command]]
    *most, last = owners or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _close(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f" Close to it: {', '.join(close)}." if close else ""


def _refuse(text: str) -> NoReturn:
    complain(text)
    raise typer.Exit(2)
