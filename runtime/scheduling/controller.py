"""Decides which tracks speculate, from running estimates of what speculation costs and brings (the break-even controller).

It knows only events (how long steps are, what was kept, what was read) and the engines' own statistics (what an
iteration costs). It decides by problem, since acceptance depends on the problem and the pair of models: of the problems
at work, those whose acceptance is above the break-even of the moment speculate, and the target alone writes the others.
A problem of which nothing is known, or that did not pay, is probed by single steps now and then.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import KnowsItsCosts
from speclrm.runtime.events import (
    DraftPaced,
    EngineCounters,
    EnginesObserved,
    Mode,
    ModeChanged,
    RunResumed,
    StepCommitted,
    StepDrafted,
    StepGated,
    StepScored,
    StepWritten,
    TrackFinished,
    TrackStarted,
)
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.breakeven import Group, Prediction, StepShape, predict
from speclrm.runtime.scheduling.controller_settings import ControllerSettings
from speclrm.runtime.scheduling.iteration_costs import CostFit, CounterDelta
from speclrm.runtime.scheduling.pacing import FREE, Pace, Snapshot, pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from speclrm.runtime.engine import EngineCosts
    from speclrm.runtime.events import Event, Operation
    from speclrm.runtime.scheduling.admission import Admission
    from speclrm.runtime.scheduling.lanes import Lane
    from speclrm.runtime.scheduling.overlap import Overlap
    from speclrm.runtime.scheduling.pacing import Pacer


PROBE_REASON = "one step, to see whether drafts pay"


class Decision(NamedTuple):
    """The next step of a track, and the reason in one line."""

    mode: Mode
    reason: str


@dataclass(slots=True)
class _Mean:
    """A running mean that forgets."""

    value: float
    weight: float = 1.0

    def add(self, value: float) -> None:
        self.weight = min(self.weight + 1.0, 200.0)
        self.value += (value - self.value) / self.weight


@dataclass(slots=True)
class _Problem:
    """``kept``, ``lost``: verdicts on drafted steps, the newest counting most. ``probing``: tracks that try one step.

    ``since``: steps since it was turned off or last probed; ``again``: how many until it is probed again; ``tried_at``:
    the lowest break-even at which it was probed again or turned on. ``changes``: times that it was turned on or off.
    """

    kept: float = 0.0
    lost: float = 0.0
    speculates: bool = False
    reason: str = "nothing is known of this problem yet"
    since: int = 0
    again: int = 0
    tried_at: float = 2.0
    changes: int = 0
    tracks: Counter[tuple[int, str]] = field(default_factory=Counter[tuple[int, str]])
    committed: Counter[tuple[int, str]] = field(default_factory=Counter[tuple[int, str]])
    doubted: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    probing: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])

    @property
    def verdicts(self) -> float:
        return self.kept + self.lost

    def verdict(self, kept: bool, most: float) -> None:
        """Counts one; ``most`` are remembered."""
        if self.verdicts >= most:
            self.kept *= 1 - 1 / most
            self.lost *= 1 - 1 / most
        self.kept += kept
        self.lost += not kept


class Controller:
    """One for a runtime: call ``see`` with every event of its samples, and ``decide`` before each step of a track.

    What it knows is a fold over events: those of its tracks, and what it was told of the engines (``observe``), which
    is an event, too. So a run that continues from its trace continues with what it had learned (``recall``).

    On constant input it turns a problem on or off at most ``changes_free + 2 * log2(1 + steps / probe_again)`` times (of its
    settings): what was turned off again and again stays so for a time that doubles, unless the break-even itself has moved.
    """

    def __init__(
        self,
        lanes: Mapping[Role, Lane],
        admission: Admission,
        overlap: Overlap,
        settings: ControllerSettings | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        self._pacer = pacer
        self._pace = FREE
        self._paced_s = float("-inf")
        self._settings = settings or ControllerSettings()
        self._lanes = lanes
        self._admission = admission
        self._overlap = overlap
        self._problems: dict[str, _Problem] = {}
        known = {
            role: lane.engine.known_costs if isinstance(lane.engine, KnowsItsCosts) else None
            for role, lane in lanes.items()
        }
        self._fits = {role: CostFit(known[role]) for role in lanes}
        self._token_s = {role: _Mean(0.0, 0.0) for role in lanes}
        unknown = StepShape()
        self._shape = {
            name: _Mean(getattr(unknown, name))
            for name in ("drafted", "written", "scores", "read_draft", "read_score", "read_rewrite")
        }
        self._kept, self._verdicts = (
            self._settings.accepted_prior * self._settings.prior_verdicts,
            self._settings.prior_verdicts,
        )
        self._seen: dict[Role, _Totals] = {}
        self._context = 0.0
        self._waiting = 0
        self._looked_s = self._decided_s = float("-inf")
        self._decided_tracks = 0
        self._drafted = False
        self.budget = 0
        """Tokens of a track at most, as far as is known."""
        self.queued = 0
        """Samples that wait for those at work to end."""
        self.threshold, self.gain = 2.0, 1.0
        """The break-even acceptance of the last decision, and the gain predicted there."""
        self._hopeless = self._eager = False
        self._hoped_gain = float("inf")
        self._steps = self._looked_again = self._probes = 0
        self._look_again = self._settings.look_again

    @property
    def problems(self) -> int:
        """Problems with a track at work."""
        return len(self._problems)

    # ------------------------------------------------------------------------------------------------------- what is seen

    def see(self, event: Event, at_s: float | None = None) -> None:
        """Learns from an event of any sample. ``at_s``: when it happened; None for now."""
        match event:
            case EnginesObserved():
                self._observed(event, now_s() if at_s is None else at_s)
            case DraftPaced():
                self._pace, self._paced_s = Pace(event.iterations, event.interval_s), now_s() if at_s is None else at_s
                if self._pacer is not None:
                    self._pacer.set(event.interval_s)
            case RunResumed():
                self._restart()
            case ModeChanged(mode="speculate", reason=reason) if reason == PROBE_REASON:
                problem = self._problems[event.problem]
                if (event.repeat, event.track) not in problem.probing:
                    self._probe(problem, event.repeat, event.track)
            case TrackStarted():
                problem = self._problems.setdefault(event.problem, _Problem())
                if not problem.tracks and self._acceptance(problem) >= self.threshold:
                    problem.speculates, problem.reason = True, self._reason(problem)
                problem.tracks[event.repeat, event.track] += 1  # several callers may have the same problem
            case TrackFinished():
                self._forget(event.problem, (event.repeat, event.track))
            case StepDrafted():
                self._drafted = True
                # Only a first draft, or one after steps by the target, has all of these to read.
                catching_up = not event.step or (event.repeat, event.track) in self._problems[event.problem].probing
                self._read(None if catching_up else "read_draft", Role.DRAFT, event.operations)
            case StepGated(verdict="doubtful"):
                self._doubt(event)
            case StepScored():
                self._doubt(event)
                catching_up = (event.repeat, event.track) in self._problems[event.problem].probing
                self._read(None if catching_up else "read_score", Role.TARGET, event.operations)
            case StepWritten():
                self._read("read_rewrite" if event.write_kind == "rewrite" else None, Role.TARGET, event.operations)
            case StepCommitted():
                self._commit(event)
            case _:
                pass

    def _doubt(self, event: StepScored | StepGated) -> None:
        """Counts a step as rejected until it is committed as it is, which an accepted one is at once: rewrites take their time,
        and acceptance would be taken for better than it is until they come.
        """
        problem = self._problems[event.problem]
        problem.doubted.add((event.repeat, event.track))
        problem.verdict(False, self._settings.verdicts_max)
        self._verdicts += 1

    def _forget(self, name: str, track: tuple[int, str]) -> None:
        problem = self._problems.get(name)
        if problem is None:
            return
        if track in problem.tracks:
            problem.tracks[track] -= 1
            if not problem.tracks[track]:
                del problem.tracks[track]
        problem.probing.discard(track)
        problem.committed.pop(track, None)
        problem.doubted.discard(track)
        if not problem.tracks:
            del self._problems[name]

    def forget(self, name: str, repeat: int) -> None:
        """Removes a sample whose tracks have not ended but which is no longer at work, because its run could not continue."""
        if (problem := self._problems.get(name)) is not None:
            for track in [track for track in problem.tracks if track[0] == repeat]:
                self._forget(name, track)

    def recall(self, events: Iterable[Event]) -> None:
        """Learns from a whole trace that a run continues, without what only an attempt's end did to its tracks."""
        for event in events:
            self.see(event, event.t)
        self._restart()

    def _restart(self) -> None:
        """Starts again for other engines: their counters begin anew, and so does the time."""
        self._seen.clear()
        self._looked_s = self._decided_s = self._paced_s = float("-inf")

    def _read(self, name: str | None, role: Role, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if operation.output_tokens > 1:
                self._token_s[role].add(operation.engine_s / operation.output_tokens)
        if name is not None:
            # A track that released its KV cache reads its whole context again, which is no cost of a step.
            mean = self._shape[name]
            mean.add(
                min(
                    sum(one.prompt_tokens - one.cached_tokens for one in operations),
                    self._settings.outlier * mean.value,
                )
            )

    def _commit(self, event: StepCommitted) -> None:
        problem = self._problems[event.problem]
        problem.since += 1
        problem.committed[event.repeat, event.track] += event.tokens
        self._steps += 1
        problem.probing.discard((event.repeat, event.track))
        if event.origin in ("draft", "rewrite"):
            kept = event.origin == "draft"
            doubted = (event.repeat, event.track) in problem.doubted
            problem.doubted.discard((event.repeat, event.track))
            if doubted and kept:
                problem.lost, problem.kept = problem.lost - 1, problem.kept + 1
                self._kept += 1
            elif not doubted:
                problem.verdict(kept, self._settings.verdicts_max)
                self._kept, self._verdicts = self._kept + kept, self._verdicts + 1
            self._shape["scores"].add(0.0 if kept and event.score is None else 1.0)
            if kept:
                self._shape["drafted"].add(event.tokens)
        if event.origin in ("write", "rewrite"):
            self._shape["written"].add(event.tokens)

    # -------------------------------------------------------------------------------------------------------- what is said

    @property
    def due(self) -> bool:
        """Whether it is time to ``observe`` the engines, before anything is decided."""
        return now_s() - self._looked_s >= self._settings.look_s

    def observe(self) -> EnginesObserved:
        """Returns what the engines show now, as an event to publish, which ``see`` then reads."""
        counters: dict[str, EngineCounters] = {}
        for role, lane in self._lanes.items():
            stats = lane.stats()
            counters[role.value] = EngineCounters(
                busy_s=round(sum(one.busy_s for one in stats), 6),
                iterations=sum(one.engine.iterations for one in stats),
                new_tokens=sum(one.engine.prompt_tokens + one.engine.output_tokens for one in stats),
                batched=sum(one.engine.batched for one in stats),
            )
        return EnginesObserved(
            engines=counters,
            both_s=round(self._overlap.both_s, 6),
            context=round(self._admission.mean_tokens(Role.TARGET), 3),
            waiting=self._admission.waiting,
        )

    @property
    def paces(self) -> bool:
        """Whether the draft's pace is for it to decide, whoever decides what the tracks do."""
        return self._pacer is not None

    def paced(self, everybody: bool = False) -> DraftPaced | None:
        """Returns the draft's pace as an event to publish, which ``see`` then obeys; None while it stays. ``everybody``: all
        tracks speculate, whatever is decided here.
        """
        if self._pacer is None or now_s() - self._paced_s < self._settings.decide_s:
            return None
        target, draft = (self._fits[role].costs for role in (Role.TARGET, Role.DRAFT))
        if target is None or draft is None:
            return None
        groups = self._groups(1.0, lambda p: self._acceptance(p) if everybody or p.speculates else None)
        chosen = self._best_pace(groups, self._step, target, draft)
        if chosen.iterations == self._pace.iterations:
            return None
        free = chosen == FREE
        return DraftPaced(
            iterations=chosen.iterations,
            interval_s=chosen.interval_s,
            reason="the draft is no faster by itself" if free else "its iterations take the target's time",
        )

    def _best_pace(self, groups: Sequence[Group], shape: StepShape, target: EngineCosts, draft: EngineCosts) -> Pace:
        drafted = [(group.tracks, group.acceptance) for group in groups if group.acceptance is not None]
        tracks = sum(count for count, _ in drafted)
        if self._pacer is None or not tracks:
            return FREE
        accepted = sum(count * acceptance for count, acceptance in drafted) / tracks
        return pace(Snapshot(tracks, accepted, shape, target, draft))

    def _predict(
        self, groups: Sequence[Group], shape: StepShape, target: EngineCosts, draft: EngineCosts
    ) -> Prediction:
        """At the pace that the draft would have then."""
        return predict(groups, shape, target, draft, self._best_pace(groups, shape, target, draft).interval_s)

    def decide(self, name: str, repeat: int, track: str) -> Decision:
        """Returns what this track does next. Raises KeyError for a track that was not seen to start."""
        problem = self._problems[name]
        if problem.speculates:
            eager = self._eager and self._acceptance(problem) >= self._settings.eager_acceptance
            return Decision("eager" if eager else "speculate", problem.reason)
        if (repeat, track) in problem.probing:
            return Decision("speculate", PROBE_REASON)
        if self._may_probe(problem):
            self._probe(problem, repeat, track)
            return Decision("speculate", PROBE_REASON)
        return Decision("write", problem.reason)

    def _may_probe(self, problem: _Problem) -> bool:
        others = sum(len(other.probing) for other in self._problems.values())
        if self._fits[Role.DRAFT].costs is None:
            return not others  # the first draft of all says what drafts cost; nobody else tries until that is known
        tracks = sum(other.tracks.total() for other in self._problems.values())
        if others >= max(1.0, self._settings.probe_share * tracks):
            return False
        if self.budget and self._steps_left < self._settings.probe_steps:
            return False
        if self._hopeless:
            # What a draft costs may have been learned at a bad moment: one step of all problems now and then.
            return self._steps >= self._look_again * tracks and not others
        if self.budget and self._steps_a_track * (self._hoped_gain - 1) < self._settings.probe_worth:
            return False
        if self.budget and self._probes >= max(
            self._settings.probes_min, self._settings.probe_budget * max(self._steps, tracks * self._steps_a_track)
        ):
            return False
        if problem.verdicts + len(problem.probing) < self._settings.probes:
            return True
        moved = self.threshold < problem.tried_at - self._settings.moved
        return not problem.probing and (moved or problem.since >= problem.again)

    def _probe(self, problem: _Problem, repeat: int, track: str) -> None:
        """Notes that a track tries one step, and when the next may."""
        if self._drafted and self._hopeless:
            self._look_again = self._steps + 2 * max(self._settings.look_again, self._look_again - self._looked_again)
            self._looked_again = self._steps
        elif self._drafted and problem.verdicts + len(problem.probing) >= self._settings.probes:
            problem.since = 0
            problem.tried_at = min(problem.tried_at, self.threshold)
            problem.again = max(self._settings.probe_again, 2 * problem.again)
        problem.probing.add((repeat, track))
        self._probes += 1

    def _acceptance(self, problem: _Problem) -> float:
        mean = self._kept / self._verdicts
        return (problem.kept + mean * self._settings.prior_verdicts) / (
            problem.verdicts + self._settings.prior_verdicts
        )

    # ------------------------------------------------------------------------------------------------------------- inside

    def _observed(self, event: EnginesObserved, now: float) -> None:
        """Adds the engines' counters since the last look to the estimates of their costs, and decides again when due."""
        self._looked_s = now
        self._context, self._waiting = event.context, event.waiting
        for role in self._lanes:
            if (counters := event.engines.get(role.value)) is None:
                continue
            totals = _Totals(counters.busy_s, counters.iterations, counters.new_tokens, counters.batched, event.both_s)
            before = self._seen.get(role, _Totals(0.0, 0, 0, 0, 0.0))
            if 0 < totals.iterations < before.iterations + self._settings.look_iterations:
                continue  # of a few, a large part may lie on the other side of this moment
            self._seen[role] = totals
            busy_s = totals.busy_s - before.busy_s
            iterations = float(totals.iterations - before.iterations)
            if not totals.iterations and self._token_s[role].value:  # an engine that does not count them
                iterations = busy_s / self._token_s[role].value
            self._fits[role].add(
                CounterDelta(
                    busy_s,
                    iterations,
                    totals.new_tokens - before.new_tokens,
                    (totals.batched - before.batched) * event.context,
                    min(totals.both_s - before.both_s, busy_s),
                )
            )
        tracks = sum(problem.tracks.total() for problem in self._problems.values())
        moved = abs(tracks - self._decided_tracks) > self._settings.tracks_moved * max(tracks, self._decided_tracks)
        if moved or now - self._decided_s >= self._settings.decide_s:
            self._decide(now, tracks)

    def _decide(self, now: float, tracks: int) -> None:
        """Chooses the problems that speculate. Those that do so now stay, unless another choice is clearly better."""
        target = self._fits[Role.TARGET].costs
        draft = self._fits[Role.DRAFT].costs
        if target is None or draft is None or not tracks:
            return
        self._decided_s, self._decided_tracks = now, tracks
        shape = self._step
        admitted = 1 - min(1.0, self._waiting / tracks)
        if not admitted:
            return
        tail = self._tail(tracks * admitted, shape, target, draft)
        alone = predict([Group(tracks * admitted, None)], shape, target, None).rate

        def worth(speculate: Callable[[_Problem], bool], tail: float) -> float:
            """Predicted tokens a second over those of the target alone."""
            groups = self._groups(admitted, lambda p: self._acceptance(p) if speculate(p) else None)
            share = sum(group.tracks for group in groups if group.acceptance is not None) / (tracks * admitted)
            rate = self._predict(groups, shape, target, draft).rate if share else alone
            return rate / alone * (1 + share * (1 / (1 + tail) - 1))

        bounds = sorted({round(self._acceptance(p) * 20) / 20 for p in self._problems.values()})
        worths = {
            bound: worth(lambda p, bound=bound: round(self._acceptance(p) * 20) / 20 >= bound, tail) for bound in bounds
        }
        worths[2.0] = 1.0
        bound = min(one for one, value in worths.items() if value >= max(worths.values()) * (1 - self._settings.even))
        now_worth = worth(lambda p: p.speculates, 0.0)  # tracks that speculate are uneven by now, whatever they do
        self.threshold, self.gain = (bound, worths[bound]) if worths[bound] >= self._settings.gain_on else (2.0, 1.0)
        best = self.gain if self.threshold <= 1 else 1.0
        change = best >= now_worth * (1 + self._settings.hysteresis)
        hope = min(self._settings.hopeful, self._hoped())
        hoped = self._predict([Group(tracks * admitted, hope)], shape, target, draft).rate / alone / (1 + tail)
        self._hopeless = hoped < self._settings.hope_on and self.threshold > 1
        self._hoped_gain = hoped
        for problem in self._problems.values():
            if change:
                self._turn(problem)
            else:
                problem.reason = self._reason(problem)
        at_work = self._groups(admitted, lambda p: self._acceptance(p) if p.speculates else None)
        load = self._predict(at_work, shape, target, draft)
        self._eager = (
            draft.slowdown + target.slowdown < self._settings.eager_cost
            and (target.p + target.k * shape.context) * load.target_load < self._settings.eager_cost * target.w
            and (draft.p + draft.k * shape.context) * load.draft_load < self._settings.eager_cost * draft.w
        )

    def _hoped(self) -> float:
        """Returns the acceptance that the problems may well have, for all that is known."""
        mean = self._kept / self._verdicts
        return mean + self._settings.hope * (mean * (1 - mean) / self._verdicts) ** 0.5

    def _tail(self, tracks: float, shape: StepShape, target: EngineCosts, draft: EngineCosts) -> float:
        """By what share the slowest of the tracks is later than the mean one, because its drafts happened to be rejected."""
        steps = self._steps_a_track
        if self.queued >= len(self._problems):
            tracks /= max(1, len(self._problems))  # another sample takes the place of the first that ends
        if tracks <= 1 or not steps:
            return 0.0
        accepted = self._kept / self._verdicts
        found = self._predict([Group(tracks, accepted)], shape, target, draft)
        kept_s = shape.drafted * found.draft_s + shape.scores * 1.5 * found.target_s
        written_s = shape.written * found.target_s
        mean = kept_s + (1 - accepted) * written_s
        spread = (accepted * (1 - accepted)) ** 0.5 * written_s
        return self._settings.tail * (2 * math.log(tracks)) ** 0.5 * spread / mean / steps**0.5

    def _turn(self, problem: _Problem) -> None:
        """Turns a problem on or off by the break-even of the moment."""
        accepted = round(self._acceptance(problem) * 20) / 20  # as the groups have it
        wanted = accepted >= self.threshold
        if wanted != problem.speculates:
            settled = (
                problem.changes >= self._settings.changes_free
                and self.threshold >= problem.tried_at - self._settings.moved
            )
            if wanted and settled and problem.since < problem.again:
                return
            problem.speculates = wanted
            problem.changes += 1
            if wanted:
                problem.tried_at = min(problem.tried_at, self.threshold)
            else:
                problem.since, problem.again = 0, max(self._settings.probe_again, 2 * problem.again)
        problem.reason = self._reason(problem)

    def _reason(self, problem: _Problem) -> str:
        accepted = round(self._acceptance(problem) * 20) / 20
        rule = f"break-even {self.threshold:.2f}" if self.threshold <= 1 else "no acceptance pays at this load"
        if problem.speculates:
            return f"drafts pay: acceptance {accepted:.2f}, {rule}, predicted gain {self.gain:.2f}"
        return f"drafts do not pay: acceptance {accepted:.2f}, {rule}"

    def _groups(self, admitted: float, acceptance: Callable[[_Problem], float | None]) -> list[Group]:
        """Groups all tracks at work by acceptance in steps of 0.05."""
        tracks: Counter[float | None] = Counter()
        for problem in self._problems.values():
            accepted = acceptance(problem)
            tracks[None if accepted is None else round(accepted * 20) / 20] += problem.tracks.total()
        return [Group(count * admitted, accepted) for accepted, count in tracks.items()]

    @property
    def _steps_a_track(self) -> float:
        """By the budget; 0 where none is known."""
        return self.budget / self._shape["written"].value

    @property
    def _steps_left(self) -> float:
        """Of a track at work, on average."""
        tracks = sum(problem.tracks.total() for problem in self._problems.values())
        committed = sum(problem.committed.total() for problem in self._problems.values())
        return (self.budget - committed / max(1, tracks)) / self._shape["written"].value

    @property
    def _step(self) -> StepShape:
        values = {name: mean.value for name, mean in self._shape.items()}
        return StepShape(**values, lost=values["drafted"], context=self._context)


@dataclass(frozen=True, slots=True)
class _Totals:
    busy_s: float
    iterations: int
    new_tokens: int
    batched: int
    both_s: float
