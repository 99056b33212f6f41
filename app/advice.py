"""Forecasts where drafts pay: over placements of the engines, numbers of tracks, and shares of drafts that are kept."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from speclrm.app.known_costs import kept_costs
from speclrm.app.options import EngineOptions
from speclrm.app.simulation import simulated
from speclrm.runtime.engines.simulated.presets import PREFIX, PRESETS, simulated_engines, slices
from speclrm.runtime.engines.simulated.text_world import SimulatedWorld, WorldSettings
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.machine.hardware import read_machine
from speclrm.runtime.protocols import Role
from speclrm.runtime.scheduling.breakeven import Group, StepShape, lateness, predict
from speclrm.runtime.scheduling.controller_settings import ControllerSettings
from speclrm.runtime.scheduling.pacing import Snapshot, pace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speclrm.runtime.engine import EngineCosts

HUNDREDTHS = 100
"""Steps between 0 and 1 in which the least acceptance is looked for."""


class AdviceOptions(BaseModel):
    """``acceptance``: shares of drafted steps that are kept. ``context``: tokens of a track, on average over its life.

    ``token_budget``: of a track; if given, gains are those of a closed set of tracks to the end of the slowest one, else while
    all of them work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    draft: str
    tracks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 20, 110)
    acceptance: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.46, 0.72, 0.86)
    context: Annotated[int, Field(ge=1)] = 1000
    step_tokens: Annotated[int, Field(ge=1)] = 32
    token_budget: Annotated[int, Field(ge=1)] | None = None


class Advised(BaseModel):
    """``alone``: forecast tokens a second of the target alone. ``pays_from``: the least acceptance at which drafting every step
    is no slower, in hundredths; None if not even 1 is enough. ``gains``: tokens a second over ``alone``, by acceptance.
    """

    model_config = ConfigDict(frozen=True)

    placement: str
    tracks: int
    alone: float
    pays_from: float | None
    gains: dict[float, float]


class Advice(BaseModel):
    """``costs``: where those of the engines come from."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    costs: str
    rows: tuple[Advised, ...]


class _Placement(NamedTuple):
    """``sliced``: the engines share a device by time slices, so the draft has a pace."""

    name: str
    costs: Mapping[Role, EngineCosts]
    sliced: bool


def advise(options: AdviceOptions) -> Advice:
    """Forecasts by the formula that ``--speculate auto`` decides by (``runtime/scheduling/breakeven.py``).

    Raises:
        ModelError: there is no simulated engine of a name.
        SettingsError: one engine is simulated and one is not, or nothing was measured of the pair on this machine.
    """
    source, placements = _placements(options)
    rows = [_row(options, placement, tracks) for placement in placements for tracks in options.tracks]
    return Advice(costs=source, rows=tuple(rows))


def _placements(options: AdviceOptions) -> tuple[str, list[_Placement]]:
    names = {Role.TARGET: options.target, Role.DRAFT: options.draft}
    if not simulated(EngineOptions(target=options.target, draft=options.draft)):
        costs = kept_costs(options.target, options.draft, read_machine())
        if len(costs) < len(names):
            raise SettingsError(
                f"Nothing is known of what {options.target} and {options.draft} cost on this machine. Measure them with "
                f"`speclrm calibrate {options.target} --draft {options.draft}`, run them once, or give simulated ones: "
                f"{PREFIX}qwq-32b and {PREFIX}r1-1.5b."
            )
        sliced = all(one.slowdown > 0 for one in costs.values())
        return "measured on this machine", [_Placement("as measured", costs, sliced)]
    if any(name.removeprefix(PREFIX) not in PRESETS for name in names.values()):
        return "of the preset", [_simulated("as measured", names)]
    return "measured on an H200", [
        _simulated("a device each", names),
        _simulated("one, by time slices", names, shared=True),
        _simulated("one, by MPS (assumed)", names, shared=True, mps=True),
    ]


def _simulated(name: str, names: Mapping[Role, str], *, shared: bool = False, mps: bool = False) -> _Placement:
    world = SimulatedWorld(WorldSettings((0.5,)), 0)  # which costs do not depend on
    engines = simulated_engines(names, world, shared_device=shared, mps=mps)
    return _Placement(name, {role: engine.known_costs for role, engine in engines.items()}, slices(engines))


def _row(options: AdviceOptions, placement: _Placement, tracks: int) -> Advised:
    target, draft = placement.costs[Role.TARGET], placement.costs[Role.DRAFT]
    length, settings = float(options.step_tokens), ControllerSettings()
    shape = StepShape(drafted=length, lost=length, written=length, context=float(options.context))
    alone = predict([Group(tracks, None)], shape, target, None).rate

    def gain(acceptance: float) -> float:
        interval_s = 0.0
        if placement.sliced:
            interval_s = pace(Snapshot(tracks, acceptance, shape, target, draft)).interval_s
        groups = [Group(tracks, acceptance)]
        found = predict(groups, shape, target, draft, interval_s)
        sooner = predict(groups, shape, target, draft, interval_s, ahead=True)
        if sooner.rate > found.rate * (1 + settings.margin):
            found = sooner
        late = 0.0
        if options.token_budget is not None:
            late = settings.tail * lateness(tracks, found.spread, 0.0, options.token_budget / length)
        return found.rate / alone / (1 + late)

    least = bisect_left(range(HUNDREDTHS + 1), True, key=lambda part: gain(part / HUNDREDTHS) >= 1)
    return Advised(
        placement=placement.name,
        tracks=tracks,
        alone=alone,
        pays_from=least / HUNDREDTHS if least <= HUNDREDTHS else None,
        gains={acceptance: gain(acceptance) for acceptance in options.acceptance},
    )
