"""Keeps what the steps of a run have taught: how many drafts pass, how long steps are, and what requests had to read.

A fold over events and nothing else, so that a run that continues from its trace knows what it knew.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.breakeven import StepShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.events import Event, Operation, StepCommitted, StepGated, StepScored
    from speclrm.runtime.scheduling.controller_settings import ControllerSettings

TrackName = tuple[int, str]
"""Repeat and name: what tells the tracks of one problem apart."""

READ_MAX = 4.0
"""Times the mean beyond which what one request read counts no more: a track that released its KV cache reads all of its context
again, which is no cost of a step.
"""

WEIGHT_MAX = 200.0
"""Values that a running mean remembers."""


@dataclass(slots=True)
class Mean:
    """A running mean that forgets."""

    value: float
    weight: float = 1.0

    def add(self, value: float) -> None:
        if (weight := self.weight) < WEIGHT_MAX:
            self.weight = weight = weight + 1.0
        self.value += (value - self.value) / weight


@dataclass(slots=True)
class Verdicts:
    """Verdicts on drafted steps: how many were ``kept`` and ``lost``."""

    kept: float = 0.0
    lost: float = 0.0

    @property
    def count(self) -> float:
        return self.kept + self.lost

    @property
    def mean(self) -> float:
        return self.kept / self.count

    def add(self, kept: bool, most: float = float("inf")) -> None:
        """Counts one; ``most`` are remembered, the newest counting most."""
        if self.kept + self.lost >= most:
            self.kept *= 1 - 1 / most
            self.lost *= 1 - 1 / most
        self.kept += kept
        self.lost += not kept

    def correct(self) -> None:
        """Notes that one that was counted as lost is kept."""
        self.lost, self.kept = self.lost - 1, self.kept + 1


@dataclass(slots=True)
class Problem:
    """``told``: what its verdicts tell of other problems. ``probing``: tracks that try one step; ``tried``: how often each did so
    after its first step.

    ``since``: steps since the problem began or was turned off; ``again``: how many until it may be turned on; ``try_at``: after
    how many of its steps a track tries one though there is little hope.
    """

    try_at: int
    verdicts: Verdicts = field(default_factory=Verdicts)
    told: tuple[float, float] = (0.0, 0.0)
    speculates: bool = False
    reason: str = "nothing is known of this problem yet"
    since: int = 0
    again: int = 0
    tracks: Counter[TrackName] = field(default_factory=Counter[TrackName])
    committed: Counter[TrackName] = field(default_factory=Counter[TrackName])
    doubted: set[TrackName] = field(default_factory=set[TrackName])
    tried: Counter[TrackName] = field(default_factory=Counter[TrackName])
    probing: set[TrackName] = field(default_factory=set[TrackName])


class Experience:
    """Call ``see`` with every event of a run's samples."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self.problems: dict[str, Problem] = {}
        """Those with a track at work."""
        self.token_s = {role: Mean(0.0, 0.0) for role in Role}
        """Seconds of a request for each token that it wrote."""
        unknown = StepShape()
        self._shape = {
            name: Mean(getattr(unknown, name))
            for name in ("drafted", "written", "scores", "read_draft", "read_score", "read_rewrite")
        }
        self._length, self._square = Mean(unknown.drafted), Mean(unknown.drafted**2)
        kept = settings.accepted_prior * settings.prior_verdicts
        self.verdicts = Verdicts(kept, settings.prior_verdicts - kept)
        """Of all problems, those that ended too."""
        self._shares = replace(self.verdicts)
        """The same, of each problem as many as ``verdicts_others`` at most: one that drafts much tells no more of others."""
        self.steps = 0

    def see(self, event: Event) -> None:
        match event.kind:
            case "step_drafted":
                # Only a first draft, or one after steps by the target, has all of these to read.
                probing = self.problems[event.problem].probing
                catching_up = not event.step or (event.repeat, event.track) in probing
                self._read(None if catching_up else "read_draft", Role.DRAFT, event.operations)
            case "step_scored":
                problem = self._doubt(event)
                catching_up = (event.repeat, event.track) in problem.probing
                self._read(None if catching_up else "read_score", Role.TARGET, event.operations)
            case "step_committed":
                self._commit(event)
            case "step_written":
                self._read("read_rewrite" if event.write_kind == "rewrite" else None, Role.TARGET, event.operations)
            case "step_gated" if event.verdict == "doubtful":
                self._doubt(event)
            case "track_started":
                problem = self.problems.setdefault(event.problem, Problem(self._settings.try_again))
                problem.tracks[event.repeat, event.track] += 1  # several callers may have the same problem
            case "track_finished":
                self._end(event.problem, (event.repeat, event.track))
            case _:
                pass

    def forget(self, name: str, repeat: int) -> None:
        """Removes a sample whose tracks have not ended but which is no longer at work, because its run could not continue."""
        if (problem := self.problems.get(name)) is not None:
            for track in [track for track in problem.tracks if track[0] == repeat]:
                self._end(name, track)

    @property
    def tracks(self) -> int:
        """At work."""
        return sum(problem.tracks.total() for problem in self.problems.values())

    @property
    def probing(self) -> int:
        """Tracks that try a step."""
        return sum(len(problem.probing) for problem in self.problems.values())

    def acceptance(self, problem: Problem, deviations: float) -> float:
        """Returns the share of a problem's drafts that are kept: what is expected, and so many standard deviations more.

        Verdicts on other problems count as at most ``verdicts_others``, those on each of them as well. 0 to 1.
        """
        own, (kept, lost) = problem.verdicts, problem.told
        others = max(1e-9, self._shares.count - (kept + lost))
        mean = (self._shares.kept - kept) / others
        weight = min(self._settings.verdicts_others, others)
        accepted = min(1.0, max(0.0, (own.kept + weight * mean) / (own.count + weight)))
        return min(1.0, accepted + deviations * (accepted * (1 - accepted) / (own.count + weight)) ** 0.5)

    def shape(self, context: float) -> StepShape:
        """Returns the lengths of an average step. ``context``: of a track, in tokens."""
        values = {name: mean.value for name, mean in self._shape.items()}
        uneven = max(0.0, self._square.value / self._length.value**2 - 1)
        return StepShape(**values, lost=values["drafted"], context=context, uneven=uneven)

    def steps_done(self) -> float:
        """Of a track at work, on average."""
        committed = sum(problem.committed.total() for problem in self.problems.values())
        return committed / max(1, self.tracks) / self._shape["written"].value

    def steps_of(self, problem: Problem, track: TrackName) -> float:
        """Of one track, so far."""
        return problem.committed[track] / self._shape["written"].value

    def steps_a_track(self, budget: int) -> float:
        """``budget``: tokens of a track."""
        return budget / self._shape["written"].value

    def _doubt(self, event: StepScored | StepGated) -> Problem:
        """Counts a step as rejected until it is committed as it is, which an accepted one is at once: rewrites take their time,
        and acceptance would be taken for better than it is until they come. Returns its problem.
        """
        problem = self.problems[event.problem]
        problem.doubted.add((event.repeat, event.track))
        problem.verdicts.add(False, self._settings.verdicts_max)
        self._learned(problem)
        self.verdicts.add(False)
        return problem

    def _learned(self, problem: Problem) -> None:
        """Notes that a problem's verdicts changed, and with them what they tell of other problems: how many of their drafts are
        kept, and how many lost.
        """
        kept, lost = problem.verdicts.kept, problem.verdicts.lost
        if (count := kept + lost) > (most := self._settings.verdicts_others):
            kept, lost = most / count * kept, most / count * lost
        before_kept, before_lost = problem.told
        problem.told = kept, lost
        self._shares.kept += kept - before_kept
        self._shares.lost += lost - before_lost

    def _end(self, name: str, track: TrackName) -> None:
        problem = self.problems.get(name)
        if problem is None:
            return
        if track in problem.tracks:
            problem.tracks[track] -= 1
            if not problem.tracks[track]:
                del problem.tracks[track]
        problem.probing.discard(track)
        problem.tried.pop(track, None)
        problem.committed.pop(track, None)
        problem.doubted.discard(track)
        if not problem.tracks:
            del self.problems[name]

    def _read(self, name: str | None, role: Role, operations: Sequence[Operation]) -> None:
        read = 0
        for operation in operations:
            read += operation.prompt_tokens - operation.cached_tokens
            if (tokens := operation.output_tokens) > 1:
                self.token_s[role].add(operation.engine_s / tokens)
        if name is not None:
            mean = self._shape[name]
            most = READ_MAX * mean.value
            mean.add(read if read < most else most)

    def _commit(self, event: StepCommitted) -> None:
        problem, track = self.problems[event.problem], (event.repeat, event.track)
        tokens, origin = event.tokens, event.origin
        problem.since += 1
        problem.committed[track] += tokens
        problem.probing.discard(track)
        self.steps += 1
        self._length.add(tokens)
        self._square.add(tokens**2)
        if origin in ("draft", "rewrite"):
            kept = origin == "draft"
            if track not in problem.doubted:
                problem.verdicts.add(kept, self._settings.verdicts_max)
                self.verdicts.add(kept)
            elif kept:
                problem.verdicts.correct()
                self.verdicts.correct()
            self._learned(problem)
            problem.doubted.discard(track)
            self._shape["scores"].add(0.0 if kept and event.score is None else 1.0)
            if kept:
                self._shape["drafted"].add(tokens)
        if origin in ("write", "rewrite"):
            self._shape["written"].add(tokens)
