"""Writes whole files: under another name, synced and renamed, so that nobody ever finds a partial one.

Also explains a disk's errors. A leaf, for whatever writes a file or reports an error.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that end once there is room."""
GONE = (errno.ENOENT, errno.ENOTDIR)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_PART = ".part"


@contextmanager
def replaced(path: Path) -> Generator[Path, None, None]:
    """Yields a path beside ``path`` to write to, and renames it to ``path`` at the end of the block.

    Until then ``path`` is unchanged. If the block or the disk fails, nothing is left beside it. Raises OSError, which
    names ``path``.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a write error names no file, an opening error the temporary name
            raise OSError(error.errno, reason(error), str(path)) from error
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes the whole file, or raises an OSError that names it and leaves what was there before. Text is UTF-8."""
    with replaced(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def is_part(name: str) -> bool:
    """Returns whether ``replaced`` makes files of this name: a killed process may leave one behind."""
    return name.startswith(".") and name.endswith(_PART)


def sync_folder(folder: Path) -> None:
    """Syncs the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: OSError) -> str:
    """Returns the system's message without its number."""
    return error.strerror or str(error)


def remedy(error: OSError) -> str:
    """Says what to do before the same can succeed: the beginning of a sentence, without its end."""
    if error.errno in FULL:
        return "Free some space there"
    if error.errno in _REFUSED:
        return "See that you may read and write there"
    if error.errno in GONE:
        return "See that its folder is there"
    if error.errno in _TOO_MANY:
        return "Allow more open files (ulimit -n)"
    return "See what is wrong there"


def is_disk_error(error: OSError) -> bool:
    """Returns whether an error is about files, and not about connections or time, which are OSErrors too."""
    return error.errno is not None and not isinstance(error, ConnectionError | TimeoutError)
