"""Derives each operation's seed from the run's seed and the operation's id, never from arrival order."""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(run_seed: int | None, *names: object) -> int | None:
    """Returns a seed of 31 bits for the thing named, or None if the run has no seed."""
    if run_seed is None:
        return None
    text = f"{run_seed}/{'/'.join(map(str, names))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 33


def operation_id(problem: str, repeat: int, track: str, step: int, kind: str, part: int = 0) -> str:
    """Returns ``problem/repeat/track/step/kind``, with ``.part`` appended if a step took several requests."""
    name = f"{problem}/{repeat}/{track}/{step}/{kind}"
    return f"{name}.{part}" if part else name


def made_ahead(operation: str) -> bool:
    """Returns whether an operation's id is that of work ahead."""
    return operation.rpartition("/")[2].partition(".")[0].endswith("-ahead")
