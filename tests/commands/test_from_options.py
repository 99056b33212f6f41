"""Options of the command line, of files and of the docs are made from where they are declared."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
from cli_runner import invoke, speclrm
from pydantic import BaseModel, Field

import speclrm as package
from speclrm.app.options import RUN_DECLARED, CalibrateOptions, EngineOptions, RunOptions
from speclrm.commands.from_options import Given, settings_lines, table, takes
from speclrm.strategies.option import Option, declared
from speclrm.strategies.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs" / "options.md"


class Small(BaseModel):
    """Options of each form."""

    count: Annotated[int, Field(ge=1, le=9), Option("How many.", flags=("--number",))] = 3
    names: Annotated[tuple[str, ...], Option("Which.", name="name")] = ()
    more: Annotated[dict[str, Any], Option("Further ones.")] = {}
    bar: Annotated[float, Option("Lowest value.", words=("auto",))] = 0.5
    on: Annotated[bool, Option("Switch it on.")] = True
    hidden: int = 0


def given(**values: Any) -> dict[str, Any]:
    """What a command is handed for these values of the command line."""
    found: list[dict[str, Any]] = []

    @takes(declared(Small))
    def command(given: Given) -> None:
        found.append(given)

    names = inspect.signature(command).parameters
    command(**{name: values.get(name) for name in names})
    return found[0]


def test_a_command_takes_each_declared_option_and_is_handed_only_what_was_given() -> None:
    assert given() == {}
    values = given(count=2, name="a, b", more=["x=1", "y-z=text"], bar="auto", on=False)
    assert values == {"count": 2, "names": ("a", "b"), "more": {"x": 1, "y_z": "text"}, "bar": "auto", "on": False}
    assert given(bar="0.25") == {"bar": 0.25}


def test_every_option_of_a_recipe_is_declared_and_one_of_the_command_line() -> None:
    assert set(declared(Recipe)) == set(Recipe.model_fields)
    done = invoke("run", "--help", cwd=Path(), COLUMNS="200")
    for one in RUN_DECLARED.values():
        assert f"--{one.name.replace('_', '-')}" in done.stdout, one.field


def test_every_option_of_the_engines_is_one_of_the_runtime_and_of_the_commands_that_load_models() -> None:
    parameters = inspect.signature(package.Runtime).parameters
    assert set(EngineOptions.model_fields) <= set(parameters)
    assert set(declared(EngineOptions)) == set(EngineOptions.model_fields)
    assert set(declared(EngineOptions)) <= set(declared(CalibrateOptions))
    for name, field in EngineOptions.model_fields.items():
        default = parameters[name].default
        assert default in (field.default, None, inspect.Parameter.empty), name


def test_help_in_a_hundred_columns_has_one_sentence_for_each_option_and_its_default() -> None:
    done = invoke("run", "--help", cwd=Path(), COLUMNS="100")
    said = " ".join(done.stdout.replace("│", " ").split())
    for sentence in ("Maximum tokens per step. [default: 512]", "Random sample of N problems (seeded). [default: all]"):
        assert sentence in said
    for one in RUN_DECLARED.values():
        assert one.option.help[0].isupper() or one.option.help.startswith(("original:", "aime")), one.field
        assert one.option.help.endswith("."), one.field
        assert one.option.help in said, one.field


@pytest.mark.parametrize("option", ["--token-budget", "--temperature", "--limit", "--fast"])
def test_a_value_out_of_range_is_refused_in_one_paragraph(tmp_path: Path, option: str) -> None:
    base = ("run", "speculative", "--dataset", "reasoning-gym:chain_sum", "--target", "t", "--draft", "d")
    done = speclrm(*base, option, "-1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert option.strip("-").replace("-", "_") in done.stderr.replace("-", "_")
    assert len(done.stderr.strip().splitlines()) == 1


def test_settings_are_written_as_a_file_takes_them() -> None:
    options = RunOptions(
        strategy="speculative",
        dataset="d",
        seed=None,
        target_args={"a": [1]},
        recipe={"methods": ["A", "C"], "closing": False},
    )
    lines = settings_lines(RUN_DECLARED, options.model_dump(mode="json") | options.recipe)
    read = tomllib.loads("\n".join(lines))
    assert (read["seed"], read["target_arg"], read["methods"], read["closing"]) == (
        "none",
        ["a=[1]"],
        ["A", "C"],
        False,
    )
    assert "# limit is not set" in lines


def test_the_docs_list_the_options_as_they_are_declared() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert table(RUN_DECLARED) in text, "write it anew: python tests/options_table.py > docs/options.md"


def test_options_of_a_recipe_may_be_given_flat_as_older_records_have_them() -> None:
    old = RunOptions.model_validate(
        {"strategy": "s", "dataset": "d", "tracks": 5, "methods": None, "recipe": {"fast": 1}}
    )
    assert old.recipe == {"tracks": 5, "fast": 1}
