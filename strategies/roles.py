"""Holds the role hints that a track can have instead of a method.

SSR's role prompts (Chu et al. 2025, arXiv 2505.15340; prompts/role_prompts.py of its code) are three: the plain way,
the short cut, the structured plan. The wording is ours.
"""

from __future__ import annotations

ROLES: dict[str, str] = {
    "R1": "You are a careful student of mathematics. Take the most natural and common way to the answer, and keep every "
    "line short.",
    "R2": "You are an inventive problem solver. Look for the observation or the trick that makes the problem short "
    "before you calculate anything.",
    "R3": "You are a methodical analyst. Plan first: work backwards, add what the problem lacks, split it into parts, "
    "then settle the parts in order.",
}
"""Code to persona."""
