"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from speclrm.runtime.files import is_part, remedy, replaced, write_whole

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_written_anew_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "first ü\n")
    write_whole(tmp_path / "a", b"second\n")
    assert (tmp_path / "a").read_bytes() == b"second\n"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_what_fails_half_way_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("before")

    def write() -> None:
        with replaced(tmp_path / "a") as fresh:
            fresh.write_text("aft")
            assert is_part(fresh.name)
            assert (tmp_path / "a").read_text() == "before"
            raise error

    with pytest.raises(type(error)):
        write()
    assert (tmp_path / "a").read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told:
        write_whole(tmp_path / "none" / "a", "x")
    assert told.value.filename == str(tmp_path / "none" / "a")
    assert ".part" not in str(told.value)


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        seen.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def renamed(old: Path, new: Path) -> None:
        seen.append("renamed")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    write_whole(tmp_path / "a", "x")
    assert is_part(seen[0])
    assert seen[1:] == ["renamed", tmp_path.name]


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "Free some space there"),
        (errno.EDQUOT, "Free some space there"),
        (errno.EROFS, "See that you may read and write there"),
        (errno.ENOENT, "See that its folder is there"),
        (errno.EMFILE, "Allow more open files (ulimit -n)"),
        (errno.EIO, "See what is wrong there"),
    ],
)
def test_each_error_of_a_disk_has_something_to_be_done_about_it(number: int, what: str) -> None:
    assert remedy(OSError(number, os.strerror(number))) == what
