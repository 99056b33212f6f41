"""What other packages bring: strategies, datasets and sinks, found by an entry point, or by their name in a module or file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cli_runner import speclrm
from support import boxed

from speclrm.app.sinks import named_sinks
from speclrm.evaluators import datasets
from speclrm.runtime import plugins
from speclrm.runtime.errors import DatasetError, SettingsError
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


def sums(seed):
    return [speclrm.Problem(f"sum-{number}", f"What is {number} + {seed}?", str(number + seed)) for number in range(4)]


def twice(seed):
    return [speclrm.Problem("one", "What is 1?", "1")] * 2


def strange(seed):
    return ["What is 1?"]


def failing(seed):
    raise OSError("no disk")


class Notes:
    def emit(self, event):
        if event.kind == "sample_finished":
            print("noted", event.problem)

    async def room(self): ...

    async def aclose(self):
        print("closed")


nothing = 3
"""
ENTRY_POINTS = """
[speclrm.strategies]
only = own_strategies:Only
wrong = own_strategies:Wrong
nothing = own_strategies:nothing
missing = own_strategies:Missing
broken = no_such_module:Only
parallel = own_strategies:Only

[speclrm.datasets]
sums = own_strategies:sums
twice = own_strategies:twice
strange = own_strategies:strange
failing = own_strategies:failing
gsm8k = own_strategies:sums

[speclrm.sinks]
notes = own_strategies:Notes
no-sink = own_strategies:dict
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with entry points, as an installer lays it down."""
    site = tmp_path / "site"
    info = site / "own_strategies-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "own_strategies.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-strategies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    plugins.installed.cache_clear()
    yield site
    sys.modules.pop("own_strategies", None)
    plugins.installed.cache_clear()


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
        ("missing", "'missing' of the package own-strategies: own_strategies has no 'Missing'"),
        ("nothing", "'nothing' of the package own-strategies is no class that is made from speclrm.Family"),
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


@pytest.mark.usefixtures("installed")
def test_a_dataset_and_a_sink_of_an_installed_package_are_ones_of_the_command_line(tmp_path: Path) -> None:
    base = ("--target", "t", "--display", "none", "--output-dir", "out")
    done = speclrm(
        "run", "only", "--dataset", "sums", "--limit", "2", "--seed", "5", "--sink", "notes", *base, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["noted sum-0", "noted sum-1", "closed"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["problem"], row["gold"]) for row in rows] == [("sum-0", "5"), ("sum-1", "6")]
    assert "sums" in datasets.names()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twice", "problem 1: id 'one' stands on problem 0 too"),
        ("strange", "'strange' of the package own-strategies gives a str; it must give speclrm.Problem objects"),
        ("failing", "'failing' of the package own-strategies cannot be made: OSError: no disk"),
        ("gsm8k", "package own-strategies brings a dataset called 'gsm8k', which is the name of a built-in"),
        ("no_such_module:sums", "cannot be imported: ModuleNotFoundError"),
        ("sum", "There is no dataset 'sum'. Did you mean sums"),
    ],
)
def test_a_dataset_that_is_wrong_is_told_with_its_package(name: str, message: str) -> None:
    with pytest.raises((DatasetError, SettingsError), match=message):
        datasets.load(name)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("note", "There is no sink called 'note'. Installed packages bring: no-sink, notes"),
        ("own_strategies:dict", "own_strategies has no 'dict'"),
        ("builtins:dict", r"gives no sink: a dict has no emit\(\)"),
    ],
)
def test_a_sink_that_is_wrong_is_told_before_anything_is_loaded(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        named_sinks([name])


def test_a_package_that_pip_installs_brings_its_strategy(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "own_strategies.py").write_text(SOURCE)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "own-strategies"\nversion = "1.0"\n'
        '[project.entry-points."speclrm.strategies"]\nonly = "own_strategies:Only"\n'
        '[tool.setuptools]\npy-modules = ["own_strategies"]\n'
    )
    site = tmp_path / "site"
    install = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        str(site),
        str(source),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    say = "from speclrm.strategies import catalog; print(catalog.strategy('only', str).recipe.tracks, catalog.names()[-1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", say], capture_output=True, text=True, check=True, env=environment, timeout=30
    )
    assert done.stdout.split() == ["2", "only"]
