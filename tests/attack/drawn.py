"""Runs to attack, drawn from a seed: strategies with all of their options, and engines with much and with little room."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

from workloads import Workload

from speclrm.runtime.trace.journal import TraceOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Aim = Literal["any", "room", "stops", "ahead", "hurry"]
"""``room``: tracks are deferred in the middle of writes; ``stops``: answers stop other tracks, also those that wait for room;
``ahead``: much is made before it is known to be wanted; ``hurry``: and answers stop it.
"""
AIMS: Sequence[Aim] = ("any", "any", "room", "stops", "ahead", "hurry")
Equality = Literal["all", "so far", "none"]
"""What of two runs of one workload must be equal, however each was broken off and gone on with.

``all``: what every track wrote, the votes and the results. ``so far``: what every track wrote, up to the shorter one's end:
an answer stops other tracks, and who answers first is a matter of time. ``none``: the controller decides by the clock.
"""


def generator(*names: object) -> random.Random:
    return random.Random("/".join(map(str, names)))


def draw_work(draw: random.Random, aim: Aim | None = None) -> Workload:
    aim = aim or draw.choice(AIMS)
    name = _name(draw, aim)
    options: dict[str, Any] = {}
    if name != "baseline":
        options["tracks"] = (
            draw.choice([1, 2, 2, 3, 3, 4, 5, 6]) if aim in ("any", "ahead", "hurry") else draw.randint(3, 6)
        )
    if options.get("tracks", 1) > 1:
        options["fast"] = draw.choice([1, 1, 2] if aim in ("stops", "hurry") else [None, None, None, 1, 2])
    options["token_budget"] = draw.choice([200, 200, 120, 60, 30])
    options["step_limit"] = draw.choice([None, None, None, None, None, 2])  # ends tracks in the middle of a write
    # Where a limit cuts a step of a long write in two, the simulated world would say other words behind a break.
    options["max_step_tokens"] = 200
    if name.startswith("speculative"):
        options |= _speculation(draw, aim)
    if options.get("fidelity") != "original":
        options["min_step_tokens"] = draw.choice([0, 0, 0, 0, 16])
    room = draw.choice([None, None, None, 1, 1.5, 2, 3])
    if aim == "room" or (aim == "stops" and draw.random() < 0.6):
        room = draw.choice([1, 1.5, 2, 2, 3])
    if aim == "hurry" and draw.random() < 0.7:
        room = None
    problems = draw.choice([1, 1, 2, 2, 3])
    return Workload(
        name,
        options,
        problems=problems,
        repeats=draw.choice([1, 1, 2]) if problems < 3 else 1,
        concurrency=draw.choice([1, 2, 4]),
        targets=draw.choice([1, 1, 1, 2]),
        drafts=draw.choice([1, 1, 2]),
        in_flight_max=draw.choice([None, None, None, 1, 2, 3]),
        max_num_seqs=draw.choice([1, 2, 4, 64, 64]),
        room=room,
        acceptance=draw.choice([0.1, 0.5, 0.5, 0.9]),
        one_device=draw.choice([False, True]),
        seed=draw.randrange(10_000),
        steps=draw.choice([3.0, 4.0, 6.0]),
        talks_on=draw.random() < 0.3,
    )


def _name(draw: random.Random, aim: Aim) -> str:
    match aim:
        case "ahead" | "hurry":
            return draw.choice(["speculative", "speculative", "speculative-methods"])
        case "room":
            return draw.choice(["parallel", "parallel", "speculative"])
        case "stops":
            return draw.choice(["parallel", "speculative"])
        case "any":
            return draw.choice(["baseline", "parallel", "parallel", "speculative-methods", *["speculative"] * 4])


def _speculation(draw: random.Random, aim: Aim) -> dict[str, Any]:
    options: dict[str, Any] = {"speculate": draw.choice(["always", "always", "auto", "never"])}
    if aim in ("ahead", "hurry"):
        options["speculate"] = draw.choice(["always", "always", "auto"])
    if draw.random() < 0.06:
        return {**options, "fidelity": "original"}
    each = ["auto", "always", "never"]
    if aim in ("ahead", "hurry"):
        each = ["always", "always", "never"] if aim == "ahead" else ["always", "always", "always", "never"]
    options["draft_ahead"], options["rewrite_ahead"] = draw.choice(each), draw.choice(each)
    if draw.random() < 0.25:
        options |= {"scorer": "likelihood", "score_threshold": -0.2}
    else:
        options["judge"] = draw.choice(["auto", "turn", "inline"])
    if draw.random() < 0.3:
        options["gate_sure"] = -0.1
    if draw.random() < 0.2:
        options |= {"gate_doubt": -0.4, "gate_tokens": draw.choice([None, 8])}
    if draw.random() < 0.15:
        options["gate_entropy"] = 1.5
    if options["speculate"] == "always":
        options["max_step_tokens"] = draw.choice([16, 200, 200])
    return options


def draw_trace(draw: random.Random) -> TraceOptions | None:
    size = draw.choice([None, None, 3_000, 20_000])
    return None if size is None else TraceOptions(segment_bytes=size, compress=draw.random() < 0.3)


def equality(work: Workload) -> Equality:
    return equality_of(work.name, {"speculate": "always", **work.options})


def equality_of(name: str, options: Mapping[str, Any]) -> Equality:
    """Of a strategy with its options."""
    speculates = options.get("speculate", "auto") if name.startswith("speculative") else "never"
    if speculates == "auto":
        return "none"
    return "so far" if options.get("fast") else "all"


def told(work: Workload) -> str:
    """A workload in one line."""
    options = " ".join(f"{name}={value}" for name, value in sorted(work.options.items()) if value is not None)
    rest = {
        name: getattr(work, name)
        for name in (
            "problems",
            "repeats",
            "concurrency",
            "targets",
            "drafts",
            "in_flight_max",
            "max_num_seqs",
            "room",
            "acceptance",
            "one_device",
            "seed",
            "steps",
            "talks_on",
        )
    }
    return f"{work.name} {options} | " + " ".join(f"{name}={value}" for name, value in rest.items())


def labels(work: Workload) -> tuple[str, ...]:
    """What a workload is counted under."""
    options = work.options
    found = [work.name]
    if work.name.startswith("speculative"):
        found.append(f"speculate {options.get('speculate', 'always')}")
        found += [f"{name.replace('_', ' ')} {options.get(name, 'never')}" for name in ("draft_ahead", "rewrite_ahead")]
        found.append("original" if options.get("fidelity") else f"scorer {options.get('scorer', 'judge')}")
        if any(name.startswith("gate_") and value is not None for name, value in options.items()):
            found.append("gates")
    found.append(f"fast {options.get('fast') or 0}")
    found.append("much room" if work.room is None else "little room")
    if work.in_flight_max is not None:
        found.append("narrow lanes")
    if work.targets > 1 or work.drafts > 1:
        found.append("several engines")
    if options.get("min_step_tokens"):
        found.append("long steps")
    return tuple(found)
