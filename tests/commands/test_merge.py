"""``run --shard`` and ``merge``: the parts of a run are together what the whole run is."""

from __future__ import annotations

import json
import shutil
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pytest
from cli_runner import speclrm

if TYPE_CHECKING:
    from pathlib import Path

PARTS = 3
WORDS = (
    *("--target", "sim/qwq-32b", "--draft", "sim/r1-1.5b", "--speculate", "always", "--tracks", "2"),
    *("--dataset", "sim:a70?size=7", "--token-budget", "400", "--repeats", "2", "--display", "none"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    runs = [("whole", ()), *((f"s{part}", ("--shard", f"{part}/{PARTS}")) for part in range(1, PARTS + 1))]
    for name, words in runs:
        done = speclrm("run", "speculative", *WORDS, *words, "--output-dir", name, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def merged(folder: Path, *names: str, words: tuple[str, ...] = ()) -> tuple[int, str]:
    done = speclrm("merge", *names, "--output-dir", "all", *words, cwd=folder)
    return done.returncode, done.stderr


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in found:
        # Between equal votes the order of the tracks' ends decides, which depends on what else is in progress.
        del row["seconds"], row["winner"], row["votes"]
        row["tracks"].sort(key=itemgetter("track"))
    return sorted(found, key=lambda row: (row["problem"], row["repeat"]))


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_merged_shards_are_the_whole_run(folder: Path) -> None:
    assert merged(folder, "s2", "s1", "s3") == (0, "")
    assert rows(folder / "all") == rows(folder / "whole")
    ours, theirs = summary(folder / "all"), summary(folder / "whole")
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["intervals"]["accuracy"] == theirs["intervals"]["accuracy"] is not None
    assert ours["status"] == "finished"
    shards = [summary(folder / f"s{part}") for part in range(1, PARTS + 1)]
    assert ours["seconds"] == max(shard["seconds"] for shard in shards)
    for command in (("trace", "check", "all"), ("replay", "all", "--display", "none")):
        done = speclrm(*command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "all" / "run.json").read_text())["config"]
    assert record["problems"] == json.loads((folder / "whole" / "run.json").read_text())["config"]["problems"]
    assert [shard["shard"] for shard in record["merged"]] == ["1/3", "2/3", "3/3"]
    assert "shard" not in record
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_counts_of_the_engines_add_up(folder: Path) -> None:
    assert merged(folder, "s1", "s2", "s3") == (0, "")

    def finished(name: str) -> dict[str, Any]:
        return json.loads((folder / name / "trace.jsonl").read_text().splitlines()[-1])

    ours, parts = finished("all"), [finished(f"s{part}") for part in range(1, PARTS + 1)]
    assert ours["kind"] == "run_finished"
    for role in ("target", "draft"):
        for name in ("operations", "iterations", "output_tokens"):
            assert ours["engines"][role][name] == sum(part["engines"][role][name] for part in parts)
        assert ours["busy_s"][role] == pytest.approx(sum(part["busy_s"][role] for part in parts) / PARTS)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("s1", "s3"), "Missing shards: 2/3."),
        (("s1", "s2", "s2", "s3"), "Shard 2/3 is there twice."),
        (("s1", "whole"), "whole is no shard"),
        (("s1", "nothing"), "nothing"),
    ],
)
def test_what_is_no_whole_set_of_shards_is_refused(folder: Path, names: tuple[str, ...], said: str) -> None:
    code, told = merged(folder, *names)
    assert code == 2
    assert said in told
    assert "Traceback" not in told
    assert not (folder / "all").exists()


def test_a_shard_that_has_not_ended_is_refused(folder: Path) -> None:
    trace = folder / "s2" / "trace.jsonl"
    trace.write_bytes(b"".join(trace.read_bytes().splitlines(keepends=True)[:-3]))
    code, told = merged(folder, "s1", "s2", "s3")
    assert code == 2
    assert "speclrm resume s2" in told


def test_shards_of_other_settings_are_merged_only_when_asked(folder: Path) -> None:
    shutil.rmtree(folder / "s2")
    words = ("--shard", "2/3", "--score-threshold", "5")
    done = speclrm("run", "speculative", *WORDS, *words, "--output-dir", "s2", cwd=folder)
    assert done.returncode == 0, done.stderr
    code, told = merged(folder, "s1", "s2", "s3")
    assert code == 2
    assert "score_threshold" in told
    assert "--override" in told
    assert merged(folder, "s1", "s2", "s3", words=("--override",)) == (0, "")
    shards = json.loads((folder / "all" / "run.json").read_text())["config"]["merged"]
    assert [list(shard["differences"]) for shard in shards] == [[], ["score_threshold"], []]


@pytest.mark.parametrize(
    ("shard", "said"), [("0/3", "is no part"), ("4/3", "is no part"), ("2", "is no part"), ("8/9", "is empty")]
)
def test_a_part_that_is_none_is_refused_before_anything_runs(tmp_path: Path, shard: str, said: str) -> None:
    done = speclrm("run", "speculative", *WORDS, "--shard", shard, "--output-dir", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert f"--shard {shard} {said}" in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_shard_is_resumed_as_the_part_that_it_is(folder: Path) -> None:
    trace = folder / "s2" / "trace.jsonl"
    lines = trace.read_bytes().splitlines(keepends=True)
    trace.write_bytes(b"".join(lines[: len(lines) // 2]))
    for name in ("results.jsonl", "summary.json"):
        (folder / "s2" / name).unlink()
    done = speclrm("resume", "s2", "--display", "none", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert merged(folder, "s1", "s2", "s3") == (0, "")
    assert rows(folder / "all") == rows(folder / "whole")
