"""Decides which tracks speculate, from what speculation costs and brings (the break-even controller).

It knows only events (``experience``: how many drafts pass, how long steps are) and the engines' own statistics (what an
iteration costs). Once a second it forecasts the speed of the tracks at work with and without drafts. It decides by problem,
since acceptance depends on the problem and the pair of models: of the problems at work, those whose acceptance is above the
break-even of the moment speculate, and the target alone writes the others. A problem that might pay, for all that is known,
is probed by single steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from speclrm.runtime.clock import now_s
from speclrm.runtime.engine import KnowsItsCosts
from speclrm.runtime.events import (
    DraftPaced,
    EngineCounters,
    EnginesObserved,
    Mode,
)
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.breakeven import Group, Prediction, StepShape, lateness, predict
from speclrm.runtime.scheduling.calls import Calls
from speclrm.runtime.scheduling.controller_settings import ControllerSettings
from speclrm.runtime.scheduling.experience import Experience
from speclrm.runtime.scheduling.iteration_costs import CostFit, CounterDelta
from speclrm.runtime.scheduling.pacing import FREE, Pace, Snapshot, pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from speclrm.runtime.engine import EngineCosts
    from speclrm.runtime.events import Event
    from speclrm.runtime.scheduling.admission import Admission
    from speclrm.runtime.scheduling.experience import Problem, TrackName
    from speclrm.runtime.scheduling.lanes import Lane
    from speclrm.runtime.scheduling.overlap import Overlap
    from speclrm.runtime.scheduling.pacing import Pacer


PROBE_REASON = "one step, to see whether drafts pay"
NEVER = 2.0
"""A break-even that no acceptance reaches."""


class Decision(NamedTuple):
    """The next step of a track, and the reason in one line."""

    mode: Mode
    reason: str


class Controller:
    """One for a runtime: call ``see`` with every event of its samples, and ``decide`` before each step of a track.

    What it knows is a fold over events: those of its tracks, and what it was told of the engines (``observe``), which
    is an event, too. So a run that continues from its trace continues with what it had learned (``recall``).

    It turns a problem on or off at most ``2 + 2 * log2(1 + steps / try_again)`` times (of its settings): one that was turned off
    waits before it is turned on again, each time twice as long.
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
        known = {
            role: lane.engine.known_costs if isinstance(lane.engine, KnowsItsCosts) else None
            for role, lane in lanes.items()
        }
        self._fits = {role: CostFit(known[role]) for role in lanes}
        self._experience = Experience(self._settings)
        self._problems = self._experience.problems
        self._seen: dict[Role, _Totals] = {}
        self._context = 0.0
        self._waiting = 0
        self._looked_s = self._decided_s = float("-inf")
        self._begins = False
        self._decided_tracks = self._decided_verdicts = 0.0
        self._eager = False
        self._probes = 0
        self.budget = 0
        """Tokens of a track at most, as far as is known."""
        self.calls = Calls()
        self.threshold, self.gain = NEVER, 1.0
        """The acceptance from which on problems speculate by the last decision, and the gain predicted for that."""
        self._ceiling = self._ceiling_now = 1.0
        self.worth_a_try = 0.0
        """The lowest acceptance that is worth a try: if all tracks had it, there would be as much gain as must be hoped for."""

    @property
    def problems(self) -> int:
        """Problems with a track at work."""
        return len(self._problems)

    # ------------------------------------------------------------------------------------------------------- what is seen

    def see(self, event: Event, at_s: float | None = None) -> None:
        """Learns from an event of any sample. ``at_s``: when it happened; None for now."""
        self._experience.see(event)
        match event.kind:
            case "engines_observed":
                self._observed(event, now_s() if at_s is None else at_s)
            case "draft_paced":
                self._pace, self._paced_s = Pace(event.iterations, event.interval_s), now_s() if at_s is None else at_s
                if self._pacer is not None:
                    self._pacer.set(event.interval_s)
            case "run_resumed":
                self._restart()
            case "mode_changed" if event.mode == "speculate" and event.reason == PROBE_REASON:
                problem = self._problems[event.problem]
                if (event.repeat, event.track) not in problem.probing:
                    self._probe(problem, event.repeat, event.track)
            case "track_started":
                problem = self._problems[event.problem]
                # What was right for the last steps of those before, where a change costs most, says nothing of these.
                first = problem.tracks.total() == 1
                self._begins = self._begins or (first and len(self._problems) == 1)
                if first and self._decided_s > float("-inf"):
                    problem.speculates = self._acceptance(problem) >= self.threshold
                    problem.reason = self._reason(problem)
            case _:
                pass

    def forget(self, name: str, repeat: int) -> None:
        """Removes a sample whose tracks have not ended but which is no longer at work, because its run could not continue."""
        self._experience.forget(name, repeat)

    def recall(self, events: Iterable[Event]) -> None:
        """Learns from a whole trace that a run continues, without what only an attempt's end did to its tracks."""
        for event in events:
            self.see(event, event.t)
        self._restart()

    def _restart(self) -> None:
        """Starts again for other engines: their counters begin anew, and so does the time."""
        self._seen.clear()
        self._looked_s = self._decided_s = self._paced_s = float("-inf")

    # -------------------------------------------------------------------------------------------------------- what is said

    @property
    def due(self) -> bool:
        """Whether it is time to ``observe`` the engines, before anything is decided."""
        return self._begins or self._learned or now_s() - self._looked_s >= self._settings.look_s

    @property
    def _learned(self) -> bool:
        """Whether there are clearly more verdicts than when it was last decided, if it ever was."""
        known = self._experience.verdicts.count
        return bool(self._decided_verdicts) and known >= (1 + self._settings.moved) * self._decided_verdicts

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
        groups = self._groups(1.0, lambda p: everybody or p.speculates, favour=0.0)
        chosen = self._best_pace(groups, self._shape, target, draft)
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
        self,
        groups: Sequence[Group],
        shape: StepShape,
        target: EngineCosts,
        draft: EngineCosts,
        *,
        ahead: bool = False,
    ) -> Prediction:
        """At the pace that the draft would have then."""
        interval_s = self._best_pace(groups, shape, target, draft).interval_s
        return predict(groups, shape, target, draft, interval_s, ahead=ahead)

    def decide(self, name: str, repeat: int, track: str) -> Decision:
        """Returns what this track does next. Raises KeyError for a track that was not seen to start."""
        problem = self._problems[name]
        if problem.speculates:
            return Decision("eager" if self._eager else "speculate", problem.reason)
        if (repeat, track) in problem.probing:
            return Decision("speculate", PROBE_REASON)
        if self._may_probe(problem, (repeat, track)):
            self._probe(problem, repeat, track)
            return Decision("speculate", PROBE_REASON)
        return Decision("write", problem.reason)

    def _may_probe(self, problem: Problem, track: TrackName) -> bool:
        known = self._experience
        if self._fits[Role.DRAFT].costs is None:
            return not known.probing  # the first draft says what drafts cost; nobody else tries until that is known
        if known.acceptance(problem, self._settings.hope) < self.worth_a_try:
            late = self.budget and 2 * problem.committed[track] > self.budget
            return known.steps_of(problem, track) >= problem.try_at and not late and not known.probing
        if self._few_probe(problem, track):
            settings = self._settings
            return self._probes < max(
                settings.probes, settings.probe_tracks * self._decided_tracks, settings.probe_share * known.steps
            )
        steps = max(problem.since / len(problem.tracks), known.steps_a_track(self.budget))
        return problem.tried[track] < int(self._settings.probe_share * steps)

    def _probe(self, problem: Problem, repeat: int, track: str) -> None:
        """Notes that a track tries one step, and how long it takes until one does so without hope."""
        if self._experience.steps_of(problem, (repeat, track)) >= problem.try_at:
            problem.try_at *= 2
        problem.probing.add((repeat, track))
        if problem.committed[repeat, track]:
            problem.tried[repeat, track] += 1
        if self._few_probe(problem, (repeat, track)):
            self._probes += 1

    def _few_probe(self, problem: Problem, track: TrackName) -> bool:
        """Whether a probe now is one of a few for all: a first step costs least, since nothing that is being written is broken
        off, and in a crowd that matters little.
        """
        return not problem.committed[track] or self._crowded

    def _acceptance(self, problem: Problem, favour: float | None = None) -> float:
        """In steps of 0.05: nothing finer is known. ``favour``: in standard deviations, the problem's own unless told; what is
        uncertain is seen with some, since drafting tells more.
        """
        favour = self._favour(problem) if favour is None else favour
        return round(self._experience.acceptance(problem, favour) * 20) / 20

    def _favour(self, problem: Problem) -> float:
        """Returns how much better than it seems a problem's acceptance is taken to be, in standard deviations."""
        known, settings = self._experience, self._settings
        if not self._crowded:
            return settings.stay if problem.speculates else settings.favour
        begun = known.steps or known.verdicts.count > settings.prior_verdicts
        return settings.favour if problem.speculates or not begun else 0.0

    @property
    def _crowded(self) -> bool:
        return self._decided_tracks >= self._settings.crowd

    @property
    def _many_follow(self) -> bool:
        """Whether as many samples wait as are at work: what is learned now serves them, and they keep the engines busy."""
        return self.calls.queued >= len(self._problems)

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
            both_s = min(totals.both_s - before.both_s, busy_s)
            if self._pace.interval_s and both_s > 0:
                continue  # the draft is held back now and then though it has work, and its target is alone then
            if not totals.iterations and self._experience.token_s[role].value:  # an engine that does not count them
                iterations = busy_s / self._experience.token_s[role].value
            self._fits[role].add(
                CounterDelta(
                    busy_s,
                    iterations,
                    totals.new_tokens - before.new_tokens,
                    (totals.batched - before.batched) * event.context,
                    both_s,
                )
            )
        tracks = self._experience.tracks
        share = self._settings.moved
        moved = abs(tracks - self._decided_tracks) > share * max(tracks, self._decided_tracks)
        if self._begins or moved or self._learned or now - self._decided_s >= self._settings.decide_s:
            self._begins = False
            self._decide(now, tracks)

    def _decide(self, now: float, tracks: int) -> None:
        """Chooses the problems that speculate. Those that do so now stay, unless another choice is clearly better."""
        target, draft = (self._fits[role].costs for role in (Role.TARGET, Role.DRAFT))
        admitted = 1 - min(1.0, self._waiting / tracks) if tracks else 0.0
        if target is None or draft is None or not admitted:
            return
        self._decided_s, self._decided_tracks = now, tracks
        self._decided_verdicts = self._experience.verdicts.count
        outlook = self._outlook(tracks, admitted, target, draft)
        self._hope(outlook)
        change = self._choose(outlook)
        for problem in self._problems.values():
            if change:
                self._turn(problem)
            problem.reason = self._reason(problem)
        self._eager = self._gains_ahead(outlook)

    def _outlook(self, tracks: int, admitted: float, target: EngineCosts, draft: EngineCosts) -> Outlook:
        steps, done = self._experience.steps_a_track(self.budget), self._experience.steps_done()
        # Contexts will be longer, unless new samples take the place of those that end.
        grows = 0.0 if self._many_follow else max(0.0, steps - done) / 2
        shape = self._experience.shape(self._context + grows * self._shape.written)
        alone = predict([Group(tracks * admitted, None)], shape, target, None).rate
        dear = min(1.0, self._settings.change_steps / max(1.0, steps - done)) if steps and done >= 1 else 0.0
        return Outlook(tracks, admitted, shape, target, draft, alone, dear)

    def _worth(self, outlook: Outlook, groups: Sequence[Group], changed: float = 0.0) -> float:
        """Predicts tokens a second, over those of the target alone. ``changed``: share of the tracks that would change."""
        found = self._predict(groups, outlook.shape, outlook.target, outlook.draft)
        share = sum(group.tracks for group in groups if group.acceptance is not None) / outlook.served
        late = self._late(share * outlook.served, found.spread) if share else 0.0
        return found.rate / outlook.alone * (1 - share * late / (1 + late)) * (1 - changed * outlook.dear)

    def _hope(self, outlook: Outlook) -> None:
        """Notes what drafts would bring if all were kept, and from which acceptance on a try is worth it."""
        soon = self._crowded or self._many_follow or self.calls.singles >= len(self._problems)
        gain = self._settings.margin if soon else self._settings.hope_gain

        def enough(twentieths: int) -> bool:
            return self._worth(outlook, [Group(outlook.served, twentieths / 20)], 1.0) >= 1 + gain

        self._ceiling, self._ceiling_now = (
            self._worth(outlook, [Group(outlook.served, 1.0)], changed) for changed in (0.0, 1.0)
        )
        self.worth_a_try = bisect_left(range(21), True, key=enough) / 20

    def _choose(self, outlook: Outlook) -> bool:
        """Chooses the acceptance from which on problems speculate. Returns whether any may change for it."""
        margin, least = self._settings.margin, 1 + self._settings.margin
        worths: dict[float, float] = {}
        shares: dict[float, float] = {}
        for bound in {NEVER, *(self._acceptance(problem) for problem in self._problems.values())}:

            def chosen(problem: Problem, bound: float = bound) -> bool:
                return self._acceptance(problem) >= bound

            changed = sum(p.tracks.total() for p in self._problems.values() if chosen(p) != p.speculates)
            shares[bound] = changed / outlook.tracks
            worths[bound] = self._worth(outlook, self._groups(outlook.admitted, chosen), shares[bound])
        best = max(worths, key=lambda bound: worths[bound])
        now_worth = self._worth(outlook, self._groups(outlook.admitted, _drafts))
        # Problems are hard to tell apart, so each stays; but all of them together are known better.
        doubted = self._worth(outlook, self._groups(outlook.admitted, _drafts, self._settings.favour))
        if shares[NEVER] and worths[NEVER] >= doubted * (1 + margin * shares[NEVER]):
            best, now_worth = NEVER, doubted
        self.threshold, self.gain = (best, worths[best]) if worths[best] >= least else (NEVER, 1.0)
        # In a crowd what a single problem would gain is less than what is known of it.
        return worths[best] >= now_worth * (1 + margin * (1 if self._crowded else shares[best]))

    def _gains_ahead(self, outlook: Outlook) -> bool:
        """Whether work ahead of scores brings more than it costs."""
        drafting = self._groups(outlook.admitted, _drafts, favour=0.0)
        in_turn, ahead = (
            self._predict(drafting, outlook.shape, outlook.target, outlook.draft, ahead=one).rate
            for one in (False, True)
        )
        return ahead > in_turn * (1 if self._eager else 1 + self._settings.margin)

    def _late(self, tracks: float, spread: float) -> float:
        """By what share the slowest of so many tracks is later than the mean one if they speculate from now on."""
        known, steps = self._experience, self._experience.steps_a_track(self.budget)
        if self._many_follow:
            # Other samples take the places of tracks that end, but each waits until there are as many as it has.
            each = max(problem.tracks.total() for problem in self._problems.values())
            waits = (each - 1) / 2 / self._experience.tracks
            return min(waits, self._settings.tail * lateness(each, spread, 0.0, steps))
        done = min(steps, known.steps_done())
        drafted = done * min(1.0, known.verdicts.count / max(1, known.steps))
        return self._settings.tail * lateness(tracks, spread, drafted, steps - done)

    def _turn(self, problem: Problem) -> None:
        """Turns a problem on or off by the threshold of the moment."""
        wanted = self._acceptance(problem) >= self.threshold
        if wanted == problem.speculates or (wanted and problem.since < problem.again):
            return
        problem.speculates = wanted
        if not wanted:
            problem.since, problem.again = 0, max(self._settings.try_again, 2 * problem.again)

    def _reason(self, problem: Problem) -> str:
        expected, accepted = self._acceptance(problem, 0.0), self._acceptance(problem)
        known = f"acceptance {expected:.2f}" + (f", taken for {accepted:.2f}" if accepted != expected else "")
        rule = f"break-even {self.threshold:.2f}"
        if self.threshold > 1:
            rule = f"if all were kept: {self._ceiling:.2f} times the target alone"
            if self._ceiling_now < self._ceiling - 0.005:
                rule += f", {self._ceiling_now:.2f} with what a change costs now"
        if problem.speculates:
            return f"drafts pay: {known}; {rule}, predicted gain {self.gain:.2f}"
        return f"drafts do not pay: {known}; {rule}"

    def _groups(
        self, admitted: float, speculates: Callable[[Problem], bool], favour: float | None = None
    ) -> list[Group]:
        """Groups all tracks at work by acceptance. ``favour``: as ``_acceptance`` takes it."""
        tracks: Counter[float | None] = Counter()
        for problem in self._problems.values():
            tracks[self._acceptance(problem, favour) if speculates(problem) else None] += problem.tracks.total()
        return [Group(count * admitted, accepted) for accepted, count in tracks.items()]

    @property
    def _shape(self) -> StepShape:
        return self._experience.shape(self._context)


def _drafts(problem: Problem) -> bool:
    return problem.speculates


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a decision goes by. ``tracks``: at work; ``admitted``: share of them that the KV cache has room for. ``shape``: of the
    steps to come. ``alone``: tokens a second of the target alone. ``dear``: share of a track's time that a change costs it.
    """

    tracks: int
    admitted: float
    shape: StepShape
    target: EngineCosts
    draft: EngineCosts
    alone: float
    dear: float

    @property
    def served(self) -> float:
        """Tracks that have room."""
        return self.tracks * self.admitted


@dataclass(frozen=True, slots=True)
class _Totals:
    busy_s: float
    iterations: int
    new_tokens: int
    batched: int
    both_s: float
