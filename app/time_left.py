"""Estimates how long a run will still take: a fold over its events.

The schedule that is left is drawn a number of times: what running tracks lack of the lengths that they may have, and the
samples that have not begun, each as soon as enough tracks have ended to make a place for it (``runtime/places.py``). What is
known of few tracks only (how long they are, how fast they are without the others) is drawn as well. So the draws say how long it
may take, and whether that can be known.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from statistics import mean, median
from typing import TYPE_CHECKING

from speclrm.app.track_lengths import Law, Lengths
from speclrm.app.track_speed import Pace, SampleSpeeds, Slowness, Speed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from speclrm.runtime.events import (
        Event,
        SampleFinished,
        StepCommitted,
        TrackFinished,
        TrackResumed,
        TrackStarted,
    )

DRAWS = 120
TRACKS_DRAWN_MAX = 3_000
"""Draws are fewer where more tracks than this would be drawn in all."""
WAVES = 4
"""Samples that have not begun are drawn one by one for so many turns of all places; those before them count by their mean."""
WITHIN, CERTAIN = 0.3, 0.9
"""What one number may be off, as a share of the truth, and with what chance it may not be off more."""
FRESH = 0.02
"""Share of the last estimate for which it is only counted down."""
OWN_TOKENS = 100.0
"""Tokens of a sample after which its own speed counts as much as that of all."""
CUT = ("budget", "step_limit", "stopped", "cancelled", "error")
"""Reasons for which a track ends before its own end."""


@dataclass(slots=True)
class _Track:
    """``since``, ``crowd``: run time, and the integral of the number of running tracks, at its last step's end."""

    since: float
    crowd: float
    tokens: int = 0


@dataclass(slots=True)
class _Sample:
    running: dict[str, _Track] = field(default_factory=dict[str, _Track])
    ended: dict[str, int] = field(default_factory=dict[str, int])
    cut: set[str] = field(default_factory=set[str])
    """Ended tracks that had not come to their own end."""
    tokens: int = 0
    spent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Left:
    """Seconds that a run will still take: the middle of what may be, and the range that it is in with a chance of 90 %."""

    seconds: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether one number tells it: within 30 % of all in the range, or within the second to which it is rounded."""
        return self.high - self.seconds <= max(WITHIN * self.high, 1.0) and self.seconds - self.low <= max(
            WITHIN * self.low, 1.0
        )

    def after(self, seconds: float) -> Left:
        return Left(*(max(0.0, value - seconds) for value in (self.seconds, self.low, self.high)))


class TimeLeft:
    """``add`` each event; ``left`` at any time. The state and the cost of an estimate grow with what runs at once, not with
    the run.
    """

    def __init__(self, samples: int | None = None) -> None:
        self.samples = samples
        self._clear()

    def _clear(self) -> None:
        self._places: int | None = None
        self._tracks = 1
        self._budget: int | None = None
        self._fast: int | None = None
        self._running: dict[tuple[str, int], _Sample] = {}
        self._done = 0
        self._count = 0
        self._crowd = 0.0
        self._crowd_s = 0.0
        self._lengths = Lengths()
        self._needed: Counter[int] = Counter()  # ends of tracks until a sample's
        self._speed = Speed()
        self._slow = SampleSpeeds()
        self._last_problem = ""
        self._begun = 0
        """The problem that began last, and how many of its repeats have begun: repeats follow each other."""
        self._steps, self._step_tokens = 0, 0
        self._changed = True
        self._last: tuple[float, Left] | None = None
        """The last estimate, with its time."""

    # --------------------------------------------------------------------------------------------------------- the fold

    def add(self, event: Event) -> None:
        match event.kind:  # a test by class costs more
            case "step_committed":
                self._commit(event)
            case "track_started" | "track_finished" | "track_resumed":
                self._follow(event)
            case "sample_finished":
                self._end_sample(event)
            case "run_started":
                self._clear()
                self._configure(event.config)
            case "run_resumed":
                self._configure(event.config)
                self._restart(event.t)
            case _:
                pass

    def _configure(self, config: Mapping[str, JsonValue]) -> None:
        recipe = config.get("recipe")
        options = recipe if isinstance(recipe, dict) else {}
        self._places = _number(config.get("concurrency"))
        self._tracks = _number(options.get("tracks")) or 1
        self._budget = _number(options.get("token_budget"))
        self._fast = _number(options.get("fast"))
        self._slow.repeats = _number(config.get("repeats")) or 1

    def _restart(self, now: float) -> None:
        """Steps that were under way at the break take their time anew."""
        self._pass(now)
        for sample in self._running.values():
            for track in sample.running.values():
                track.since, track.crowd = now, self._crowd

    def _follow(self, event: TrackStarted | TrackFinished | TrackResumed) -> None:
        key = event.problem, event.repeat
        if (sample := self._running.get(key)) is None:
            sample = self._running[key] = _Sample()
            self._begun = self._begun + 1 if event.problem == self._last_problem else 1
            self._last_problem = event.problem
        match event.kind:
            case "track_started":
                self._start(sample, event.track, event.t, 0)
            case "track_resumed":
                if event.track in sample.ended:
                    self._start(sample, event.track, event.t, sample.ended.pop(event.track))
                    sample.cut.discard(event.track)
            case "track_finished":
                if (track := sample.running.pop(event.track, None)) is not None:
                    self._pass(event.t)
                    self._count -= 1
                    sample.ended[event.track] = track.tokens
                    if event.reason in CUT:
                        sample.cut.add(event.track)
                    self._changed = True

    def _start(self, sample: _Sample, name: str, now: float, tokens: int) -> None:
        self._pass(now)
        self._count += name not in sample.running
        sample.running[name] = _Track(now, self._crowd, tokens)
        self._changed = True

    def _commit(self, event: StepCommitted) -> None:
        sample = self._running.get((event.problem, event.repeat))
        if sample is None or (track := sample.running.get(event.track)) is None or not event.tokens:
            return
        self._pass(event.t)
        seconds = event.t - track.since
        crowd = (self._crowd - track.crowd) / seconds if seconds > 0 else self._count
        self._speed.add(event.tokens, seconds, crowd)
        track.tokens += event.tokens
        sample.spent_s += seconds
        sample.tokens += event.tokens
        track.since, track.crowd = event.t, self._crowd
        self._steps += 1
        self._step_tokens += event.tokens
        self._changed = True

    def _end_sample(self, event: SampleFinished) -> None:
        sample = self._running.pop((event.problem, event.repeat), _Sample())
        self._pass(event.t)
        self._count -= len(sample.running)  # whose ends were missed
        self._done += 1
        self._changed = True
        self._book(self._lengths, sample)
        self._needed[max(1, len(sample.ended) - len(sample.cut))] += 1
        if sample.tokens and sample.spent_s > 0:
            self._slow.add(event.problem, sample.spent_s / sample.tokens)

    def _book(self, lengths: Lengths, sample: _Sample) -> None:
        """Notes the lengths of a sample's ended tracks."""
        ended = {name: tokens for name, tokens in sample.ended.items() if tokens}
        lengths.group([tokens for name, tokens in ended.items() if name not in sample.cut])
        for name, tokens in ended.items():
            if name in sample.cut:
                lengths.add_cut(tokens)
            else:
                lengths.add(tokens)

    def _pass(self, now: float) -> None:
        """Lets time pass for the count of running tracks."""
        self._crowd += self._count * max(0.0, now - self._crowd_s)
        self._crowd_s = max(now, self._crowd_s)

    # ------------------------------------------------------------------------------------------------------ the estimate

    def left(self, now: float) -> Left | None:
        """Estimates the seconds from ``now``, in run time; None until something is known."""
        if self._last is not None:
            at, found = self._last
            if now - at < FRESH * found.seconds or not (self._changed or now - at > found.seconds):
                return found.after(now - at)
        found = self._estimate(now)
        if found is not None:
            self._last, self._changed = (now, found), False
        return found

    def _estimate(self, now: float) -> Left | None:
        """Draws what is left.

        All tracks get slower together the more there are, so their work is counted in the tokens of a track that is alone:
        time is then linear in the last end (the part that does not depend on their number) and in the sum of all work.
        """
        ended = self._done or any(sample.ended for sample in self._running.values())
        if self.samples is None or not ended or self._speed.y <= 0:
            return None
        pace = self._speed.y / self._speed.w
        weights, laws = zip(*self._laws(), strict=True)
        slow = self._speeds()
        all_slow = slow.all_closed()
        todo = max(0, self.samples - self._done - len(self._running))
        places = max(1, min(self._places or len(self._running) or 1, self.samples))
        drawn = min(todo, WAVES * places)
        tracks = self._count + drawn * self._tracks
        draws = max(4, min(DRAWS, TRACKS_DRAWN_MAX // max(1, tracks)))
        draw = random.Random(0)
        results: list[float] = []
        for _ in range(draws):
            fixed, crowded = self._speed.line(draw)
            law = draw.choices(laws, weights)[0].possible(draw)
            work = 0.0
            ends: list[float] = []  # of all tracks
            expected = all_slow.pace(pace, draw)
            problems = {
                problem: _problem_slower(group, expected, pace, draw)
                for problem, group in slow.open.items()
                if slow.repeats > 1
            }
            for (problem, _), sample in self._running.items():
                rests = self._rest(sample, now, pace, problems.get(problem, 0.0), law, draw)
                ends += rests
                work += sum(rests)
            new: list[list[float]] = []
            problem_slower = problems.get(self._last_problem, draw.gauss(expected.mean, expected.between))
            for number in range(self._begun, self._begun + drawn):
                if number % slow.repeats == 0:
                    problem_slower = draw.gauss(expected.mean, expected.between)
                slower = math.exp(draw.gauss(problem_slower, expected.within))
                new.append([slower * length for length in self._new(law, draw)])
                work += sum(new[-1])
            ends += [0.0] * (places * self._tracks - len(ends))
            if todo > drawn:
                early = mean(map(mean, new)) * (todo - drawn) / places
                ends = [end + early for end in ends]
                work *= 1 + (todo - drawn) / drawn
            heapify(ends)
            last = max(ends)
            for lengths in new:
                begin = max(heappop(ends) for _ in lengths)
                for length in lengths:
                    heappush(ends, begin + length)
                last = max(last, begin + max(lengths))
            results.append(fixed * last + crowded * work)
        return _summed_up(results)

    def _laws(self) -> list[tuple[float, Law]]:
        """Returns the laws of lengths that all known now allows, with their weights."""
        lengths = self._lengths.copy()
        for sample in self._running.values():
            self._book(lengths, sample)
            for track in sample.running.values():
                lengths.add_cut(track.tokens)
        return lengths.laws(self._budget)

    def _speeds(self) -> SampleSpeeds:
        """Returns how differently fast samples are, also by those that run: the fast ones end first."""
        speeds = self._slow.copy()
        for (problem, _), sample in self._running.items():
            if sample.tokens >= OWN_TOKENS and sample.spent_s > 0:
                speeds.add(problem, sample.spent_s / sample.tokens)
        return speeds

    def _rest(
        self, sample: _Sample, now: float, pace: float, slower: float, law: Law, draw: random.Random
    ) -> list[float]:
        """Draws what the running tracks of a sample lack, in tokens. A slow track's tokens count for more. ``slower``: how much
        slower its problem is than ``pace``, a logarithm.
        """
        if not sample.running:
            return []
        step = self._step_tokens / max(1, self._steps)
        slow = (sample.spent_s / pace + OWN_TOKENS * math.exp(slower)) / (sample.tokens + OWN_TOKENS)
        so_far = [track.tokens + min(step, (now - track.since) / (pace * slow)) for track in sample.running.values()]
        ended = [law.put(tokens) for tokens in sample.ended.values() if tokens]
        lengths = law.rest(ended, so_far, draw)
        limit = self._budget or math.inf
        rests = [slow * (min(length, max(limit, least)) - least) for length, least in zip(lengths, so_far, strict=True)]
        return self._early(rests, len(sample.ended), draw)

    def _new(self, law: Law, draw: random.Random) -> list[float]:
        """Draws the lengths of the tracks of a sample that has not begun."""
        common = draw.gauss(law.mean, law.shared)
        limit = self._budget or math.inf
        lengths = [min(limit, law.back(draw.gauss(common, law.own))) for _ in range(self._tracks)]
        return self._early(lengths, 0, draw)

    def _early(self, rests: list[float], ended: int, draw: random.Random) -> list[float]:
        """Returns when tracks that lack this much end, some because others made them useless. ``ended``: others of theirs."""
        if not self._fast:
            return rests
        needed = 1
        if self._needed:
            needed = draw.choices(list(self._needed), list(self._needed.values()))[0]
        ordered = sorted(rests)
        end = ordered[min(len(ordered), max(1, needed - ended)) - 1]
        return [min(rest, end) for rest in rests]


def _problem_slower(group: Slowness, expected: Pace, pace: float, draw: random.Random) -> float:
    """Draws how much slower than ``pace`` a problem is of which some samples are known: its mean and that of all problems."""
    known = group.count * expected.between**2
    share = known / (known + expected.within**2) if known else 0.0
    mean = share * (group.mean - math.log(pace)) + (1 - share) * expected.mean
    return draw.gauss(mean, math.sqrt(1 - share) * expected.between)


def _summed_up(results: list[float]) -> Left:
    """Returns the middle of draws, and their range; one number for both where it tells all of the range."""
    ordered = sorted(results)
    at = round((1 - CERTAIN) / 2 * (len(ordered) - 1))
    low, high = ordered[at], ordered[-1 - at]
    balanced = Left(2 * low * high / max(1e-9, low + high), low, high)  # as far from both, as shares of them
    return balanced if balanced.sure else replace(balanced, seconds=median(ordered))


def _number(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
