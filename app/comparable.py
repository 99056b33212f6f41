"""Says how two runs differ in what makes figures comparable: problems, data, budget, models, machine."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from speclrm.app.settings_diff import changed_models, differing, recipe, same_model
from speclrm.runtime.events import ProblemStarted, RunResumed, RunStarted, SampleFinished

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pydantic import JsonValue

    from speclrm.app.settings_diff import Changes
    from speclrm.runtime.events import Event

BUDGET = "token_budget"
"""The setting of the method that accuracy and cost depend on most: without it no figure says anything."""
PROBLEMS, REPEATS, DATA, MACHINE = "problems", "repeats", "data", "machine"
ON_COMMON = (PROBLEMS, REPEATS, DATA)
"""What no longer differs where only the samples are compared that both have, of problems that are the same in both."""
SIMULATED = "simulated: byte for byte"
NAMED = 3
"""Problems that are named where they differ."""
_VERSIONS = {"speclrm": "answers were graded", "vllm": "models were run"}


@dataclass(slots=True)
class Facts:
    """What a run is to be compared by, a fold over its events; or several runs of one configuration together.

    ``problems``: a digest of each one's text and gold answer. ``samples``: how many have ended, by problem and repeat.
    ``machines``: of each start. ``overrides``: settings that were changed on the way.
    """

    config: Mapping[str, JsonValue] = field(default_factory=dict[str, "JsonValue"])
    problems: dict[str, str] = field(default_factory=dict[str, str])
    samples: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    machines: list[str] = field(default_factory=list[str])
    versions: dict[str, list[str]] = field(default_factory=dict[str, "list[str]"])
    overrides: set[str] = field(default_factory=set[str])

    def add(self, event: Event) -> None:
        if isinstance(event, ProblemStarted):
            text = json.dumps([event.text, event.gold])
            self.problems.setdefault(event.problem, hashlib.sha256(text.encode()).hexdigest()[:16])
        elif isinstance(event, SampleFinished):
            self.samples[event.problem, event.repeat] = 1
        elif isinstance(event, RunStarted | RunResumed):
            self.config = self.config or event.config
            _note(self.machines, _machine(event.machine, event.config))
            for package in _VERSIONS:
                _note(self.versions.setdefault(package, []), event.versions.get(package, "unknown"))
            if isinstance(event, RunResumed):
                self.overrides |= event.overrides.keys()

    def count(self) -> Counter[str]:
        """How many samples of each problem have ended."""
        counts: Counter[str] = Counter()
        for (problem, _), samples in self.samples.items():
            counts[problem] += samples
        return counts


def together(several: Sequence[Facts]) -> Facts:
    """The facts of runs of one configuration."""
    whole = Facts(config=several[0].config)
    for one in several:
        whole.problems = one.problems | whole.problems
        whole.samples.update(one.samples)
    return whole


def differences(base: Facts, other: Facts) -> Changes:
    """What of two runs makes accuracy and cost incomparable, each with its two sides; the machine is not part of it."""
    found = _settings(base.config, other.config) | _problems(base, other)
    if not found.keys() & {PROBLEMS, DATA} and base.samples.keys() != other.samples.keys():
        both = len(base.samples.keys() & other.samples.keys())
        repeats = [{repeat for _, repeat in side.samples} for side in (base, other)]
        if repeats[0] != repeats[1]:
            found[REPEATS] = f"{_numbers(repeats[0])}; {both} samples are in both", _numbers(repeats[1])
        else:
            found[REPEATS] = f"{len(base.samples)} samples; {both} are in both", f"{len(other.samples)} samples"
    return found


def other_means(base: Facts, other: Facts) -> Changes:
    """The same for means over samples of several runs: any repeats will do, as long as problems weigh the same."""
    found = _settings(base.config, other.config) | _problems(base, other)
    one, two = base.count(), other.count()
    if not found and any(one[name] * two.total() != two[name] * one.total() for name in one):
        found[REPEATS] = "more samples of some problems", "more of others"
    return found


def other_machine(base: Facts, other: Facts) -> tuple[str, str] | None:
    """What makes seconds of the two incomparable; None where they can be compared. Virtual time is the same anywhere."""
    sides = [base, other]
    if all(side.config.get("reproducibility") == SIMULATED for side in sides):
        return None
    if len(base.machines) == 1 and base.machines == other.machines:
        return None
    one, two = ("; then ".join(filter(None, side.machines)) or "not recorded" for side in sides)
    return one, two


def remarks(base: Facts, other: Facts) -> list[str]:
    """What makes two comparable runs less alike."""
    found: list[str] = []
    for package, what in _VERSIONS.items():
        one, two = (", ".join(side.versions.get(package, [])) for side in (base, other))
        if one != two:
            found.append(f"{what} by other versions of {package}: {one or 'unknown'} beside {two or 'unknown'}")
    for side, which in ((base, "first"), (other, "second")):
        if side.overrides:
            found.append(f"settings were changed while the {which} run went on: {', '.join(sorted(side.overrides))}")
    hashes = [
        data.get("sha256") if isinstance(data := side.config.get("data"), dict) else None for side in (base, other)
    ]
    if None not in hashes and hashes[0] != hashes[1]:
        found.append("the files of the data differ, though not in the problems that are compared")
    return found


def of_both(base: Facts, other: Facts) -> set[tuple[str, int]]:
    """The samples that both have, of problems that are the same in both."""
    return {
        sample
        for sample in base.samples.keys() & other.samples.keys()
        if base.problems.get(sample[0]) == other.problems.get(sample[0])
    }


def _settings(base: Mapping[str, JsonValue], other: Mapping[str, JsonValue]) -> Changes:
    """Of the budget, the models and what they are given. The problems stand for the dataset."""
    found: Changes = {}
    one, two = recipe(base)[BUDGET], recipe(other)[BUDGET]
    if one != two:
        found[BUDGET] = one, two
    for name, values in differing(base, other, "task").items():
        if name != "dataset" and not (name == "target" and same_model(base, other, "target")):
            found[name] = values
    for name, values in changed_models(base, other).items():
        role = name.partition("'")[0]
        if base.get(role) == other.get(role):  # else the names say it, or it is another method
            found[name] = values
    return found


def _problems(base: Facts, other: Facts) -> Changes:
    one, two = ({problem for problem, _ in side.samples} for side in (base, other))
    found: Changes = {}
    if one != two:
        sides = [
            f"{len(mine)} of {side.config.get('dataset')}{_only(mine - both)}"
            for side, mine, both in ((base, one, two), (other, two, one))
        ]
        found[PROBLEMS] = f"{sides[0]}; {len(one & two)} are in both", sides[1]
    changed = sorted(name for name in one & two if base.problems.get(name) != other.problems.get(name))
    if changed:
        found[DATA] = (
            f"{len(one & two)} problems are in both",
            f"{len(changed)} of them have another text or answer: {_some(changed)}",
        )
    return found


def _only(names: Collection[str]) -> str:
    return f" ({len(names)} only here: {_some(sorted(names))})" if names else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _numbers(repeats: Collection[int]) -> str:
    shown = ", ".join(map(str, sorted(repeats)[:5]))
    return f"{len(repeats)} of each problem ({shown}{', ...' if len(repeats) > 5 else ''})"


def _machine(machine: Mapping[str, JsonValue], config: Mapping[str, JsonValue]) -> str:
    """What of a machine the times depend on most, in words; empty where nothing is recorded."""
    words = [str(machine["processor"])] if machine.get("processor") else []
    words += [f"{machine['cores']} cores"] if machine.get("cores") else []
    words += [str(device.get("name")) for device in cast("list[dict[str, Any]]", config.get("devices") or [])]
    return ", ".join(words)


def _note(known: list[str], value: str) -> None:
    if value not in known:
        known.append(value)
