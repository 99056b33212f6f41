"""Estimates what an engine's iterations cost, while it works.

An iteration takes ``w + p * new tokens + k * context tokens``, and longer while another engine works on the same
device. Between two looks at an engine, the seconds in which it was busy are that, summed over its iterations: four
unknowns and one equation a look. They are fitted by least squares, with older looks counting less; no constant is ever
negative.

Looks at an engine at work tell its four costs apart only slowly. Where they were measured before the run, they keep their
proportions, and the looks tell one number: by how much all of them are dearer now.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from speclrm.runtime.engine import EngineCosts

MEMORY = 0.98
"""Weight of a look relative to the next one."""
PRIOR = 4.0
"""Weight of the first guess, in looks: that an iteration's cost is constant, whatever is in it."""
HOLD, HOLD_CONTEXT, HOLD_SLOWDOWN = 0.05, 1.0, 0.02
"""How hard the guess holds, beside the weight of a column. It lets go with time, but for the slowdown: an engine that never
worked alone cannot be told from a slow one, and is better taken for that. It holds hardest for the context, of which a forecast
has far more tokens than any look: what a few looks lay to it by chance would decide all.
"""
PRIOR_KNOWN = 20.0
"""Weight of what was measured before the run, in looks."""
SLOWDOWN_MAX = 10.0


@dataclass(frozen=True, slots=True)
class CounterDelta:
    """The work of an engine between two looks at it. ``context``: tokens of context, summed over iterations and requests.

    ``both_s``: seconds of ``busy_s`` in which another engine was busy too.
    """

    busy_s: float
    iterations: float
    new_tokens: float
    context: float
    both_s: float


@dataclass(slots=True)
class CostFit:
    """The running estimate for one engine. ``known``: what was measured before the run; ``costs``: that, or None, until the
    first look.
    """

    known: EngineCosts | None = None
    _gram: list[list[float]] = field(default_factory=lambda: [[0.0] * 4 for _ in range(4)])
    _right: list[float] = field(default_factory=lambda: [0.0] * 4)
    _looks: int = 0
    _costs: EngineCosts | None = None
    _dearer: float = 1.0

    @property
    def costs(self) -> EngineCosts | None:
        return self._costs or self.known

    def add(self, look: CounterDelta) -> None:
        """Adds a look; one without an iteration changes nothing."""
        if look.iterations <= 0 or look.busy_s <= 0:
            return
        if self.known is not None:
            self._compare(look, self.known)
            return
        # Each look counts the same, however long it took: all numbers are per iteration.
        scale = 1.0 / look.iterations
        row = [1.0, look.new_tokens * scale, look.context * scale, 0.0]
        seconds = look.busy_s * scale
        alone = self.costs or EngineCosts(seconds)
        row[3] = look.both_s / look.busy_s * (alone.w + alone.p * row[1] + alone.k * row[2])
        for i in range(4):
            self._right[i] = self._right[i] * MEMORY + row[i] * seconds
            for j in range(4):
                self._gram[i][j] = self._gram[i][j] * MEMORY + row[i] * row[j]
        self._looks += 1
        self._costs = self._solve(seconds)

    def _compare(self, look: CounterDelta, known: EngineCosts) -> None:
        alone_s = known.w * look.iterations + known.p * look.new_tokens + known.k * look.context
        # Of the seconds in which the other engine works too, only those of its speed count.
        worked_s = look.busy_s - look.both_s * (1 - 1 / (1 + known.slowdown))
        self._looks += 1
        weight = 1 / (PRIOR_KNOWN + min(self._looks, 1 / (1 - MEMORY)))
        self._dearer += (worked_s / alone_s - self._dearer) * weight
        one = self._dearer
        self._costs = replace(known, w=known.w * one, p=known.p * one, k=known.k * one)

    def _solve(self, seconds: float) -> EngineCosts:
        # A look's columns differ by orders of magnitude: scale them, and pull each unknown towards its guess.
        scales = [max(self._gram[i][i], 1e-30) ** 0.5 for i in range(4)]
        guess = [self._right[0] / self._gram[0][0], 0.0, 0.0, 0.0]
        letting_go = PRIOR / (PRIOR + self._looks)
        hold = [HOLD * letting_go, HOLD * letting_go, HOLD_CONTEXT * letting_go, HOLD_SLOWDOWN]
        active = [i for i in range(4) if self._gram[i][i] > 0]
        unseen = [i for i in range(4) if i not in active]
        while active:
            matrix = [
                [self._gram[i][j] / (scales[i] * scales[j]) + (hold[i] if i == j else 0.0) for j in active]
                for i in active
            ]
            right = [self._right[i] / scales[i] + hold[i] * guess[i] * scales[i] for i in active]
            solved = _solve(matrix, right)
            found = {i: value / scales[i] for i, value in zip(active, solved, strict=True)}
            negative = [i for i in active if found[i] < 0]
            if not negative:
                break
            active.remove(min(negative, key=lambda i: found[i] * scales[i]))
        else:
            found = {0: seconds}
        if not any(found.get(i) for i in range(3)):  # the slowdown of nothing explains nothing
            found = {0: guess[0]}
        for i in unseen:
            found[i] = guess[i]
        return EngineCosts(
            found.get(0, 0.0), found.get(1, 0.0), found.get(2, 0.0), min(SLOWDOWN_MAX, found.get(3, 0.0))
        )


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solves the equations by Gaussian elimination with pivots; the matrices are small, and regular because of what is
    added to their diagonal.
    """
    size = len(right)
    rows = [[*matrix[i], right[i]] for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, size + 1):
                rows[r][c] -= factor * rows[i][c]
    result = [0.0] * size
    for i in reversed(range(size)):
        result[i] = (rows[i][size] - sum(rows[i][c] * result[c] for c in range(i + 1, size))) / rows[i][i]
    return result
