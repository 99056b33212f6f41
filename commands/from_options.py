"""Makes Typer options from declared ones, reads their values, and writes them as a settings file or a table."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_origin

import typer

from speclrm.commands.errors import guard
from speclrm.runtime.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from typer.models import OptionInfo

    from speclrm.strategies.option import Declared

Given = dict[str, Any]
"""Annotates the parameter of a command that receives the declared options that were given."""


def complete_model(incomplete: str) -> list[str]:
    from speclrm.runtime.models.known import KNOWN

    return [name for name in KNOWN if name.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[str]:
    from speclrm.evaluators.datasets import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_strategy(incomplete: str) -> list[str]:
    from speclrm.strategies.catalog import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_fault(incomplete: str) -> list[str]:
    from speclrm.app.original_faults import FAULTS

    return [name for name in FAULTS if name.startswith(incomplete)]


_COMPLETE = {"": None, "model": complete_model, "dataset": complete_dataset, "fault": complete_fault}


def takes(
    options: Mapping[str, Declared], defaults: Mapping[str, Any] | None = None, unset: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these options, in place of its parameter that is annotated ``Given``.

    ``defaults``: other defaults, by field. ``unset``: shown in the help in place of every default.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        (place,) = (name for name, one in signature.parameters.items() if one.annotation is Given)
        made = [_parameter(one, defaults or {}, unset) for one in options.values()]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            given: Given = {}

            def read() -> None:
                found = {one.field: _read(one, values.pop(one.name)) for one in options.values()}
                given.update({name: value for name, value in found.items() if value is not _UNSET})

            guard(read)
            function(**values, **{place: given})

        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            parameters += made if name == place else [parameter]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        shaped = cast("Any", command)
        shaped.__signature__ = signature.replace(parameters=parameters)
        return command

    return decorate


def only(options: Mapping[str, Declared], names: Iterable[str]) -> dict[str, Declared]:
    """Returns some of the options, in the order of the names."""
    return {name: options[name] for name in names}


# ---------------------------------------------------------------------------------------------------------- one option


def _parameter(one: Declared, defaults: Mapping[str, Any], unset: str | None) -> inspect.Parameter:
    """Makes an option that is None unless it is given, so that its default stays with the field that declares it."""
    option = one.option
    flag = "--" + one.name.replace("_", "-")
    flags = [flag, *option.flags] if option.flags or one.type is bool else []
    if one.type is bool and one.default is not False:
        flags = [f"{flag}/--no-{flag[2:]}", *option.flags]
    kind = _kind(one)
    required = one.required and one.field not in defaults
    annotation = typer.Option(
        *flags,
        help=option.help if required else with_default(option.help, unset or one.shown),
        rich_help_panel=option.group,
        metavar=option.metavar,
        show_default=False,
        autocompletion=_COMPLETE[option.complete],
    )
    parameter = inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, annotation],
    )
    default = defaults.get(one.field)
    return parameter if default is None else defaulting(parameter, str(default) if option.words else default)


def defaulting(parameter: inspect.Parameter, default: Any) -> inspect.Parameter:
    """Returns the parameter with another default, and a help that says so."""
    kind, option = get_args(parameter.annotation)
    own = copy.copy(cast("OptionInfo", option))
    own.help = with_default((own.help or "").partition(_DEFAULT)[0].rstrip(), str(default))
    own.show_default = False
    return parameter.replace(default=default, annotation=Annotated[kind, own])


def with_default(text: str, default: str) -> str:
    """Appends the default to a sentence of help."""
    return f"{text} {_DEFAULT}{default}][/dim]" if default else text


_DEFAULT = "[dim]\\[default: "
_UNSET: Any = object()


def _kind(one: Declared) -> Any:
    """Returns the type that the command line reads."""
    if get_origin(one.type) is dict:
        return list[str]
    if get_origin(one.type) is tuple or one.option.words:
        return str
    if get_origin(one.type) is Literal and isinstance(get_args(one.type)[0], int):
        return int
    return one.type


def _read(one: Declared, value: Any) -> Any:
    if value is None:
        return _UNSET
    flag = "--" + one.name.replace("_", "-")
    if get_origin(one.type) is dict:
        return read_pairs(flag, value) if value else _UNSET
    if get_origin(one.type) is tuple:
        names = tuple(part.strip() for part in value.split(",") if part.strip())
        return names or _UNSET
    if one.option.words:
        return _number_or_word(one, flag, value)
    return value


def _number_or_word(one: Declared, flag: str, text: str) -> Any:
    if text in one.option.words:
        return None if text == "none" else text
    try:
        return one.type(text)
    except ValueError:
        number = "a whole number" if one.type is int else "a number"
        raise UsageError(f"{flag} {text!r} is neither {number} nor {' nor '.join(one.option.words)}.") from None


def read_pairs(flag: str, items: Iterable[str]) -> dict[str, Any]:
    """Reads ``NAME=VALUE`` pairs; a value is JSON if it can be read so, else text. Raises SettingsError."""
    found: dict[str, Any] = {}
    for item in items:
        name, given, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not given or not name.isidentifier():
            raise SettingsError(f"{flag} {item!r}: write it as NAME=VALUE, for instance quantization=fp8.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


# ------------------------------------------------------------------------------------------------------------ all options


def settings_lines(options: Mapping[str, Declared], values: Mapping[str, Any]) -> list[str]:
    """Returns values in the form that --config takes, one a line; those that are not set as comments."""
    lines: list[str] = []
    for one in options.values():
        value = values.get(one.field)
        if get_origin(one.type) is dict:
            pairs: dict[str, Any] = value or {}
            value = [f"{name}={json.dumps(part)}" for name, part in pairs.items()] or None
        if value is None and "none" in one.option.words:
            value = "none"
        text = json.dumps(value, ensure_ascii=False)
        lines.append(f"# {one.name} is not set" if value is None else f"{one.name} = {text}")
    return lines


def table(options: Mapping[str, Declared]) -> str:
    """Returns the options as Markdown, a table for each group."""
    groups: dict[str, list[Declared]] = {}
    for one in options.values():
        groups.setdefault(one.option.group, []).append(one)
    parts: list[str] = []
    for group, members in groups.items():
        rows = ["| option | default | meaning | source |", "|---|---|---|---|"]
        for one in members:
            names = ", ".join(
                f"`--{name}`" for name in (one.name.replace("_", "-"), *(f[2:] for f in one.option.flags))
            )
            cells = (names, _range(one), one.option.help, one.option.source)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append(f"## {group}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _range(one: Declared) -> str:
    shown = "required" if one.required else one.shown
    if get_origin(one.type) is Literal:
        return f"{shown} (of {', '.join(map(str, get_args(one.type)))})"
    bounds = [f"from {one.least:g}"] if one.least is not None else []
    bounds += [f"to {one.most:g}"] if one.most is not None else []
    return f"{shown} ({' '.join(bounds)})" if bounds else shown
