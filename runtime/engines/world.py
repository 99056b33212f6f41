"""What the models of a simulation say: a seeded world of problems with known answers, steps of known quality, and judges
that err as often as stated.

Everything follows from the seed and the names of things (problem, repeat, track, step), never from the order of
requests, so a simulation repeats itself byte for byte under any schedule.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Message, Problem, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speclrm.runtime.protocols import Request

# ----------------------------------------------------------------------------------------------------------- the tokenizer

_ASCII_BITS = 7
_PIECE = re.compile(r"\n\n| ?[A-Za-z]{1,3}|.", re.DOTALL)
_WIDE = 1 << 28
_BLANK_LINE = 1 << 29
_MARKS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_FIRST_MARK = _BLANK_LINE + 1
_MARK = re.compile("|".join(map(re.escape, _MARKS)))


class PackedTokenizer:
    """Up to four characters a token, which is about what English has; a blank line and the marks of a chat are one each.

    An id holds its characters, seven bits each, so nothing has to be kept and any text reads back.
    """

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(
            size=_FIRST_MARK + len(_MARKS),
            fingerprint="packed",
            blank_line_ids=frozenset({_BLANK_LINE}),
            newline_ids=frozenset({ord("\n")}),
            end_ids=frozenset({_FIRST_MARK}),
            special_ids=frozenset(range(_FIRST_MARK, _FIRST_MARK + len(_MARKS))),
        )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for mark in _MARK.finditer(text):
            ids.extend(map(_pack, _PIECE.findall(text[start : mark.start()])))
            ids.append(_FIRST_MARK + _MARKS.index(mark.group()))
            start = mark.end()
        ids.extend(map(_pack, _PIECE.findall(text[start:])))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(_unpack, ids))

    def begin(self, text: str) -> list[int]:
        return self.encode(text)

    def render(self, messages: Sequence[Message], *, continue_final: bool = False) -> list[int]:
        text = "<|end|>".join(f"<|{message['role']}|>{message['content']}" for message in messages)
        return self.encode(text if continue_final else f"{text}<|end|><|assistant|>")


@lru_cache(maxsize=65_536)
def _pack(piece: str) -> int:
    if piece == "\n\n":
        return _BLANK_LINE
    if not piece.isascii() or piece == "\0":
        return _WIDE + ord(piece)
    return sum(ord(character) << (_ASCII_BITS * place) for place, character in enumerate(piece))


@lru_cache(maxsize=65_536)
def _unpack(token: int) -> str:
    if token >= _FIRST_MARK:
        return _MARKS[token - _FIRST_MARK]
    if token == _BLANK_LINE:
        return "\n\n"
    if token >= _WIDE:
        return chr(token - _WIDE)
    characters: list[str] = []
    while token:
        characters.append(chr(token & 127))
        token >>= _ASCII_BITS
    return "".join(characters)


# --------------------------------------------------------------------------------------------------------------- the world


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """``acceptance``: of each problem in turn, the share of drafts that the judge scores 7 or more.

    Lengths in tokens; ``steps``: of a track, on average. ``solved_alpha``, ``solved_beta``: the Beta distribution over
    problems of the chance that a track of the target is right; tracks of one problem share it, and nothing else.
    ``judge_error``: how often a bad step passes for a good one, and the other way round. ``harm``: the chance that one bad
    step that was let through makes a right track wrong. ``same_mistake``: the share of wrong tracks that give the problem's
    most tempting wrong answer.
    """

    acceptance: tuple[float, ...]
    draft_step: float = 32.0
    target_step: float = 35.0
    steps: float = 150.0
    solved_alpha: float = 0.35
    solved_beta: float = 0.60
    judge_error: float = 0.1
    harm: float = 0.01
    same_mistake: float = 0.3


_AIME_MIX = (0.89, 0.37, 0.09, 0.22, 0.62, 0.36, 0.24, 0.41, 0.68, 0.82, 0.40)
MIXES: dict[str, WorldSettings] = {
    # Acceptance by problem in 167 runs of QwQ-32B with R1-Distill-1.5B at threshold 7 on AIME 2024 (RuthvikAtte/specreason,
    # results/experiment_summary.json); step lengths and steps a track from the same telemetry. The spread of the chance to
    # solve a problem: least squares over the coverage of QwQ-32B alone at 8192 tokens on AIME 2024, pass@1, 2, 3, 5, 9 of 38.5,
    # 46.9, 52.6, 60.6 and 70.0 % (SSR's repository, plots before 587a3ae); Beta(0.35, 0.60) gives 36.8, 48.2, 54.3, 61.3, 68.2 %.
    # judge_error, harm and same_mistake are assumptions.
    "aime-mix": WorldSettings(_AIME_MIX),
    "a70": WorldSettings((0.70,)),
    "a85": WorldSettings((0.85,)),
}
"""By the name of a simulated dataset: ``sim:aime-mix``."""

_WORDS = "the and sum mod let set now put add try use see get two one six ten all odd any".split()  # noqa: SIM905
_GOOD, _BAD = " so ", " hm "


def _generator(*names: object) -> random.Random:
    key = blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(key, "big"))


def _numbered(step: int) -> int:
    """A word of three letters for a step's number, one token."""
    letters = [chr(ord("a") + step // 26**place % 26) for place in (2, 1, 0)]
    return _pack(f" {''.join(letters)}")


class SimulatedWorld:
    """Says for each request what its model would, by the request's id: ``problem/repeat/track/step/kind``.

    ``truths``: right answers by problem, where a dataset brings them; others are drawn.
    """

    def __init__(self, settings: WorldSettings, seed: int = 0, truths: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.seed = seed
        self.truths = dict(truths or {})
        self.tokenizer = PackedTokenizer()
        self._words = [self.tokenizer.encode(f" {word}")[0] for word in _WORDS]
        self._good, self._bad = (self.tokenizer.encode(mark) for mark in (_GOOD, _BAD))

    def problems(self, count: int) -> list[Problem]:
        """Problems with the answers that this world holds for right."""
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

    # ------------------------------------------------------------------------------------------------------ as a World

    def write(self, request: Request) -> Sequence[int]:
        problem, repeat, track, step, kind = request.id.rsplit("/", 4)
        where = problem, repeat, track
        match kind.partition(".")[0]:
            case "choose":
                return self.tokenizer.encode("B, E, F, A, K, C, D, G, H, I, J, L")
            case "closing":
                return self.tokenizer.encode(f"{self._answer(where, request)}}}")
            case "write":
                ids: list[int] = []
                for number in range(int(step), self._steps(where)):
                    ids.extend(self._step(where, number, "target", request))
                return ids
            case "draft":
                return self._step(where, int(step), "draft", request)
            case _:
                return self._step(where, int(step), "target", request)

    def digits(self, request: Request) -> Sequence[float]:
        problem, repeat, track, step, _ = request.id.rsplit("/", 4)
        passes = self._passes((problem, repeat, track), int(step))
        digit = _generator(self.seed, problem, repeat, track, step, "digit").choice(
            (7, 8, 9) if passes else (2, 3, 4, 5, 6)
        )
        rest = math.log(0.1 / 9)
        return [math.log(0.9) if number == digit else rest for number in range(10)]

    # --------------------------------------------------------------------------------------------------------- its facts

    def _steps(self, where: tuple[str, str, str]) -> int:
        """How many steps the track needs: a fifth around the average, one standard deviation."""
        draw = _generator(self.seed, *where, "steps").gauss(self.settings.steps, self.settings.steps / 5)
        return max(2, round(draw))

    def _good_draft(self, where: tuple[str, str, str], step: int) -> bool:
        accepted, error = self._rates(where[0])
        good = (accepted - error) / (1 - 2 * error)
        return _generator(self.seed, *where, step, "quality").random() < good

    def _passes(self, where: tuple[str, str, str], step: int) -> bool:
        _, error = self._rates(where[0])
        errs = _generator(self.seed, *where, step, "judge").random() < error
        return self._good_draft(where, step) != errs

    def _rates(self, problem: str) -> tuple[float, float]:
        """The share that passes, and the judge's error, which cannot be larger than that share or its complement."""
        accepted = self.acceptance(problem)
        return accepted, min(self.settings.judge_error, accepted / 2, (1 - accepted) / 2)

    def _step(self, where: tuple[str, str, str], step: int, role: str, request: Request) -> list[int]:
        draw = _generator(self.seed, *where, step, role, "step")
        mean = self.settings.draft_step if role == "draft" else self.settings.target_step
        length = 1 + round(draw.expovariate(1 / (mean - 1)))
        if step >= self._steps(where) - 1:
            words = [draw.choice(self._words) for _ in range(max(0, length - 8))]
            return [*words, *self.tokenizer.encode(f" \\boxed{{{self._answer(where, request)}}}")]
        good = role != "draft" or self._good_draft(where, step)
        mark = self._good if good else self._bad
        words = [draw.choice(self._words) for _ in range(max(0, length - len(mark) - 2))]
        return [*mark, *words, _numbered(step), _BLANK_LINE]  # no two steps in a row are the same by chance

    def _answer(self, where: tuple[str, str, str], request: Request) -> str:
        """Right or wrong by the problem's own chance; bad steps that stand in the context make it worse."""
        settings = self.settings
        chance = _generator(self.seed, where[0], "chance").betavariate(settings.solved_alpha, settings.solved_beta)
        draw = _generator(self.seed, *where, "answer")
        right = draw.random() < chance
        bad = self.tokenizer.decode(request.prompt_ids).count(_BAD)
        if right and draw.random() < 1 - (1 - settings.harm) ** bad:
            right = False
        truth = self.truth(where[0])
        if right:
            return truth
        tempting = _generator(self.seed, where[0], "tempting").randrange(1000)
        wrong = tempting if draw.random() < settings.same_mistake else draw.randrange(1000)
        return str(wrong if str(wrong) != truth else (wrong + 1) % 1000)
