"""Measures how the house is built: sizes, functions, docstrings, and which import arrows go back up.

    python -m tests.structure [FOLDER]          # FOLDER: another checkout, to compare with; this one unless given

Tests, examples and studies are not counted. An arrow is an import of one module by another, also inside a function or for types
alone. Folders stand in the order in which most arrows point: those against it go back up.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

APART = {"tests", "examples", "build", "docs", "locks", "studies"}
LARGE = 400
"""Lines of a file from which on it is named."""


@dataclass(frozen=True)
class Module:
    """``functions``: lines of each. ``public``, ``told``: public classes and functions, and those with a docstring."""

    name: str
    lines: int
    functions: tuple[int, ...]
    public: int
    told: int
    imports: frozenset[str]

    @property
    def folder(self) -> str:
        """Where it lies. A module that uses folders inside its own stands above them: it counts as a door."""
        own = self.name.rpartition(".")[0]
        door = own and any(one.startswith(f"{own}.") and one.count(".") > self.name.count(".") for one in self.imports)
        return f"{own} (doors)" if door else own or "."


def read(root: Path) -> dict[str, Module]:
    """All modules of the package by their dotted names, without ``speclrm.``."""
    paths: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not APART & set(parts) and not any(part.startswith(".") for part in parts):
            paths[".".join(parts)] = path
    return {name: _module(name, path, set(paths)) for name, path in paths.items()}


def _module(name: str, path: Path, known: set[str]) -> Module:
    text = path.read_text()
    functions: list[int] = []
    found: set[str] = set()
    public = told = 0
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if not isinstance(node, ast.ClassDef):
                    functions.append((node.end_lineno or node.lineno) - node.lineno + 1)
                if not node.name.startswith("_"):
                    public += 1
                    told += ast.get_docstring(node) is not None
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
            case _:
                pass
    own = {one.removeprefix("speclrm.") for one in found if one.startswith("speclrm.")} & known
    inner = {
        one for one in own if not any(other.startswith(f"{one}.") for other in own)
    }  # the module, not its folder too
    return Module(name, text.count("\n"), tuple(functions), public, told, frozenset(inner - {name}))


def arrows(modules: dict[str, Module]) -> Counter[tuple[str, str]]:
    """Imports between folders."""
    return Counter(
        (module.folder, modules[other].folder)
        for module in modules.values()
        for other in module.imports
        if module.folder != modules[other].folder
    )


def upwards(between: Counter[tuple[str, str]]) -> tuple[list[str], int]:
    """Folders from the top down, in an order that few imports oppose, and how many do. Moves one folder while that helps."""

    def against(order: list[str]) -> int:
        place = {folder: index for index, folder in enumerate(order)}
        return sum(count for (user, used), count in between.items() if place[user] > place[used])

    order = sorted(
        {one for pair in between for one in pair},
        key=lambda folder: -sum(n for (u, _), n in between.items() if u == folder),
    )
    while True:
        moves = [
            [*rest[:at], one, *rest[at:]]
            for one in order
            for rest in [[o for o in order if o != one]]
            for at in range(len(order))
        ]
        best = min(moves, key=against)
        if against(best) >= against(order):
            return order, against(order)
        order = best


def circle(modules: dict[str, Module]) -> list[str]:
    """One circle of modules that import each other, if there is any."""
    graph = {name: module.imports for name, module in modules.items() if name != "__init__"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def main(root: Path) -> None:
    modules = read(root)
    folders: defaultdict[str, list[Module]] = defaultdict(list)
    for module in modules.values():
        folders[module.folder].append(module)
    print(f"{'folder':<36}{'modules':>8}{'lines':>8}{'median':>8}{'largest':>9}")
    for folder, found in sorted(folders.items()):
        sizes = [module.lines for module in found]
        print(f"{folder:<36}{len(found):>8}{sum(sizes):>8}{statistics.median(sizes):>8.0f}{max(sizes):>9}")
    every = sorted(size for module in modules.values() for size in module.functions)
    print(f"\nmodules {len(modules)}, lines {sum(module.lines for module in modules.values())}")
    print(
        f"functions {len(every)}: median {statistics.median(every):.0f}, p90 {every[len(every) * 9 // 10]}, max {every[-1]} lines"
    )
    public, told = (sum(getattr(module, name) for module in modules.values()) for name in ("public", "told"))
    print(f"public classes and functions with a docstring: {told} of {public} ({told / public:.0%})")
    large = sorted((module.lines, name) for name, module in modules.items() if module.lines > LARGE)
    print(f"files over {LARGE} lines: {', '.join(f'{name} {lines}' for lines, name in reversed(large)) or 'none'}")
    print(f"loose modules at the root: {', '.join(sorted(name for name in modules if '.' not in name))}")
    between = arrows(modules)
    order, back = upwards(between)
    print(f"imports between folders: {between.total()} on {len(between)} arrows; {back} go back up")
    print(f"folders from the top: {' > '.join(order)}")
    print(f"circles: {' <- '.join(circle(modules)) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent)
