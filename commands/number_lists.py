"""Reads options that are lists of numbers."""

from __future__ import annotations

from speclrm.runtime.errors import UsageError


def whole_numbers(option: str, text: str) -> list[int]:
    """Reads whole numbers from 1, separated by commas. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UsageError(f"{option} {text!r}: write whole numbers from 1 with commas between.")
    return [int(part) for part in parts]


def positive(option: str, text: str) -> list[float]:
    """Reads numbers above 0, separated by commas. Raises UsageError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise UsageError(f"{option} {text!r}: write numbers above 0 with commas between.")
    return numbers
