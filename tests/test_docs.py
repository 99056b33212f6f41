"""What the docs name exists: files, modules, commands and options."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from speclrm.commands.program import app

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
MAP = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
FOLDERS = ("app", "benchmarks", "commands", "docs", "evaluators", "examples", "locks", "runtime", "strategies", "tests")
"""Whatever begins with one of these is a path of the repository."""
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*|(?<![\w./*-])\w+\.md\b")
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")
MODULE_LINE = re.compile(r"^- ((?:`\w+`,?\s)*`\w+`): ", re.MULTILINE)
PACKAGE = sorted({path.parent for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] in FOLDERS})
APART = ("docs", "examples", "locks", "tests")


def rows(path: Path) -> list[tuple[str, str]]:
    """Each line of a page, with its place."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(f"{path.name}:{number}", line) for number, line in enumerate(lines, 1)]


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_file_that_the_docs_name_exists(page: Path) -> None:
    missing = [
        f"{place}: {name}"
        for place, line in rows(page)
        for name in PATH.findall(line)
        if not any(ROOT.glob(name.rstrip("./"))) and not any(page.parent.glob(name.rstrip("./")))
    ]
    assert not missing


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_link_of_the_docs_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken: list[str] = []
    for place, line in rows(page):
        for name, anchor in LINK.findall(line):
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{place}: {name}#{anchor}")
    assert not broken


# ------------------------------------------------------------------------------------------------ commands and options


def calls(text: str) -> list[str]:
    """All that a page writes as code and that calls ``speclrm``, each on one line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + indented + spans
    found: list[str] = []
    for line in lines:
        for part in re.split(r"\s*(?:;|&&|  #)\s*", line):
            if part.startswith("speclrm "):
                found.append(part)
    return found


@cache
def program() -> Any:
    """Typer's own kind of click command, which has no public type."""
    return typer.main.get_command(app)


def resolved(call: str) -> tuple[Any, list[str]]:
    """The command that a call is for, and the words behind its name. Raises KeyError for an unknown command."""
    words = shlex.split(call.replace("\\|", "|"))[1:]
    command = program()
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name.isupper() or "|" in name:
            break  # COMMAND, a|b: any of them
        command = {known.replace("_", "-"): one for known, one in command.commands.items()}[name.replace("_", "-")]
    return command, words


def flags(command: Any) -> set[str]:
    names: set[str] = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return {name.replace("_", "-") for name in names} | {"--help", "--version"}


@cache
def every_flag() -> set[str]:
    """Those of all commands."""
    left = [program()]
    found = {"--install-completion", "--show-completion"}
    while left:
        command = left.pop()
        found |= flags(command)
        left += getattr(command, "commands", {}).values()
    return found


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_command_and_option_of_the_docs_exists(page: Path) -> None:
    unknown: list[str] = []
    for call in calls(page.read_text(encoding="utf-8")):
        try:
            command, words = resolved(call)
        except KeyError as error:
            unknown.append(f"{call}: no command {error}")
            continue
        known = every_flag() if isinstance(command, TyperGroup) else flags(command)
        given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("-") and word != "-"}
        unknown += [f"{call}: no option {flag}" for flag in sorted(given - known) if not re.match(r"-[\d.]", flag)]
    assert not unknown


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_option_that_the_docs_name_by_itself_is_one_of_some_command(page: Path) -> None:
    spans = re.findall(r"`(--[\w-]+)", page.read_text(encoding="utf-8"))
    assert {flag.replace("_", "-") for flag in spans} <= every_flag()


# ---------------------------------------------------------------------------------------------------------------- the map


def mapped() -> dict[str, list[str]]:
    """The modules that ARCHITECTURE.md has a sentence for, by the folder under whose heading it stands."""
    found: dict[str, list[str]] = {}
    for section in MAP.partition("\n## Modules\n")[2].split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        folder = "" if heading == "The root" else heading.strip("`/")
        found[folder] = [name.strip("`") for names in MODULE_LINE.findall(body) for name in names.split(", ")]
    return found


def test_the_map_has_a_sentence_for_each_module_and_names_no_other() -> None:
    folders = ["", *(str(path.relative_to(ROOT)) for path in PACKAGE if path.relative_to(ROOT).parts[0] not in APART)]
    there = {
        folder: sorted(path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__")
        for folder in folders
    }
    assert {folder: sorted(names) for folder, names in mapped().items()} == there
