"""Strategies of other packages: found by an entry point, or by their class."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from cli_runner import speclrm
from support import boxed

from speclrm.runtime.errors import SettingsError
from speclrm.strategies import catalog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = """
import speclrm


class Only(speclrm.Family):
    name = "only"
    roles = frozenset({speclrm.Role.TARGET})
    defaults = {"tracks": 2}

    async def run_track(self, track):
        while (reason := self.end(track.state)) is None:
            await track.commit(await track.write())
        return reason


class Wrong(speclrm.Family):
    defaults = {"trakcs": 2}


nothing = 3
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with entry points, as an installer lays it down."""
    site = tmp_path / "site"
    info = site / "own_strategies-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "own_strategies.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-strategies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[speclrm.strategies]\nonly = own_strategies:Only\nwrong = own_strategies:Wrong\nnothing = own_strategies:nothing\n"
        "missing = own_strategies:Missing\nbroken = no_such_module:Only\nparallel = own_strategies:Only\n"
    )
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    catalog._installed.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield site
    sys.modules.pop("own_strategies", None)
    catalog._installed.cache_clear()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.usefixtures("installed")
def test_a_strategy_of_an_installed_package_is_one_of_the_command_line(tmp_path: Path) -> None:
    base = ("--dataset", "reasoning-gym:chain_sum", "--limit", "1", "--target", "t", "--output-dir", "out")
    done = speclrm("run", "only", *base, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]
    assert (config["strategy"], config["recipe"]["tracks"]) == ("only", 2)
    assert "only" in catalog.names()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "'missing' of the package own-strategies: own_strategies has no class 'Missing'"),
        ("nothing", "'nothing' of the package own-strategies: own_strategies has no class 'nothing'"),
        ("broken", "'broken' of the package own-strategies cannot be imported: ModuleNotFoundError"),
        ("wrong", "'wrong' of the package own-strategies: its defaults are wrong: trakcs"),
        ("parallel", "package own-strategies brings a strategy called 'parallel', which is the name of a built-in"),
        ("onli", "Did you mean only?"),
    ],
)
def test_an_entry_point_that_is_wrong_is_told_with_its_package_and_hurts_no_other(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        catalog.strategy(name, boxed)
    assert catalog.strategy("speculative", boxed).name == "speculative"


def test_a_strategy_is_found_by_its_class_in_a_file_or_a_module(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SOURCE)
    base = ("--dataset", "reasoning-gym:chain_sum", "--limit", "1", "--target", "t")
    done = speclrm("run", "own.py:Only", *base, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-own.py-Only")
    again = speclrm("replay", str(folder), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert catalog.strategy("speclrm.strategies.direct:Direct", boxed).recipe.tracks == 1
    with pytest.raises(SettingsError, match="cannot be imported: FileNotFoundError"):
        catalog.strategy(str(tmp_path / "none.py:Only"), boxed)
