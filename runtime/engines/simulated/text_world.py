"""Decides what simulated models write: a seeded world of problems with known answers, steps of known quality, and
judges that err as often as stated.

Everything follows from the seed, the names of things (problem, repeat, track, step) and the ids of a request, never
from the order of requests, so a simulation repeats itself byte for byte under any schedule. A step's quality belongs to
its name. The next words belong to the paragraphs in the context, as with a real model: a step may be several of them,
or a part of one, and any request that continues a context continues in it.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from speclrm.runtime.engines.simulated.tokenizer import PackedTokenizer
from speclrm.runtime.protocols import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speclrm.runtime.engine import Request

_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Auroc = Annotated[float, Field(ge=0.5, le=1)]


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """The properties of a world. The defaults stand for QwQ-32B with drafts by R1-Distill-Qwen-1.5B on AIME 2024, 8192 tokens.

    ``acceptance``: of each problem in turn, the share of drafts that the judge scores 7 or more (with ``scores``: at or
    above their quantile 1 - acceptance). Lengths in tokens; ``steps``: of a track, on average, with ``steps_spread`` of
    that as standard deviation; a step is a paragraph here, though a run may take several together or cut one in two.
    ``solved_alpha``, ``solved_beta``: the Beta distribution over problems of the chance that a track of the target is
    right; tracks of one problem share it, and nothing else. ``judge_error``: how often a bad draft is taken for a good
    one, and the other way round. ``harm``: the chance that one accepted bad paragraph makes a right track wrong.
    ``same_mistake``: the share of wrong tracks that give the problem's most tempting wrong answer. The three AUROCs,
    0.5 to 1: how well a draft's mean log-probability, its first token's entropy, and the step's likelihood under the
    target tell good drafts from bad ones. ``scores``: quantiles of measured scores, ascending, at even distances from
    the lowest to the highest; without them digits are drawn. ``draft_lengths``, ``target_lengths``: quantiles of
    measured step lengths; without them lengths are exponential.
    """

    acceptance: Annotated[tuple[_Share, ...], Field(min_length=1)]
    # Step lengths (exponential: assumed) and steps a track: means of 167 runs, as at MIXES.
    draft_step: Annotated[float, Field(gt=1)] = 32.0
    target_step: Annotated[float, Field(gt=1)] = 35.0
    steps: _Positive = 150.0
    steps_spread: _Share = 0.2  # assumed
    # Least squares over the coverage of QwQ-32B alone at 8192 tokens on AIME 2024, pass@1, 2, 3, 5, 9 of 38.5, 46.9, 52.6, 60.6
    # and 70.0 % (the history of SSR's repository, plots before 587a3ae): 36.8, 48.2, 54.3, 61.3, 68.2 %
    # (benchmarks/studies/fit_world.py).
    solved_alpha: _Positive = 0.35
    solved_beta: _Positive = 0.60
    # Assumed: no rate of a one-token judge's errors by step was found. SpecReason (arXiv 2504.07891) shows its score to rise with
    # that of a process reward model, without a rate. One in five is chosen so that accepting is not made to look safe.
    judge_error: _Share = 0.2
    # Accuracy 22.3 % at threshold 3 and 39.3 % at 7 (arXiv 2504.07891, QwQ-32B with R1-Distill-Qwen-1.5B, AIME) against the bad
    # steps that pass at each, from the acceptance, the rejected digits and judge_error (benchmarks/studies/fit_world.py).
    harm: _Share = 0.0104
    # The majority of 64 against pass@1 on AIME 2024 (deepseek-ai/DeepSeek-R1, README.md, four models of 14B to 70B), with the
    # spread above. Over smaller models too it would be 0.20, which makes voting look better (benchmarks/studies/fit_world.py).
    same_mistake: _Share = 0.36
    # Assumed, all three. ConfSpec (arXiv 2602.18447) and GlimpRouter (arXiv 2601.05110) found such signals useful; no AUROC
    # against the quality of single steps was found in them. Chosen low, so that a gate has something to lose.
    confidence_auroc: _Auroc = 0.70
    entropy_auroc: _Auroc = 0.65
    likelihood_auroc: _Auroc = 0.75
    scores: tuple[Annotated[float, Field(ge=0, le=9)], ...] = ()
    draft_lengths: tuple[_Positive, ...] = ()
    target_lengths: tuple[_Positive, ...] = ()


_AIME_MIX = (0.89, 0.37, 0.09, 0.22, 0.62, 0.36, 0.24, 0.41, 0.68, 0.82, 0.40)
MIXES: dict[str, WorldSettings] = {
    # Acceptance by problem in 167 runs of QwQ-32B with R1-Distill-1.5B at threshold 7 on AIME 2024 (RuthvikAtte/specreason,
    # results/experiment_summary.json).
    "aime-mix": WorldSettings(_AIME_MIX),
    # Round numbers, for schedules.
    "a70": WorldSettings((0.70,)),
    "a85": WorldSettings((0.85,)),
}
"""By the name of a simulated dataset: ``sim:aime-mix``."""

# The digits of accepted and of rejected steps: of all distributions over 7 to 9 and over 0 to 6 with the means 7.5 and 4.0 of
# those 167 runs the least assuming ones (benchmarks/studies/fit_world.py). 88 % of drafts would then pass at threshold 3.
_ACCEPTED = {7: 0.616, 8: 0.268, 9: 0.116}
_REJECTED = {0: 0.057, 1: 0.074, 2: 0.096, 3: 0.125, 4: 0.162, 5: 0.212, 6: 0.274}
_OTHER_DIGITS = math.log(0.1 / 9)  # a tenth of the probability beside the digit: assumed

# Mean log-probabilities of steps are lognormal: their quintiles were -0.38, -0.24, -0.16 and -0.09 for steps of
# Qwen2.5-Coder-0.5B under the 1.5B (measured on a CPU, greedy judge, arithmetic). The entropy's median of a nat is assumed.
_LOGPROB_MEDIAN, _LOGPROB_SPREAD = 0.2, 0.85
_ENTROPY_MEDIAN, _ENTROPY_SPREAD = 1.0, 0.85

_WORDS = "the and sum mod let set now put add try use see get two one six ten all odd any".split()  # noqa: SIM905
_GOOD, _BAD = " so ", " hm "  # begins each paragraph but the last, and occurs nowhere else
_NUMBER = re.compile(r" [a-z]{3}")
_PARAGRAPH_MIN = 4  # ids: the mark's two, the number and the blank line
_SCAN = 64  # ids that are searched at a time; most paragraphs have fewer
_NORMAL = NormalDist()
_IMPOSSIBLE = -30.0


def _generator(*names: object) -> random.Random:
    key = blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(key, "big"))


def _quantile(quantiles: Sequence[float], share: float) -> float:
    """Returns the value below which the share lies, between quantiles at even distances."""
    place = share * (len(quantiles) - 1)
    below = min(int(place), len(quantiles) - 2)
    return quantiles[below] + (place - below) * (quantiles[below + 1] - quantiles[below])


Place = tuple[str, str, str]
"""Problem, repeat and track."""


class SimulatedWorld:
    """Writes for each request what its model would, by its id (``problem/repeat/track/step/kind``) and its context.

    ``truths``: right answers by problem, if a dataset has them; others are drawn.
    """

    def __init__(self, settings: WorldSettings, seed: int = 0, truths: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.seed = seed
        self.truths = dict(truths or {})
        self.tokenizer = PackedTokenizer()
        self._words = [self.tokenizer.encode(f" {word}")[0] for word in _WORDS]
        self._good, self._bad = (self.tokenizer.encode(mark) for mark in (_GOOD, _BAD))
        vocabulary = self.tokenizer.vocabulary
        (self._blank_line,) = vocabulary.blank_line_ids
        self._begins = frozenset((self._good[0], self._bad[0]))
        self._borders = self._begins | vocabulary.blank_line_ids | vocabulary.special_ids

    def problems(self, count: int) -> list[Problem]:
        """Returns problems with the right answers of this world."""
        return [
            Problem(f"sim-{number}", f"Simulated problem {number} of seed {self.seed}.", self.truth(f"sim-{number}"))
            for number in range(count)
        ]

    def truth(self, problem: str) -> str:
        return self.truths.get(problem) or str(_generator(self.seed, problem, "truth").randrange(1000))

    def acceptance(self, problem: str) -> float:
        number = problem.rpartition("-")[2]
        place = int(number) if number.isdigit() else _generator(self.seed, problem).randrange(1 << 16)
        return self.settings.acceptance[place % len(self.settings.acceptance)]

    def good_draft(self, where: Place, step: int) -> bool:
        """Returns the true quality of a draft. What the target writes is always good."""
        accepted, error = self._rates(where[0])
        good = (accepted - error) / (1 - 2 * error)
        return _generator(self.seed, *where, step, "quality").random() < good

    # ------------------------------------------------------------------------------------------------------ as a World

    def write(self, request: Request) -> Sequence[int]:
        where, step, kind = _parts(request)
        greedy = request.temperature == 0
        match kind:
            case "choose":
                return rest_of(self.tokenizer.encode("B, E, F, A, K, C, D, G, H, I, J, L"), request.prompt_ids)
            case "closing":
                answer = self._answer(where, request.prompt_ids, greedy=greedy)
                return rest_of(self.tokenizer.encode(f"{answer}}}"), request.prompt_ids)
            case "draft":
                return self._next(where, request.prompt_ids, "draft", good=self.good_draft(where, step), greedy=greedy)[
                    1
                ]
            case _:
                number, ids = self._next(where, request.prompt_ids, "target", good=True, greedy=greedy)
                if kind == "write":
                    for later in range(number + 1, self._steps(where)):
                        ids += self._paragraph(where, later, "target", request.prompt_ids, good=True, greedy=greedy)
                return ids

    def digits(self, request: Request) -> Sequence[float]:
        where, step, _ = _parts(request)
        if (asked := len(request.logprob_ids)) not in (0, 10):  # the likelihood scorer, of a draft without a word
            good = self.good_draft(where, step)
            return [*self._logprobs((*where, step, "end"), 1, self.settings.likelihood_auroc, good=good)] * asked
        accepted, error = self._rates(where[0])
        passes = self.good_draft(where, step) != (_generator(self.seed, *where, step, "judge").random() < error)
        draw = _generator(self.seed, *where, step, "digit").random()
        if scores := self.settings.scores:
            share = 1 - accepted + draw * accepted if passes else draw * (1 - accepted)
            below, rest = divmod(_quantile(scores, share), 1)
            weights = {int(below): 1 - rest, int(below) + 1: rest}
            return [math.log(weight) if (weight := weights.get(digit, 0.0)) else _IMPOSSIBLE for digit in range(10)]
        shares = _ACCEPTED if passes else _REJECTED
        chosen = list(shares)[min(bisect(list(accumulate(shares.values())), draw), len(shares) - 1)]
        return [math.log(0.9) if digit == chosen else _OTHER_DIGITS for digit in range(10)]

    def sampled(self, request: Request, ids: Sequence[int]) -> Sequence[float]:
        where, step, kind = _parts(request)
        good = kind != "draft" or self.good_draft(where, step)
        return self._logprobs((*where, step, kind, "confidence"), len(ids), self.settings.confidence_auroc, good=good)

    def entropy(self, request: Request) -> float:
        where, step, kind = _parts(request)
        good = kind != "draft" or self.good_draft(where, step)
        signal = self._signal((*where, step, kind, "entropy"), self.settings.entropy_auroc, good=good)
        return _ENTROPY_MEDIAN * math.exp(-_ENTROPY_SPREAD * signal)

    def likelihood(self, request: Request) -> Sequence[float]:
        where, step, _ = _parts(request)
        assert request.likelihood_from is not None
        return self._logprobs(
            (*where, step, "likelihood"),
            len(request.prompt_ids) - request.likelihood_from,
            self.settings.likelihood_auroc,
            good=self.good_draft(where, step),
        )

    # --------------------------------------------------------------------------------------------------------- its facts

    def _steps(self, where: Place) -> int:
        """Returns how many steps the track needs."""
        settings = self.settings
        draw = _generator(self.seed, *where, "steps").gauss(settings.steps, settings.steps * settings.steps_spread)
        return max(2, round(draw))

    def _rates(self, problem: str) -> tuple[float, float]:
        """Returns the accepted share, and the judge's error, which cannot be larger than that share or its complement."""
        accepted = self.acceptance(problem)
        return accepted, min(self.settings.judge_error, accepted / 2, (1 - accepted) / 2)

    def _signal(self, names: Sequence[object], auroc: float, *, good: bool) -> float:
        """Draws from a normal distribution whose mean is higher for good drafts, by sqrt(2) times the normal quantile
        of the AUROC.
        """
        apart = math.sqrt(2) * _NORMAL.inv_cdf(min(auroc, 0.999_999))
        return _generator(self.seed, *names).gauss(apart / 2 if good else -apart / 2, 1.0)

    def _logprobs(self, names: Sequence[object], count: int, auroc: float, *, good: bool) -> Sequence[float]:
        """Returns log-probabilities of single tokens, whose mean is the signal."""
        mean = _LOGPROB_MEDIAN * math.exp(-_LOGPROB_SPREAD * self._signal(names, auroc, good=good))
        draw = _generator(self.seed, *names, "tokens")
        parts = [draw.expovariate(1.0) for _ in range(count)]
        whole = sum(parts)
        return [-mean * count * part / whole for part in parts]

    def _length(self, draw: random.Random, role: str) -> int:
        settings = self.settings
        mean, lengths = (
            (settings.draft_step, settings.draft_lengths)
            if role == "draft"
            else (settings.target_step, settings.target_lengths)
        )
        if lengths:
            return max(1, round(_quantile(lengths, draw.random())))
        return 1 + round(draw.expovariate(1 / (mean - 1)))

    def _next(
        self, where: Place, context: Sequence[int], role: str, *, good: bool, greedy: bool
    ) -> tuple[int, list[int]]:
        """Returns the number of the paragraph that the context continues with, and what is to be written of it.

        A paragraph that was cut is finished as whoever began it would have finished it, so that the cut changes
        nothing.
        """
        number, begun = self._standing(context)
        before = context[: len(context) - len(begun)] if begun else context
        for one in (role, "target" if role == "draft" else "draft") if begun else ():
            paragraph = self._paragraph(where, number, one, before, good=begun[0] != self._bad[0], greedy=greedy)
            if paragraph[: len(begun)] == begun:
                return number, paragraph[len(begun) :]
        return number, self._paragraph(where, number, role, context, good=good, greedy=greedy)

    def _standing(self, context: Sequence[int]) -> tuple[int, list[int]]:
        """Returns how many paragraphs are whole, and the ids of one that is not. Reads from the end, where the number
        is, so that a long context takes no longer than a short one. Blank lines of a prompt end no paragraph of ours.
        """
        border = self._last_border(context, len(context))
        if border < 0 or context[border] in self.tokenizer.vocabulary.special_ids:
            return 0, []
        start = border if context[border] in self._begins else border + 1
        number = self._number_behind(context, start)
        return number, list(context[start:]) if number or start == border else []

    def _number_behind(self, context: Sequence[int], end: int) -> int:
        """Returns the number of the paragraph after the one that ends there, 0 if none of ours does."""
        if end < _PARAGRAPH_MIN or context[end - 1] != self._blank_line:
            return 0
        begin = self._last_border(context, end - 1)
        if begin < 0 or list(context[begin : begin + 2]) not in (self._good, self._bad):
            return 0
        word = self.tokenizer.decode((context[end - 2],))
        return _number(word) + 1 if _NUMBER.fullmatch(word) else 0

    def _last_border(self, context: Sequence[int], end: int) -> int:
        """Returns the place of the last id, before ``end``, that begins or ends a paragraph or a turn; -1 if there is none."""
        borders = self._borders
        while end > 0:
            start = max(0, end - _SCAN)
            part = context[start:end]
            for index in range(len(part) - 1, -1, -1):
                if part[index] in borders:
                    return start + index
            end = start
        return -1

    def _paragraph(
        self, where: Place, number: int, role: str, context: Sequence[int], *, good: bool, greedy: bool
    ) -> list[int]:
        """Returns a whole paragraph. ``context``: what comes before it; ``good``: whether a draft's is; the target's
        always are.
        """
        draw = _generator(self.seed, *where, number, role, "step")
        length = self._length(draw, role)
        if number >= self._steps(where) - 1:
            box = self.tokenizer.encode(f" \\boxed{{{self._answer(where, context, greedy=greedy)}}}")
            return [*(draw.choice(self._words) for _ in range(length - len(box))), *box]
        mark = self._good if good or role != "draft" else self._bad
        words = (draw.choice(self._words) for _ in range(length - len(mark) - 2))
        # It ends with its number, so no two paragraphs are equal, and the context shows what comes next.
        return [*mark, *words, *self.tokenizer.encode(f" {_letters(number)}"), self._blank_line]

    def _answer(self, where: Place, context: Sequence[int], *, greedy: bool) -> str:
        """Draws whether the answer is right, by the problem's own chance; bad paragraphs in the context make it worse.

        At temperature 0 all tracks of a problem have the same luck.
        """
        settings = self.settings
        chance = _generator(self.seed, where[0], "chance").betavariate(settings.solved_alpha, settings.solved_beta)
        draw = _generator(self.seed, *(where[:1] if greedy else where), "answer")
        right = draw.random() < chance
        bad = self.tokenizer.decode(context).count(_BAD)
        if right and draw.random() < 1 - (1 - settings.harm) ** bad:
            right = False
        truth = self.truth(where[0])
        if right:
            return truth
        tempting = _generator(self.seed, where[0], "tempting").randrange(1000)
        wrong = tempting if draw.random() < settings.same_mistake else draw.randrange(1000)
        return str(wrong if str(wrong) != truth else (wrong + 1) % 1000)


def rest_of(ids: Sequence[int], context: Sequence[int]) -> Sequence[int]:
    """Returns what is left of an output of which the context ends with a part, as after an engine that failed."""
    part = next((n for n in range(min(len(ids), len(context)), 0, -1) if list(context[-n:]) == list(ids[:n])), 0)
    return ids[part:]


def _letters(number: int) -> str:
    return "".join(chr(ord("a") + number // 26**place % 26) for place in (2, 1, 0))


def _number(word: str) -> int:
    """Reads the number that ``_letters`` wrote as a word."""
    number = 0
    for letter in word.lstrip():
        number = number * 26 + ord(letter) - ord("a")
    return number


def _parts(request: Request) -> tuple[Place, int, str]:
    """Returns place, step and kind of a request. A request made ahead has the same kind as the one it stands for."""
    problem, repeat, track, step, kind = request.id.rsplit("/", 4)
    return (problem, repeat, track), int(step), kind.partition(".")[0].removesuffix("-ahead")
