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
    moved: float = 0.25
    """Share of the tracks that may begin or end, or by which verdicts may become more, before it is decided anew at once."""
    margin: float = 0.05
    """Share by which another choice must be predicted to be better than the present one before any problem changes, if all do:
    less if fewer tracks would, except in a crowd. Also the gain from which on work is done ahead of scores.
    """
    change_steps: float = 1.0
    """Steps that a change costs a track: what is being written is broken off."""
    tail: float = 0.8
    """Share of the slowest track's expected lateness that counts."""
    accepted_prior: float = 0.6
    """Acceptance of drafts before the first verdict."""
    prior_verdicts: float = 3.0
    """Verdicts that it counts as."""
    verdicts_others: float = 8.0
    """Verdicts on a problem that those on all others count as, at most."""
    verdicts_max: float = 64.0
    """Verdicts that are remembered of a problem: acceptance changes along a track."""
    favour: float = 0.5
    """Standard deviations above what is known of a problem's acceptance that it is taken for: only drafting tells more. None in
    a crowd, once somebody knows something.
    """
    stay: float = 1.5
    """The same for a problem that drafts, so that a few rejected steps do not turn it off; in a crowd it is ``favour``."""
    crowd: int = 32
    """Tracks from which on they are a crowd: a few tell as much of drafts as all would, and a mistake of all is dear."""
    hope: float = 1.2
    """Standard deviations above it that are hoped for."""
    hope_gain: float = 0.3
    """The gain that must be hoped for, so that a problem is probed: that costs short tracks up to 2 %, and hopes often fail. In
    a crowd, and where many samples follow, it is ``margin``.
    """
    probes: int = 8
    """First steps of tracks that are probed however few steps there are."""
    probe_tracks: float = 0.2
    """Share of the tracks whose first steps may be probed, if that is more."""
    probe_share: float = 0.01
    """Share of all steps that probes of first steps may be, and of a track's steps that later ones may be."""
    try_again: int = 64
    """Steps of a problem after which one that was turned off may be turned on again, and steps of a track after which it is
    probed though there is little hope; twice as many after each time.
    """
