"""What one seed means: a run, its engines, and all that goes wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from attack.attempts import End
from attack.disks import Outage as DiskOutage
from attack.disks import draw_outage
from attack.drawn import draw_work, generator, told
from attack.engines import draw_aborts

if TYPE_CHECKING:
    import random
    from collections.abc import Collection

    from workloads import Workload

HARMLESS = ("slow", "late", "aborts", "storm", "hang", "death", "gone", "flaps")
"""They cost time and change no word: who is not ended by them writes what it would have written."""
LIES = ("garbage", "empty", "cut", "counts", "long", "logprobs", "nan", "refused", "dropped", "doubled")
"""An engine in this process is believed where nothing shows that it lies, so texts differ."""
AROUND = ("disk", "interrupt", "callers")
KINDS = (*HARMLESS, *LIES, *AROUND, "http")
"""Of faults. ``http``: the engines are servers, and their faults those of servers."""
RETURNS: tuple[Literal["never", "asked", "restarted"], ...] = ("never", "asked", "restarted", "restarted")
OF_REQUESTS = ("slow", "late", *LIES)
OUTAGES = ("storm", "hang", "death", "gone", "flaps")


@dataclass(frozen=True)
class Outage:
    """From the engine's request of that number on, and ``delay_s`` later. ``down_s``: how long it lasts."""

    kind: str
    request: int
    delay_s: float
    down_s: float


@dataclass(frozen=True)
class Caller:
    """Another caller on the same runtime. ``gives_up_s``: it is cancelled then, ``twice`` if so; ``leaves``: its stream, after so
    many events.
    """

    number: int
    way: Literal["solve", "stream"]
    starts_s: float
    gives_up_s: float | None
    twice: bool
    leaves: int | None


@dataclass(frozen=True)
class Plan:
    """What goes wrong with one attempt. ``share``: of the requests that meet one of the ``kinds``; ``outages``: by the number of
    the engine, counted over all roles.
    """

    kinds: tuple[str, ...] = ()
    share: float = 0.0
    outages: tuple[tuple[int, Outage], ...] = ()
    abort_s: tuple[float, ...] = ()
    disk: DiskOutage | None = None
    end: End | None = None
    callers: tuple[Caller, ...] = ()


@dataclass(frozen=True)
class Case:
    """``returns``: how engines that failed come back, if they do. ``stall_s``: the limit without progress. ``plans``: of the
    attempts; one more without faults must end. ``tight``: the events that may wait for the disk, or for a slow caller.
    """

    seed: int
    work: Workload
    kinds: tuple[str, ...]
    http: bool
    returns: Literal["never", "asked", "restarted"]
    stall_s: float
    plans: tuple[Plan, ...]
    tight: int

    def __str__(self) -> str:
        how = f"{'servers' if self.http else 'engines'} stall {self.stall_s:g} s, {self.returns}"
        return f"{told(self.work)} | {how} | {', '.join(self.kinds) or 'no faults'}\n  " + "\n  ".join(
            map(str, self.plans)
        )

    @property
    def harmless(self) -> bool:
        """Whether a track that no error ended must write what it writes when nothing goes wrong."""
        return self.http or not set(self.kinds) & set(LIES)


def draw_case(seed: int, allowed: Collection[str] = KINDS) -> Case:
    draw = generator("simulation", seed)
    kinds = [kind for kind in KINDS if kind in allowed and kind != "http"]
    chosen = tuple(sorted(draw.sample(kinds, min(len(kinds), draw.choice([0, 1, 1, 2, 2, 3, 4])))))
    http = "http" in allowed and draw.random() < 0.3
    work = _small(draw, http)
    engines = work.targets + (work.drafts if work.name.startswith("spec") else 0)
    plans = [_plan(draw, chosen, engines, again=False)]
    while len(plans) < 2 and draw.random() < 0.5:
        plans.append(_plan(draw, chosen, engines, again=True))
    return Case(
        seed,
        work,
        (*chosen, *(["http"] if http else [])),
        http,
        returns=draw.choice(RETURNS) if not http else "asked",
        stall_s=draw.choice([5.0, 30.0, 120.0]),
        plans=tuple(plans),
        tight=draw.choice([4, 20, 10_000]),
    )


def _small(draw: random.Random, http: bool) -> Workload:
    """Few and short tracks: what goes wrong between two of them goes wrong in a small world as well."""
    work = draw_work(draw)
    options = {**work.options, "token_budget": draw.choice([30, 60, 90])}
    if "tracks" in options:
        options["tracks"] = min(options["tracks"], draw.choice([1, 2, 3, 4]))
    if http:  # a server gets no place to count from, and its entropies are those of a real distribution
        for name in ("gate_entropy", "scorer", "score_threshold"):
            options.pop(name, None)
    problems = draw.choice([1, 1, 2])
    return replace(
        work,
        options=options,
        problems=problems,
        repeats=draw.choice([1, 2]) if problems == 1 else 1,
        targets=draw.choice([1, 2, 2, 3]),
        drafts=draw.choice([1, 1, 2]),
        steps=draw.choice([2.0, 3.0, 4.0]),
        one_device=False,
    )


def _plan(draw: random.Random, kinds: tuple[str, ...], engines: int, *, again: bool) -> Plan:
    outages = tuple(
        (draw.randrange(engines), _outage(draw, kind))
        for kind in kinds
        if kind in OUTAGES
        for _ in range(draw.choice([1, 1, 2, 4]))
    )
    return Plan(
        kinds=tuple(kind for kind in kinds if kind in OF_REQUESTS),
        share=draw.choice([0.03, 0.1, 0.3, 0.3, 1.0]),
        outages=outages,
        abort_s=tuple(draw_aborts(draw, 1.0)) if "aborts" in kinds else (),
        disk=draw_outage(draw) if "disk" in kinds else None,
        end=_end(draw, again=again) if "interrupt" in kinds else None,
        callers=_callers(draw) if "callers" in kinds and not again else (),
    )


def _outage(draw: random.Random, kind: str) -> Outage:
    down_s = draw.choice([0.3, 2.0, 20.0, 200.0, 2000.0]) if kind != "gone" else 1e9
    return Outage(kind, draw.choice([1, 2, 3, draw.randint(1, 12)]), round(draw.uniform(0.0, 0.4), 4), down_s)


def _end(draw: random.Random, *, again: bool) -> End:
    more = tuple(draw.choice([1, 1, 2, 3]) for _ in range(draw.choice([0, 0, 1, 2])))
    match draw.choice(["time", "event", "turn", "turn"] if not again else ["turn", "turn", "event"]):
        case "time":
            return End(
                "cancelled",
                "time",
                round(draw.uniform(0.0, draw.choice([0.3, 1.0, 3.0])), 4),
                draw.choice([0, 1]),
                more,
            )
        case "event":
            return End("cancelled", "event", draw.randint(1, draw.choice([15, 50])), draw.randint(0, 5), more)
        case _:
            return End("cancelled", "turn", draw.randint(1, draw.choice([20, 100, 300])), 0, more)


def _callers(draw: random.Random) -> tuple[Caller, ...]:
    return tuple(
        Caller(
            number,
            draw.choice(["solve", "stream"]),
            round(draw.uniform(0.0, 1.5), 3),
            draw.choice([None, round(draw.uniform(0.0, 2.0), 4)]),
            draw.random() < 0.5,
            draw.choice([None, draw.randint(1, 30)]),
        )
        for number in range(draw.choice([1, 1, 2]))
    )
