"""Holds the twelve method hints, A to L, and M for none.

The set follows the pool of SSR (Chu et al. 2025, arXiv 2505.15340): the same twelve branches of problem solving under
the same letters. The wording is ours.
"""

from __future__ import annotations

NO_METHOD = "M"

METHODS: dict[str, str] = {
    "A": "Name the unknowns, turn each statement into an equation or inequality, and solve the system by algebra.",
    "B": "Replace a complicated expression by a new variable so that the problem takes a simpler or known form.",
    "C": "Place the figure or the data in a coordinate system and work with equations, distances and slopes.",
    "D": "Read points, rotations or periodic quantities as complex numbers and use their algebra.",
    "E": "Look at divisibility, remainders, prime factors and parity; work modulo a well chosen number.",
    "F": "Count by combinatorics: arrangements, selections, bijections, inclusion and exclusion.",
    "G": "Model what happens as random events; use cases, conditional probability, independence and expected value.",
    "H": "Find the function behind the problem from the equations it satisfies, by inserting special values.",
    "I": "Set up a recursion, or find a quantity that no move changes, and follow it from small cases to the end.",
    "J": "Use plane geometry: congruent and similar triangles, circles, angles, areas, an auxiliary line.",
    "K": "Split the problem into all possible cases, settle each one, and put the results together.",
    "L": "Treat it as a function to be bounded or optimised: derivatives, limits, or a standard inequality.",
}
"""Code to hint. One sentence each: the hint is part of the prompt of every request of its track."""

LONGEST_METHOD = max(METHODS, key=lambda code: len(METHODS[code]))


def hint(code: str) -> str:
    """Returns the hint for a code; empty for M."""
    return "" if code == NO_METHOD else METHODS[code]
