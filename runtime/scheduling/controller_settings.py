"""Holds the numbers that the controller decides by, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Frozen: one set for a runtime. Steps are those of tracks, verdicts are on drafted steps, shares lie between 0 and 1."""

    look_s: float = 0.25
    """Seconds between two looks at the engines' counters."""
    look_iterations: int = 16
    """Iterations that an engine must have made since the last look: fewer tell too little of what one costs."""
    decide_s: float = 1.0
    """Seconds between two decisions, so that what one changed can be seen before the next."""
    tracks_moved: float = 0.25
    """Share of the tracks that may begin or end before it is decided anew at once."""
    gain_on: float = 1.05
    """Predicted gain over the target alone from which on speculation begins at all."""
    hope_on: float = 1.1
    """The gain that must be hoped for, so that problems are probed at all: probes cost something, and hopes may fail."""
    hysteresis: float = 0.05
    """Share by which another choice must be predicted to be better before any problem changes."""
    even: float = 0.02
    """Choices whose predictions differ by less are equal: predictions are no better."""
    tail: float = 0.5
    """Share of the slowest track's expected lateness that counts: as tracks end, those that are left become faster."""
    accepted_prior: float = 0.6
    """Acceptance of a problem before its first verdict, as long as no other problem has any."""
    prior_verdicts: float = 8.0
    """Verdicts that the mean acceptance of all problems counts beside a problem's own."""
    verdicts_max: float = 64.0
    """Verdicts that are remembered of a problem: acceptance changes along a track."""
    hopeful: float = 0.95
    """The most acceptance that is hoped for; where not even that pays, no problem is probed."""
    hope: float = 1.5
    """Standard deviations above the mean acceptance that are hoped for."""
    probes: int = 6
    """Verdicts that a problem which does not speculate is probed for."""
    probe_share: float = 0.4
    """Share of the tracks that may try a step at the same time."""
    probe_budget: float = 0.01
    """Share of all steps that probes may be."""
    probes_min: int = 4
    """Probes that are allowed however short the tracks are."""
    probe_steps: int = 16
    """Steps that a track must have to go, so that what a probe tells can still be of use."""
    probe_worth: float = 20.0
    """Steps that a track must save if drafts turn out as well as is hoped for: a probe delays its track by about three, and a
    sample ends with its last track."""
    probe_again: int = 64
    """Steps of a problem after which one that did not pay is probed again; twice as many after each time in vain."""
    look_again: int = 32
    """Steps a track after which one is drafted though nothing seems to pay; twice as many after each time."""
    changes_free: int = 4
    """Changes of a problem's mode after which one that was turned off waits before it is turned on again."""
    moved: float = 0.1
    """A break-even this much under all at which a problem was tried is reason to look at it again at once."""
    outlier: float = 4.0
    """Times the mean beyond which what one request read counts no more."""
    eager_acceptance: float = 0.6
    """Acceptance from which on work is done ahead of scores."""
    eager_cost: float = 0.25
    """Share of an iteration's own cost under which all that grows with the load must be for work ahead."""
