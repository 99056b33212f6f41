"""A seed's whole story: attempts while things go wrong, a last one in peace, and what must hold of all of it together."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from again import generated
from attack.attempts import Fault, violations
from attack.cuts import events_of, lines_of, replayed
from attack.drawn import equality
from attack.stories import differences, stories
from simulation.drawn import KINDS, Case, Plan, draw_case
from simulation.runs import Attempt, Left

from speclrm.runtime.events import OperationDropped, RunResumed, RunStarted, TrackFinished, to_line

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from speclrm.runtime.events import Event

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where folders need no disk."""
TWICE = 16
"""One seed in this many is run a second time, and must come out the same to the byte."""


@dataclass
class Outcome:
    """``hours``: of virtual time. ``trace``: a digest of all that was published."""

    seed: int
    about: str
    faults: list[Fault] = field(default_factory=list[Fault])
    injected: Counter[str] = field(default_factory=Counter[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    hours: float = 0.0
    trace: str = ""

    def __str__(self) -> str:
        again = f"again: python -m tests.simulation --seed {self.seed} --seeds 1"
        return "\n".join([f"seed {self.seed}: {self.about}", *map(str, self.faults[:6]), again])


def simulate(seed: int, allowed: Collection[str] = KINDS, *, twice: bool | None = None) -> Outcome:
    """Runs a seed. ``twice``: whether a second time; by default one seed in ``TWICE``."""
    case = draw_case(seed, allowed)
    outcome = _once(case)
    if not outcome.faults and (seed % TWICE == 0 if twice is None else twice):
        outcome.counts["run twice"] += 1
        if _once(case).trace != outcome.trace:
            outcome.faults.append(Fault("seed", "the same seed told another story"))
    return outcome


def _once(case: Case) -> Outcome:
    outcome = Outcome(case.seed, str(case))
    digest = blake2b(digest_size=16)
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=MEMORY) as name:
        folder = Path(name) / "run"
        before: list[Event] = []
        for number, plan in enumerate((*case.plans, Plan())):
            left = Attempt(case, plan, number, folder, resume=bool(before)).run()
            outcome.injected.update(left.injected)
            if plan.disk is not None:
                outcome.injected["disk"] += 1
            outcome.hours += left.seconds / 3600
            for event in left.all_events:
                if not isinstance(event, RunStarted | RunResumed):
                    digest.update(to_line(event).replace(name.encode(), b""))
            outcome.faults += [Fault(fault.kind, f"attempt {number}: {fault.text}") for fault in left.faults]
            if outcome.faults:
                break
            events = events_of(folder) if folder.exists() else []
            outcome.faults += _trace(events, before, left)
            if outcome.faults:
                break
            if left.completed:
                _whole(outcome, case, events, number)
                break
            outcome.counts["broken off"] += 1
            before = events
            if not before and folder.exists():
                folder = folder.with_name(f"run-{number}")
        else:
            outcome.faults.append(Fault("lost", "the last attempt, without faults, did not end the run"))
    outcome.trace = digest.hexdigest()
    return outcome


def _trace(events: Sequence[Event], before: Sequence[Event], left: Left) -> list[Fault]:
    """What must hold of a trace on the disk, whether its run ended or not."""
    faults = violations(events)
    if [event.seq for event in events] != list(range(len(events))):
        faults.append(Fault("trace", "the numbers of events have gaps"))
    if any(one.t > other.t for one, other in pairwise(events)):
        faults.append(Fault("trace", "time goes back"))
    if list(events[: len(before)]) != list(before):
        faults.append(Fault("trace", "what was there is not there any more"))
    made = generated(events)
    if len(set(made)) != len(made):
        twice = sorted({one for one in made if made.count(one) > 1})
        faults.append(Fault("twice", f"{twice[0]} was generated a second time"))
    if left.completed and left.fold.lines != lines_of(events):
        faults.append(Fault("fold", "those who saw it happen say other than the trace"))
    return faults


def _whole(outcome: Outcome, case: Case, events: Sequence[Event], number: int) -> None:
    """What must hold of a run that went to its end."""
    outcome.counts["ended" if not number else "resumed to the end"] += 1
    outcome.faults += replayed(case.work, events)
    outcome.counts["replayed"] += 1
    # A request that is refused costs its step the draft.
    failed = any(isinstance(event, TrackFinished | OperationDropped) and event.error is not None for event in events)
    gates = any(name.startswith("gate") and value is not None for name, value in case.work.options.items())
    if failed or gates or not case.harmless or equality(case.work) == "none" or not case.kinds or case.seed % 3:
        return
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=MEMORY) as name:
        calm = Attempt(case, Plan(), 0, Path(name) / "run", resume=False).run()
    outcome.faults += [Fault("calm", f"{fault}") for fault in calm.faults]
    outcome.faults += differences(stories(calm.events), stories(events), equality(case.work))
    outcome.counts["compared with a run in peace"] += 1
