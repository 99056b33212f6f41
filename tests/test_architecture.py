"""The arrows between the wings point one way, and there are no circles: also not inside functions or for types alone."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {
    f"speclrm.runtime.{name}"
    for name in ("engine", "errors", "events", "files", "ledger", "models.online", "plugins", "protocols", "state")
}
"""What strategies and evaluators may know of the runtime."""
SHARED = (
    "cleanup",
    "clock",
    "engine",
    "errors",
    "events",
    "files",
    "gc_tuning",
    "ledger",
    "plugins",
    "protocols",
    "seeds",
    "settings",
    "state",
    "unchecked_events",
)
"""Modules of the runtime that every wing in it may use."""
INSIDE = {
    "shared": set[str](),
    "models": set[str](),
    "tokens": set[str](),
    "trace": set[str](),
    "machine": {"models"},
    "engines": {"models"},
    "scheduling": {"tokens"},
    "replay": {"trace", "scheduling"},
    "track": {"tokens", "scheduling", "replay"},
    "sample": {"tokens", "trace", "scheduling", "replay", "track"},
    "run_parts": {"scheduling", "replay"},
    "run_sinks": set[str](),
    "places": set[str](),
    "samples": {"sample", "trace", "scheduling", "replay", "run_parts", "places"},
    "runtime": {"samples", "trace", "scheduling", "replay", "run_parts", "run_sinks"},
}
"""The wings inside runtime/ and, last, its doors, each with the others that it may use beside the shared modules."""
WINGS = {
    "runtime": set[str](),
    "strategies": {"runtime"},
    "evaluators": {"runtime"},
    "app": {"runtime", "strategies", "evaluators"},
    "api": {"runtime", "evaluators", "app"},
    "benchmarks": {"runtime", "strategies", "evaluators", "app", "api"},
    "commands": {"__init__", "runtime", "strategies", "evaluators", "app", "benchmarks"},
    "cli": {"commands"},
    "__init__": {"runtime", "strategies", "evaluators", "api"},
}
"""Every part of the package with all others that it may import; whatever is not named here is forbidden."""
APART = ("tests", "examples", "build", "docs", "locks")
"""Folders that are no part of the package."""


def package() -> dict[str, Path]:
    """All modules by their full names."""
    found: dict[str, Path] = {}
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT)
        if inside.parts[0] in APART or any(part.startswith(".") for part in inside.parts):
            continue
        parts = inside.with_suffix("").parts
        found[".".join(["speclrm", *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


MODULES = package()


def imports(path: Path) -> set[str]:
    """All modules that a file imports, anywhere in it, type checking included; those of the package as they are."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return found


def own(path: Path) -> set[str]:
    return {name for name in imports(path) if name.partition(".")[0] == "speclrm"}


def wing(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_a_wing_imports_only_what_it_may(module: str) -> None:
    assert wing(module) in WINGS, "a new part of the package needs a line in WINGS"
    others = {wing(name) for name in own(MODULES[module])} - {wing(module)}
    assert others <= WINGS[wing(module)]


def inside(module: str) -> str:
    """The wing inside runtime/."""
    name = module.split(".")[2]
    return "shared" if name in SHARED else name


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("speclrm.runtime.")])
def test_a_wing_inside_the_runtime_imports_only_what_it_may(module: str) -> None:
    assert inside(module) in INSIDE, "a new wing needs a line in INSIDE, a module that all use one in SHARED"
    others = {inside(name) for name in own(MODULES[module]) if name.startswith("speclrm.runtime.")}
    assert others - {inside(module), "shared"} <= INSIDE[inside(module)]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_imports_nothing_from_deeper_than_the_public_names(path: Path) -> None:
    assert own(path) == {"speclrm"}


def test_only_the_doors_lie_at_the_root() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "api.py", "cli.py"]


def test_an_installed_package_has_every_folder() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in MODULES.values()}
    assert sorted(listed) == sorted(".".join(["speclrm", *folder.parts]) for folder in folders)


@pytest.mark.parametrize("module", [name for name in MODULES if wing(name) in ("strategies", "evaluators")])
def test_strategies_and_evaluators_know_only_the_leaves_of_the_runtime(module: str) -> None:
    assert {name for name in own(MODULES[module]) if wing(name) == "runtime"} <= LEAVES


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_the_leaves_know_nothing_but_each_other(name: str) -> None:
    assert own(MODULES[name]) <= LEAVES


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: own(path) - {name} for name, path in MODULES.items() if name != "speclrm"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if wing(name) == "app"])
def test_what_an_invocation_is_knows_no_screen(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(MODULES[module])} & {"typer", "click", "rich"}


def test_only_the_modules_of_the_vllm_engine_import_vllm() -> None:
    users = {
        name
        for name, path in MODULES.items()
        if not name.startswith("speclrm.benchmarks.studies")
        and any(other.partition(".")[0] == "vllm" for other in imports(path))
    }
    assert users == {
        f"speclrm.runtime.engines.{name}"
        for name in ("vllm", "vllm_counters", "vllm_nursery", "vllm_plugin", "vllm_start")
    }


def test_strategies_touch_no_clock_no_files_and_no_global_random_state() -> None:
    for name, path in MODULES.items():
        if wing(name) == "strategies":
            assert not imports(path) & {"time", "asyncio", "os", "pathlib", "io", "aiofiles"}, path
            text = path.read_text()
            assert "random." not in text.replace("random.Random(", ""), path


def test_importing_speclrm_loads_nothing_heavy() -> None:
    heavy = ("vllm", "torch", "transformers", "sympy", "numpy")
    code = f"import sys, speclrm; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert loaded.stdout.strip() == "[]"
