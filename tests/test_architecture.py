"""The arrows between the packages point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {f"speclrm.runtime.{name}" for name in ("errors", "events", "files", "hub", "ledger", "protocols", "state")}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """All modules that a file imports, anywhere in it, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", modules("strategies") + modules("evaluators"), ids=lambda path: path.stem)
def test_strategies_and_evaluators_know_only_the_leaves_of_the_runtime(path: Path) -> None:
    own = f"speclrm.{path.parent.name}"
    allowed = {name for name in imports(path) if name.startswith("speclrm.") and not name.startswith(own)}
    assert allowed <= LEAVES


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_the_leaves_know_nothing_but_each_other(name: str) -> None:
    path = ROOT / "runtime" / f"{name.rpartition('.')[2]}.py"
    assert {other for other in imports(path) if other.startswith("speclrm")} <= LEAVES


@pytest.mark.parametrize("path", modules("runtime"), ids=lambda path: path.stem)
def test_the_runtime_knows_neither_strategies_nor_evaluators_nor_the_parts_above_it(path: Path) -> None:
    above = (
        "speclrm.strategies",
        "speclrm.evaluators",
        "speclrm.api",
        "speclrm.cli",
        "speclrm.commands",
        "speclrm.bench",
        "speclrm.display",
    )
    assert not [name for name in imports(path) if name.startswith(above) or name == "speclrm"]


@pytest.mark.parametrize("path", modules("bench"), ids=lambda path: path.stem)
def test_benchmarks_know_neither_the_commands_nor_the_screen(path: Path) -> None:
    assert not [
        name for name in imports(path) if name.startswith(("speclrm.cli", "speclrm.commands", "speclrm.display"))
    ]


def test_only_the_vllm_engine_imports_vllm() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("runtime", "strategies", "evaluators", "commands", "bench")
        for path in modules(folder)
        if any(name.partition(".")[0] == "vllm" for name in imports(path))
    } | {path.name for path in ROOT.glob("*.py") if any(name.partition(".")[0] == "vllm" for name in imports(path))}
    assert users == {"runtime/engines/vllm.py"}


def test_strategies_touch_no_clock_no_files_and_no_global_random_state() -> None:
    for path in modules("strategies"):
        assert not imports(path) & {"time", "asyncio", "os", "pathlib", "io", "aiofiles"}, path
        text = path.read_text()
        assert "random." not in text.replace("random.Random(", ""), path


def test_importing_speclrm_loads_nothing_heavy() -> None:
    heavy = ("vllm", "torch", "transformers", "sympy", "numpy")
    code = f"import sys, speclrm; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert loaded.stdout.strip() == "[]"
