"""Checks a trace on its own: finds from the events alone whether the rules hold that every trace must keep.

It uses nothing of the runtime but the event models, and none of the folds that live displays and summaries use: it
computes the vote, the rows of ``results.jsonl`` and the figures of ``summary.json`` independently and compares. An
unfinished run is reported and is no violation.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from speclrm.runtime.events import (
    EngineFailed,
    EngineRecovered,
    Event,
    EventBase,
    MethodsChosen,
    Operation,
    OperationDropped,
    ProblemStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    SampleEvent,
    SampleFinished,
    StepCommitted,
    StepDrafted,
    StepEvent,
    StepGated,
    StepScored,
    StepWritten,
    TrackContinued,
    TrackEvent,
    TrackFinished,
    TrackPaused,
    TrackResumed,
    TrackStarted,
    VoteUpdated,
)
from speclrm.runtime.trace.checked_samples import CheckedSample, CheckedTrack, PendingStep, original_winner, winner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import JsonValue

VIOLATIONS_MAX = 1_000
"""Violations that are kept; the others are counted."""
ROUNDING = 1e-6


class Violation(NamedTuple):
    """``line``: from 1, or 0 for the file as a whole. ``rule``: one word for programs."""

    path: str
    line: int
    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """``events``: how many were checked. ``unfinished``: what had not ended by the end of the trace."""

    events: int
    violations: tuple[Violation, ...]
    more: int
    unfinished: tuple[str, ...]


class Checker:
    """Takes the events of a trace in order, each with its place. Memory grows with the open samples, not with the trace."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []
        self._more = 0
        self._events = 0
        self._place = ("", 0)
        self._seq: int | None = None
        self._t = 0.0
        self._attempt = 0
        self._run: RunStarted | None = None
        self._end: RunFinished | None = None
        self._down: dict[str, float] = {}
        self._samples: dict[tuple[str, int], CheckedSample] = {}
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._count: Counter[str] = Counter()
        self._tokens: dict[str, Counter[str]] = defaultdict(Counter)
        self._scores = [0] * 10

    # -------------------------------------------------------------------------------------------------------- the events

    def add(self, path: Path | str, line: int, event: Event) -> None:
        self._place = str(path), line
        self._events += 1
        self._order(event)
        if isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, RunFinished):
            self._end = event
            self._down.clear()  # another attempt begins with engines of its own
        elif isinstance(event, RunResumed):
            self._down.clear()
        elif isinstance(event, EngineFailed):
            if event.engine in self._down:
                self._wrong("engine", f"{event.engine} failed a second time without having worked again")
            self._down[event.engine] = event.t
        elif isinstance(event, EngineRecovered):
            failed_s = self._down.pop(event.engine, None)
            if failed_s is None:
                self._wrong("engine", f"{event.engine} works again, though it had not failed")
        elif isinstance(event, SampleEvent):
            sample = self._samples.setdefault((event.problem, event.repeat), CheckedSample())
            if sample.done:
                self._wrong("closed", f"{_kind(event)} after the end of sample {event.problem}/{event.repeat}")
                return
            self._sample(event, sample)

    def broken(self, path: Path | str, line: int, text: str) -> None:
        """Notes a line that is no event."""
        self._place = str(path), line
        self._wrong("unreadable", text)
        self._seq = None  # what follows may have any number

    def _order(self, event: Event) -> None:
        if self._events == 1 and not isinstance(event, RunStarted):
            self._wrong("order", f"a trace begins with run_started, not with {event.kind}")
        if self._seq is not None and event.seq != self._seq + 1:
            self._wrong("seq", f"number {event.seq} follows {self._seq}")
        if event.t < self._t:
            self._wrong("time", f"time goes back from {self._t} to {event.t} s")
        if event.attempt < self._attempt:
            self._wrong("attempt", f"attempt {event.attempt} after attempt {self._attempt}")
        if self._end is not None:
            if event.attempt == self._attempt:
                self._wrong("closed", f"{event.kind} after run_finished")
            self._end = None
        self._seq, self._t, self._attempt = event.seq, max(self._t, event.t), max(self._attempt, event.attempt)

    def _begin(self, event: RunStarted) -> None:
        if self._run is not None and event.attempt == 0:
            self._wrong("order", "a second run_started")
        if self._run is not None and event.run != self._run.run:
            self._wrong("order", f"run_started of another run, {event.run}")
        self._run = self._run or event

    def _sample(self, event: SampleEvent, sample: CheckedSample) -> None:
        if isinstance(event, MethodsChosen):
            self._spend("target", event.operations, sample, None)
            self._tokens["target"]["choice"] += _output(event.operations)
        elif isinstance(event, VoteUpdated):
            self._vote(event, sample)
        elif isinstance(event, SampleFinished):
            self._finish_sample(event, sample)
        elif isinstance(event, OperationDropped):
            self._spend(event.role, (event.operation,), sample, event)
            fate = "useless" if event.reason == "useless" else "dropped"
            fate = "judge" if event.purpose == "score" else fate
            self._tokens[event.role][fate] += event.operation.output_tokens
        elif isinstance(event, TrackStarted):
            if event.track in sample.tracks:
                self._wrong("track", f"track {event.track} started a second time")
            sample.tracks[event.track] = CheckedTrack()
        elif isinstance(event, TrackEvent):
            track = sample.tracks.get(event.track)
            if track is None:
                self._wrong("track", f"{_kind(event)} of track {event.track}, which was not started")
                track = sample.tracks[event.track] = CheckedTrack()
            self._track(event, sample, track)
        elif isinstance(event, ProblemStarted):
            sample.gold = event.gold

    def _track(self, event: TrackEvent, sample: CheckedSample, track: CheckedTrack) -> None:
        if isinstance(event, TrackResumed):
            self._take_up(track)
            return
        if track.reason is not None:
            rule = "closed"
            if isinstance(event, TrackFinished):
                self._wrong(rule, f"track {event.track} finished a second time")
            else:
                self._wrong(rule, f"{_kind(event)} after the end of track {event.track}")
        if isinstance(event, TrackPaused):
            self._at_step(event.step, track, "paused at")
            if track.paused:
                self._wrong("paused", f"track {event.track} paused a second time")
            track.paused = event.reason != "turn"
        elif isinstance(event, TrackContinued):
            self._at_step(event.step, track, "continued at")
            if not track.paused:
                self._wrong("paused", f"track {event.track} continued, though it was not paused")
            track.paused = False
        elif track.paused and isinstance(event, StepEvent) and not isinstance(event, OperationDropped):
            self._wrong("paused", f"{_kind(event)} of track {event.track}, which is paused")
        if isinstance(event, StepDrafted):
            self._at_step(event.step, track, "drafted")
            self._spend("draft", event.operations, sample, event)
            self._forget(track)
            fate = "rejected" if event.left else "dropped"
            track.pending = PendingStep("draft", event.step, len(event.ids), _output(event.operations), fate)
            self._count["drafted"] += 1
        elif isinstance(event, StepWritten):
            self._at_step(event.step, track, "written")
            self._spend("target", event.operations, sample, event)
            before = track.pending
            rewrite = event.write_kind == "rewrite"
            if rewrite and (before is None or before.kind != "draft" or before.step != event.step):
                self._wrong("fate", f"step {event.step} rewritten, though no draft of it was pending")
            self._forget(track, "rejected" if rewrite else None)
            track.pending = PendingStep(event.write_kind, event.step, len(event.ids), _output(event.operations))
        elif isinstance(event, StepScored):
            self._at_step(event.step, track, "scored")
            if track.pending is None:
                self._wrong("fate", f"step {event.step} scored, though none was pending")
            self._spend("target", event.operations, sample, event)
            self._tokens["target"]["judge"] += _output(event.operations)
            if event.scorer == "judge":
                self._scores[min(9, max(0, round(event.value)))] += 1
        elif isinstance(event, StepGated):
            if event.verdict == "doubtful" and track.pending is not None:
                track.pending.fate = "rejected"
        elif isinstance(event, StepCommitted):
            self._commit(event, track)
        elif isinstance(event, TrackFinished):
            if event.tokens != track.tokens:
                self._wrong(
                    "tokens", f"track {event.track} ends with {event.tokens} tokens; its steps have {track.tokens}"
                )
            track.lapsed = track.pending
            self._forget(track)
            track.reason, track.answer, track.error = event.reason, event.answer, event.error
            track.place, sample.ends = sample.ends, sample.ends + 1

    def _take_up(self, track: CheckedTrack) -> None:
        """Notes that the track continues in another attempt, with the step that it was on."""
        if track.reason not in ("cancelled", "error"):
            self._wrong("closed", f"a track goes on that ended with {track.reason}")
        pending, track.lapsed = track.lapsed, None
        if pending is not None:
            self._tokens["draft" if pending.kind == "draft" else "target"][pending.fate] -= pending.spent
            if pending.kind == "draft":
                self._count[pending.fate] -= 1
        track.pending, track.reason, track.error, track.place = pending, None, None, -1

    def _at_step(self, step: int, track: CheckedTrack, what: str) -> None:
        if step != track.steps:
            self._wrong("step", f"step {step} {what} after {track.steps} committed ones")

    def _commit(self, event: StepCommitted, track: CheckedTrack) -> None:
        pending, track.pending = track.pending, None
        self._at_step(event.step, track, "committed")
        if pending is None or pending.step != event.step:
            self._wrong("fate", f"step {event.step} committed, though none was pending")
        elif pending.kind != event.origin:
            self._wrong("fate", f"step {event.step} committed as {event.origin}; what was pending is a {pending.kind}")
        elif event.tokens < pending.ids:
            self._wrong("tokens", f"step {event.step} committed with {event.tokens} tokens; it has {pending.ids} ids")
        if pending is not None:
            counts = self._tokens["draft" if pending.kind == "draft" else "target"]
            kept = min(pending.spent, event.tokens)
            counts["kept"] += kept
            counts["dropped"] += pending.spent - kept
            counts["forced"] += event.tokens - kept
        name = {"draft": "accepted", "rewrite": "rewritten", "write": "written", "closing": "closings"}[event.origin]
        self._count[name] += 1
        track.steps += 1
        track.tokens += event.tokens
        if event.score is not None:
            track.scores.append(event.score)

    def _forget(self, track: CheckedTrack, fate: str | None = None) -> None:
        """Notes that the pending step will not be committed."""
        pending, track.pending = track.pending, None
        if pending is not None:
            role = "draft" if pending.kind == "draft" else "target"
            fate = fate or pending.fate
            self._tokens[role][fate] += pending.spent
            if pending.kind == "draft":
                self._count[fate] += 1

    def _spend(
        self, role: str, operations: tuple[Operation, ...], sample: CheckedSample, event: TrackEvent | None
    ) -> None:
        for one in operations:
            counts = self._tokens[role]
            counts["generated"] += one.output_tokens
            counts["prompt"] += one.prompt_tokens
            counts["cached"] += one.cached_tokens
            if one.cached_tokens > one.prompt_tokens:
                self._wrong("operation", f"{one.id}: {one.cached_tokens} cached of {one.prompt_tokens} prompt tokens")
            if event is not None and not one.id.startswith(f"{event.problem}/{event.repeat}/{event.track}/"):
                self._wrong("operation", f"{one.id} stands at track {event.problem}/{event.repeat}/{event.track}")
            dropped = isinstance(event, OperationDropped)
            before = sample.operations.get(one.id)
            # A later share of a request carries no prompt; an abandoned request may be sent again.
            if before == "whole" and one.prompt_tokens > 0:
                self._wrong("operation", f"{one.id} is there a second time")
            sample.operations[one.id] = "dropped" if dropped else "whole"

    # --------------------------------------------------------------------------------------------------- votes and results

    def _vote(self, event: VoteUpdated, sample: CheckedSample) -> None:
        named = [name for members in event.classes for name in members]
        if len(set(named)) != len(named):
            self._wrong("vote", "a track votes twice")
        for name in named:
            track = sample.tracks.get(name)
            if track is None or track.reason is None or track.answer is None:
                self._wrong("vote", f"track {name} votes without having ended with an answer")
        known = {name for members in sample.classes for name in members}
        if not known <= set(named):
            self._wrong("vote", f"votes went away: {', '.join(sorted(known - set(named)))}")
        if event.leader is not None and event.leader not in named:
            self._wrong("vote", f"{event.leader} leads without a vote")
        elif self._fidelity is not None and named:
            if self._fidelity == "none":
                leader = winner(event.classes, sample.tracks, shortest=self._recipe.get("ties") == "shortest")
            else:
                leader = original_winner(event.classes, sample.tracks)
            if event.leader != leader:
                self._wrong("vote", f"{event.leader} leads; by the votes and scores it is {leader}")
        sample.classes, sample.leader = event.classes, event.leader

    @property
    def _fidelity(self) -> Literal["none", "original"] | None:
        """Returns whose rule chooses the winner, of the two that are known here; None if that is not recorded."""
        fidelity = self._recipe.get("fidelity")
        return fidelity if fidelity in ("none", "original") else None

    @property
    def _recipe(self) -> Mapping[str, JsonValue]:
        recipe = self._run.config.get("recipe") if self._run else None
        return recipe if isinstance(recipe, dict) else {}

    def _finish_sample(self, event: SampleFinished, sample: CheckedSample) -> None:
        sample.done = True
        for name, track in sample.tracks.items():
            if track.reason is None:
                self._wrong("track", f"track {name} of a finished sample has no end")
        won = sample.tracks.get(event.winner) if event.winner is not None else None
        if event.winner is not None and won is None:
            self._wrong("vote", f"the winner {event.winner} is no track of the sample")
        if event.winner != sample.leader and self._fidelity is not None:
            self._wrong("vote", f"{event.winner} won, but {sample.leader} led at the last vote")
        if event.answer != (won.answer if won else None):
            self._wrong("vote", "the answer is not the winner's")
        if (event.answer is None) == (event.outcome in ("correct", "wrong", "grader_failed", "ungraded")):
            self._wrong("vote", f"outcome {event.outcome} with {'no' if event.answer is None else 'an'} answer")
        self._rows[event.problem, event.repeat] = sample.row(event)
        # A sample's end frees the memory of its operations and tracks.
        self._samples[event.problem, event.repeat] = CheckedSample(done=True)

    def _wrong(self, rule: str, text: str) -> None:
        if len(self._violations) < VIOLATIONS_MAX:
            self._violations.append(Violation(*self._place, rule, text))
        else:
            self._more += 1

    # -------------------------------------------------------------------------------------------------------- the end

    def compare_results(self, path: Path) -> None:
        """Compares a ``results.jsonl`` with the trace. The whole trace must have been added."""
        seen: set[tuple[str, int]] = set()
        # Not by `splitlines`: texts may hold what Unicode calls the end of a line, and a row ends at "\n" alone.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        for number, line in enumerate(lines if lines != [""] else [], start=1):
            self._place = str(path), number
            try:
                row = json.loads(line)
                key = row["problem"], row["repeat"]
            except (ValueError, KeyError, TypeError):
                self._wrong("results", "no row of results")
                continue
            if key in seen:
                self._wrong("results", f"sample {key[0]}/{key[1]} is there a second time")
            seen.add(key)
            if key not in self._rows:
                self._wrong("results", f"sample {key[0]}/{key[1]} is not finished in the trace")
            else:
                self._compare("results", self._rows[key], row, f"sample {key[0]}/{key[1]}: ")
        self._place = str(path), 0
        for problem, repeat in self._rows.keys() - seen:
            self._wrong("results", f"sample {problem}/{repeat} of the trace is missing")

    def compare_summary(self, path: Path) -> None:
        """Compares a ``summary.json`` with the trace. The whole trace must have been added."""
        self._place = str(path), 0
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            said = {role: dict(counts) for role, counts in given["tokens"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            self._wrong("summary", "no summary of a run")
            return
        if self._end is not None:
            for sample in self._samples.values():
                for track in sample.tracks.values():
                    self._forget(track)
        outcomes = Counter(row["outcome"] for row in self._rows.values())
        graded = sum(count for outcome, count in outcomes.items() if outcome != "ungraded")
        ours: dict[str, Any] = {
            name: self._count[name] for name in ("drafted", "accepted", "rewritten", "written", "closings")
        }
        ours |= {
            "run": self._run.run if self._run else "",
            "status": self._end.status if self._end else "running",
            "outcomes": dict(outcomes),
            "accuracy": outcomes["correct"] / graded if graded else None,
            "scores": self._scores,
            "seconds": self._end.seconds if self._end else self._t,
        }
        self._compare("summary", ours, given, "")
        for role, counts in said.items():
            mine: dict[str, Any] = {name: self._tokens[role][name] for name in counts}
            self._compare("summary", mine, counts, f"{role} tokens ")
            fates = sum(counts.get(name, 0) for name in ("kept", "rejected", "dropped", "useless", "judge", "choice"))
            if self._end is not None and fates != counts.get("generated"):
                self._wrong("summary", f"{role}: {counts.get('generated')} tokens generated, {fates} accounted for")

    def _compare(self, rule: str, ours: dict[str, Any], given: dict[str, Any], what: str) -> None:
        for name, value in ours.items():
            if name not in given:
                self._wrong(rule, f"{what}{name} is missing")
            elif not _same(value, given[name]):
                self._wrong(rule, f"{what}{name} is {given[name]!r}; the trace gives {value!r}")

    def report(self) -> Report:
        unfinished: list[str] = []
        if self._events and self._end is None:
            unfinished.append("the run did not end")
        for (problem, repeat), sample in self._samples.items():
            if not sample.done:
                names = [name for name, track in sample.tracks.items() if track.reason is None]
                held = f": tracks {', '.join(names)}" if names else ""
                unfinished.append(f"sample {problem}/{repeat} did not end{held}")
        drafted, fates = self._count["drafted"], sum(self._count[name] for name in ("accepted", "rejected", "dropped"))
        pending = sum(
            track.pending is not None and track.pending.kind == "draft"
            for sample in self._samples.values()
            for track in sample.tracks.values()
        )
        if drafted != fates + pending:
            self._wrong("fate", f"{drafted} steps drafted; {fates} kept, rejected or dropped and {pending} open")
        return Report(self._events, tuple(self._violations), self._more, tuple(unfinished))


def _kind(event: EventBase) -> str:
    return str(getattr(event, "kind", ""))


def _output(operations: tuple[Operation, ...]) -> int:
    return sum(one.output_tokens for one in operations)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= ROUNDING * max(1.0, abs(one))
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) <= set(other) and all(_same(one[name], other[name]) for name in one)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return one == other
