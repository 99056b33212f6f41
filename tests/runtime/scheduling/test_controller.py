"""The break-even controller on streams of events whose acceptance and costs are known and constant."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Collector, make_strategy, parts

from speclrm.api import strategy
from speclrm.benchmarks.virtual_run import simulate_run
from speclrm.runtime.clock import now_s, run_virtual
from speclrm.runtime.engine import EngineStats
from speclrm.runtime.engines.scripted import Reply, ScriptedEngine
from speclrm.runtime.engines.simulated.cost import EngineCost
from speclrm.runtime.engines.simulated.device import Device
from speclrm.runtime.engines.simulated.engine import SimulatedEngine
from speclrm.runtime.engines.simulated.text_world import MIXES, SimulatedWorld, WorldSettings
from speclrm.runtime.events import (
    ModeChanged,
    Operation,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepScored,
    StepWritten,
    TrackFinished,
    TrackStarted,
)
from speclrm.runtime.protocols import Role
from speclrm.runtime.runtime import Runtime
from speclrm.runtime.scheduling.admission import Admission
from speclrm.runtime.scheduling.controller import Controller, Decision
from speclrm.runtime.scheduling.controller_settings import ControllerSettings
from speclrm.runtime.scheduling.engine_queue import LaneStats
from speclrm.runtime.scheduling.lanes import Lane
from speclrm.runtime.scheduling.overlap import Overlap

if TYPE_CHECKING:
    from collections.abc import Sequence

KNOWN = ControllerSettings()
STEP = 32
"""Tokens of any step."""
PROBING = "one step, to see whether drafts pay"


class KnownLane(Lane):
    """An engine whose iterations all take the same time, whatever is in them; work on it is waiting."""

    def __init__(self, role: Role, iteration_s: float) -> None:
        super().__init__(role, ScriptedEngine(lambda request, prompt: Reply()))
        self.iteration_s = iteration_s
        self._here = 0
        self._since_s = 0.0
        self._busy_s = 0.0
        self._track_s = 0.0
        self._tokens = 0

    async def work(self, iterations: float, read: int) -> Operation:
        """A request of one track: that many tokens out of it, and ``read`` tokens of its prompt computed."""
        self._settle()
        self._here += 1
        await asyncio.sleep(iterations * self.iteration_s)
        self._settle()
        self._here -= 1
        self._tokens += read + round(iterations)
        return Operation(
            id="x",
            engine=self.role.value,
            seed=None,
            prompt_tokens=1000,
            cached_tokens=1000 - read,
            output_tokens=round(iterations),
            queue_s=0.0,
            engine_s=iterations * self.iteration_s,
        )

    def _settle(self) -> None:
        passed_s = now_s() - self._since_s
        self._since_s = now_s()
        self._busy_s += passed_s * (self._here > 0)
        self._track_s += passed_s * self._here

    def stats(self) -> tuple[LaneStats, ...]:
        self._settle()
        iterations = round(self._busy_s / self.iteration_s)
        engine = EngineStats(
            self.role.value,
            self._here,
            0,
            0,
            self._tokens,
            iterations,
            iterations=iterations,
            batched=round(self._track_s / self.iteration_s),
        )
        return (LaneStats(0, self._here, 256, 0, 0.0, self._busy_s, 0.0, engine),)


class Everybody(Admission):
    """All tracks are admitted."""

    @property
    def admitted(self) -> int:
        return 1_000_000


@dataclass
class Stream:
    """What a controller was told and what it said. ``decisions``: by problem, in order; ``steps``: committed, by problem."""

    controller: Controller
    draft: KnownLane
    target: KnownLane
    decisions: dict[str, list[Decision]] = field(default_factory=lambda: defaultdict[str, list[Decision]](list))
    steps: Counter[str] = field(default_factory=Counter[str])
    problems: list[int] = field(default_factory=list[int])
    by_track: list[tuple[str, int, Decision]] = field(default_factory=list[tuple[str, int, Decision]])

    def changes(self, problem: str) -> int:
        """How often the problem as a whole was turned on or off; it begins turned off."""
        modes = [one.mode != "write" for one in self.decisions[problem] if one.reason != PROBING]
        return sum(one != other for one, other in zip([False, *modes], modes, strict=False))

    def share(self, problem: str, *, last: int = 10_000) -> float:
        """Of the last steps, how many were speculated on."""
        modes = [one.mode != "write" for one in self.decisions[problem][-last:]]
        return sum(modes) / len(modes)

    async def track(
        self, problem: str, name: str, acceptance: float, steps: int, *, repeat: int = 0, seed: int = 0
    ) -> None:
        """One track, from its start to its end. ``acceptance``: of its drafts, drawn anew for each."""
        draw = random.Random(f"{problem}/{name}/{seed}")
        see = self.controller.see

        def where(step: int) -> dict[str, object]:
            return {"problem": problem, "repeat": repeat, "track": name, "step": step}

        see(TrackStarted(problem=problem, repeat=repeat, track=name, hint="", prompt_ids={}))
        for step in range(steps):
            if self.controller.due:
                see(self.controller.observe())
            decision = self.controller.decide(problem, repeat, name)
            self.decisions[problem].append(decision)
            self.by_track.append((name, step, decision))
            origin = "write"
            if decision.mode != "write":
                operations = (await self.draft.work(STEP, 24),)
                see(StepDrafted.model_validate({**where(step), **TEXT, "operations": operations}))
                operations = (await self.target.work(1, 64),)
                see(StepScored.model_validate({**where(step), **SCORE, "operations": operations}))
                origin = "draft" if draw.random() < acceptance else "rewrite"
            if origin != "draft":
                operations = (await self.target.work(STEP, 16),)
                see(StepWritten.model_validate({**where(step), **TEXT, "write_kind": origin, "operations": operations}))
            see(StepCommitted.model_validate({**where(step), "origin": origin, "tokens": STEP, "score": 9.0}))
            self.steps[problem] += 1
            self.problems.append(self.controller.problems)
        see(TrackFinished(problem=problem, repeat=repeat, track=name, reason="answer", answer="4", tokens=0))


TEXT = {"text": "x", "ids": (), "ended": False}
SCORE = {"value": 9.0, "mass": 1.0, "digits": ()}


def stream(acceptances: Sequence[float], *, c: float, tracks: int = 4, steps: int = 100, seed: int = 0) -> Stream:
    """Problems of these acceptances side by side, on engines of which the draft takes ``c`` of a target's iteration."""

    async def main() -> Stream:
        made = opened(c, budget=steps * STEP)
        async with asyncio.TaskGroup() as group:
            for number, accepted in enumerate(acceptances):
                for track in range(tracks):
                    group.create_task(made.track(f"p{number}", f"t{track}", accepted, steps, seed=seed))
        return made

    return run_virtual(main())


def opened(c: float, budget: int = 0) -> Stream:
    lanes = {Role.TARGET: KnownLane(Role.TARGET, 0.02), Role.DRAFT: KnownLane(Role.DRAFT, 0.02 * c)}
    controller = Controller(lanes, Everybody(lanes), Overlap())
    controller.budget = budget
    return Stream(controller, lanes[Role.DRAFT], lanes[Role.TARGET])


def changes_max(steps: int) -> float:
    return 2 + 2 * math.log2(1 + steps / KNOWN.try_again)


# ------------------------------------------------------------------------------------------------------- what it comes to


@pytest.mark.parametrize("acceptance", [0.7, 0.9, 1.0])
def test_it_turns_on_where_drafts_clearly_pay_and_stays_on(acceptance: float) -> None:
    found = stream([acceptance], c=0.1)
    assert found.changes("p0") == 1
    assert found.share("p0") > 0.85
    assert found.share("p0", last=300) == 1.0
    assert found.controller.gain > 1.1


@pytest.mark.parametrize(("acceptance", "c"), [(0.1, 0.2), (0.5, 0.9), (0.95, 1.2), (0.0, 0.05)])
def test_it_stays_off_where_they_clearly_do_not(acceptance: float, c: float) -> None:
    found = stream([acceptance], c=c)
    assert found.changes("p0") <= 2
    assert found.share("p0") < 0.1
    assert found.share("p0", last=100) < 0.05


def test_each_problem_is_decided_by_itself() -> None:
    found = stream([0.9, 0.05, 0.85, 0.1], c=0.15)
    assert [found.share(f"p{number}", last=200) > 0.5 for number in range(4)] == [True, False, True, False]


@pytest.mark.parametrize(("acceptance", "c", "pays"), [(0.95, 0.5, True), (0.2, 0.3, False)])
def test_in_a_crowd_a_fifth_of_the_tracks_finds_out_for_all(acceptance: float, c: float, pays: bool) -> None:
    found = stream([acceptance] * 12, c=c, steps=24)
    assert len(found.by_track) == 48 * 24 >= KNOWN.crowd * 24
    drafted = [one for _, _, one in found.by_track if one.mode != "write"]
    tried = [one for one in drafted if one.reason == PROBING]
    assert len(tried) <= 1 + KNOWN.probe_tracks * 48
    if pays:
        assert len(drafted) > 0.9 * len(found.by_track)
    else:
        assert drafted == tried


def test_a_single_draft_is_tried_before_anything_is_known_and_few_of_a_problem_whose_drafts_are_all_rejected() -> None:
    found = stream([0.0] * 3, c=0.05, tracks=8, steps=40)
    first = [decisions[0] for decisions in found.decisions.values()]
    assert [decision.mode for decision in first].count("speculate") == 1
    begun = [decision for decisions in found.decisions.values() for decision in decisions[:8]]
    assert [decision.reason for decision in begun].count(PROBING) == 1
    for name, decisions in found.decisions.items():
        again = math.log2(1 + found.steps[name] / KNOWN.try_again) + 1
        assert (
            sum(decision.mode != "write" for decision in decisions) <= KNOWN.probes + 2 * 8 + again
        )  # two steps of its tracks


def test_where_not_even_the_best_drafts_would_pay_no_other_problem_is_probed() -> None:
    found = stream([0.9] * 6, c=1.5)
    tried = sum(decision.mode != "write" for decisions in found.decisions.values() for decision in decisions)
    assert tried <= KNOWN.probes


def test_a_first_step_is_tried_at_once_by_several_tracks_and_none_breaks_off_what_is_being_written() -> None:
    """Of 24 steps, each break costs a twentieth of a track. One rejection of each track is not enough to stop, two are."""
    found = stream([0.0], c=0.3, tracks=5, steps=24)
    drafted = [(track, step) for track, step, one in found.by_track if one.mode != "write"]
    assert drafted
    assert all(step <= 2 for _, step in drafted)


def test_a_few_steps_before_the_end_nothing_is_changed_any_more() -> None:
    """As tracks end drafts pay for those that are left, but less than the step that a change costs."""
    late = stream([0.75], c=0.62, tracks=5, steps=24)
    assert all(one.mode == "write" for _, step, one in late.by_track if step >= 22)


mixes = st.lists(st.integers(0, 20).map(lambda twentieths: twentieths / 20), min_size=1, max_size=4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(mixes, st.floats(0.02, 1.0), st.integers(1, 6), st.integers(0, 1000))
def test_on_constant_input_a_problem_changes_its_mode_a_few_times_at_most(
    acceptances: list[float], c: float, tracks: int, seed: int
) -> None:
    found = stream(acceptances, c=c, tracks=tracks, steps=150, seed=seed)
    for name, steps in found.steps.items():
        assert found.changes(name) <= changes_max(steps)


@pytest.mark.parametrize("c", [0.4, 0.5, 0.6, 0.7])
def test_a_problem_at_its_very_break_even_changes_its_mode_a_few_times_at_most(c: float) -> None:
    """Where chance alone moves it over the line and back again."""
    found = stream([c + 1.5 / STEP] * 3, c=c, tracks=4, steps=600, seed=3)
    for name, steps in found.steps.items():
        assert found.changes(name) <= changes_max(steps)


@pytest.mark.parametrize(
    ("acceptances", "c", "tracks", "seed"),
    [([0.0, 0.65], 0.094, 1, 363), ([0.0, 0.7], 0.108, 1, 894), ([0.1, 0.6], 0.112, 6, 290)],
)
def test_a_break_even_that_goes_back_and_forth_is_no_reason_to_follow_it_each_time(
    acceptances: list[float], c: float, tracks: int, seed: int
) -> None:
    """To let a few bad drafts in is now and then about as good as not to, so that the lowest threshold jumps."""
    found = stream(acceptances, c=c, tracks=tracks, steps=400, seed=seed)
    for name, steps in found.steps.items():
        assert found.changes(name) <= changes_max(steps)


def one_by_one(acceptances: Sequence[float], *, c: float, steps: int = 6, calls: bool = True) -> Stream:
    """Problems of one track, each begun when the one before has ended. ``calls``: by a call each."""

    async def main() -> Stream:
        made = opened(c, budget=steps * STEP)
        for number, accepted in enumerate(acceptances):
            await made.track(f"p{number}", "t", accepted, steps)
            if calls:
                made.controller.calls.singles += 1
        return made

    return run_virtual(main())


@pytest.mark.parametrize(("c", "calls"), [(0.4, False), (0.4, True), (0.5, True), (0.55, True)])
def test_a_bad_first_problem_does_not_end_drafting_for_those_that_come_one_by_one(c: float, calls: bool) -> None:
    """What was right for its last steps, where a change costs most, is not asked at the first step of the next. And where
    calls of one problem have come, more will: a try need not pay for itself in one of them.
    """
    found = one_by_one([0.0, *[0.9] * 20], c=c, calls=calls)
    assert sum(found.share(f"p{number}") for number in range(1, 21)) / 20 > 0.85
    assert found.changes("p20") == 1


@pytest.mark.parametrize(("acceptance", "c"), [(0.3, 0.5), (0.7, 0.9), (0.0, 0.2)])
def test_problems_that_come_one_by_one_pay_for_few_tries_where_drafts_do_not_pay(acceptance: float, c: float) -> None:
    found = one_by_one([acceptance] * 30, c=c)
    drafted = sum(one.mode != "write" for _, _, one in found.by_track)
    assert drafted <= KNOWN.probes + 2


def test_a_reason_tells_what_drafts_would_bring_apart_from_what_a_change_costs_now() -> None:
    found = one_by_one([0.0], c=0.4)
    brings, now = re.findall(
        r"(\d\.\d\d)(?: times the target alone| with what a change costs now)", found.decisions["p0"][-1].reason
    )
    assert float(now) < 1 < float(brings)


def test_costs_that_are_not_known_yet_are_no_reason_to_look_at_the_engines_all_the_time() -> None:
    async def main() -> int:
        made, looks = opened(0.1), 0
        for number in range(50):
            made.controller.see(TrackStarted(problem=f"p{number}", repeat=0, track="t", hint="", prompt_ids={}))
            if made.controller.due:
                looks += 1
                made.controller.see(made.controller.observe())
        return looks

    assert run_virtual(main()) == 1


# ------------------------------------------------------------------------------------------------------------ its books


def test_problems_that_ended_are_forgotten() -> None:
    async def main() -> Stream:
        made = opened(0.1)
        for number in range(60):
            async with asyncio.TaskGroup() as group:
                for track in range(2):
                    group.create_task(made.track(f"p{number}", f"t{track}", 0.8, 4))
        return made

    found = run_virtual(main())
    assert max(found.problems) == 1
    assert found.controller.problems == 0
    assert len(found.decisions) == 60


def test_a_track_that_ends_while_it_tries_a_draft_lets_others_try() -> None:
    async def main() -> tuple[str, str, str]:
        made = opened(0.1)
        see, decide = made.controller.see, made.controller.decide
        for name in ("a", "b"):
            see(TrackStarted(problem=name, repeat=0, track="t", hint="", prompt_ids={}))
        first, other = decide("a", 0, "t").mode, decide("b", 0, "t").mode
        see(TrackFinished(problem="a", repeat=0, track="t", reason="error", answer=None, tokens=0, error="x"))
        return first, other, decide("b", 0, "t").mode

    assert run_virtual(main()) == ("speculate", "write", "speculate")


def test_two_callers_with_the_same_problem_do_not_disturb_each_other() -> None:
    """Same problem, repeat and track names, at the same time, one ending long before the other."""

    async def main() -> Stream:
        made = opened(0.1)
        async with asyncio.TaskGroup() as group:
            for steps in (20, 120):
                for track in range(2):
                    group.create_task(made.track("p", f"t{track}", 0.9, steps, seed=steps))
        return made

    found = run_virtual(main())
    assert found.steps["p"] == 280
    assert found.share("p", last=100) == 1.0
    assert found.controller.problems == 0


# ------------------------------------------------------------------------------------------------------- on a real track


@pytest.mark.parametrize(("acceptance", "draft_s", "pays"), [(0.95, 0.002, True), (0.05, 0.02, False)])
def test_each_change_of_a_track_is_one_event_with_its_reason(acceptance: float, draft_s: float, pays: bool) -> None:
    world = SimulatedWorld(WorldSettings((acceptance,), steps=60, steps_spread=0.0))
    device = Device()
    costs = {
        Role.TARGET: EngineCost(0.02, 1e-5, 1e-9, 1_000_000),
        Role.DRAFT: EngineCost(draft_s, 1e-6, 1e-10, 1_000_000),
    }
    engines = {
        role: SimulatedEngine(role.value, cost, world, world.tokenizer, None if pays else device)
        for role, cost in costs.items()
    }
    collector = Collector()

    async def main() -> int:
        async with Runtime(parts(engines)) as runtime:
            call = runtime.run(
                world.problems(2), make_strategy("speculative", tracks=2, speculate="auto"), sinks=[collector]
            )
            other = runtime.run(world.problems(1), make_strategy("speculative", tracks=2, speculate="auto"))
            await asyncio.gather(call, other)
            assert runtime.scheduler.controller is not None
            return runtime.scheduler.controller.problems

    assert run_virtual(main()) == 0
    modes: dict[tuple[str, str], str] = defaultdict(lambda: "speculate")  # how every track begins
    origins: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in collector.events:
        if isinstance(event, ModeChanged):
            assert event.mode != modes[event.problem, event.track]
            assert event.step == len(origins[event.problem, event.track])
            assert event.reason
            assert "\n" not in event.reason
            modes[event.problem, event.track] = event.mode
        elif isinstance(event, StepCommitted):
            speculated = event.origin in ("draft", "rewrite")
            assert speculated == (modes[event.problem, event.track] != "write")
            origins[event.problem, event.track].append(event.origin)
    assert collector.of(ModeChanged)
    drafted = sum(origin != "write" for steps in origins.values() for origin in steps)
    assert (drafted / sum(map(len, origins.values())) > 0.5) == pays


@pytest.mark.parametrize(
    ("tracks", "shared", "ahead"), [(1, False, True), (5, False, True), (5, True, True), (1, True, False)]
)
def test_work_is_done_ahead_of_scores_where_the_forecast_gains_by_it(tracks: int, shared: bool, ahead: bool) -> None:
    """One track on a shared device would only slow its own scores."""
    world = SimulatedWorld(WorldSettings((0.86,), steps=60, steps_spread=0.0, judge_error=0.0))
    names = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
    collector = Collector()
    chosen = strategy("speculative", tracks=tracks, judge="inline")
    simulate_run(chosen, world, names, collector, problems=1, concurrency=1, shared=shared, seed=0)
    assert ("eager" in {event.mode for event in collector.of(ModeChanged)}) == ahead
    assert collector.of(StepDrafted)


def test_on_problems_that_differ_those_that_lose_are_turned_off_though_all_together_gain_little_by_that() -> None:
    """Four problems of which drafts help one much and two a little: the one that they hold up decides when all have ended.

    A choice that had to gain 5 % for all tracks, whichever it changes, would take 1.09 times as long as the target alone.
    """
    names = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
    ended_s: list[float] = []
    for chosen in (
        strategy("parallel", tracks=5, token_budget=2048, plan="plain"),
        strategy("speculative", tracks=5, token_budget=2048, plan="plain", judge="inline", gate_sure=-0.1),
    ):
        collector = Collector()
        world = SimulatedWorld(MIXES["aime-mix"], 0)
        simulate_run(chosen, world, names, collector, problems=4, concurrency=4, shared=False, seed=0)
        ended_s.append(max(event.seconds for event in collector.of(SampleFinished)))
    assert ended_s[1] < 1.05 * ended_s[0]


def test_a_problem_that_begins_later_is_told_what_is_known_by_then() -> None:
    settings = WorldSettings((0.46,), steps=2000, judge_error=0.0)
    chosen = strategy("speculative", judge="inline", tracks=2, plan="plain", token_budget=128)
    told = Collector()
    names = {Role.TARGET: "sim/qwq-32b", Role.DRAFT: "sim/r1-1.5b"}
    simulate_run(chosen, SimulatedWorld(settings, 0), names, told, problems=8, concurrency=2, shared=True, seed=0)
    reasons = [event.reason for event in told.of(ModeChanged) if event.problem in ("sim-6", "sim-7")]
    assert reasons
    assert all("acceptance" in reason or reason == PROBING for reason in reasons), reasons
