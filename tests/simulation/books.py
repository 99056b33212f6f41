"""The engines' own ledgers: what each was asked and what it gave away, kept beside the runtime and compared with its trace."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter, defaultdict
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attack.attempts import Fault
from workloads import operations

from speclrm.runtime.clock import now_s
from speclrm.runtime.engines.restarting import EngineBehind
from speclrm.runtime.events import StepDrafted, StepWritten
from speclrm.runtime.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from pydantic import JsonValue

    from speclrm.runtime.engine import Delta, Engine, EngineStats, Request
    from speclrm.runtime.errors import FailureReason
    from speclrm.runtime.events import Event


@dataclass(eq=False)
class Entry:
    """One request as its engine saw it. ``began_s``: on the loop's clock."""

    request: Request
    prompt: tuple[int, ...]
    ids: list[int] = field(default_factory=list[int])
    open: bool = True
    began_s: float = field(default_factory=now_s)


@dataclass
class Books:
    """Of all engines. ``flights``: how often each operation was sent to its lane."""

    entries: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict[str, list[Entry]](list))
    flights: Counter[str] = field(default_factory=Counter[str])
    unread: set[str] = field(default_factory=set[str])
    """Operations that were given what nobody takes."""

    def after(self, moment_s: float) -> list[str]:
        """Returns operations of the run itself that were sent to an engine later than that."""
        return [
            name
            for name, entries in self.entries.items()
            if not name.startswith("caller-") and any(entry.began_s > moment_s for entry in entries)
        ]

    @property
    def open(self) -> list[str]:
        return [name for name, entries in self.entries.items() for entry in entries if entry.open]


class Booked(EngineBehind):
    """An engine whose requests are written down."""

    def __init__(self, engine: Engine, books: Books) -> None:
        super().__init__(engine)
        self._books = books

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        entry = Entry(request, tuple(request.prompt_ids))
        self._books.entries[request.id].append(entry)
        try:
            async with aclosing(self.engine.stream(request)) as deltas:
                async for delta in deltas:
                    entry.ids.extend(delta.ids)
                    yield delta
        finally:
            entry.open = False

    def stats(self) -> EngineStats:
        return self.engine.stats()

    async def aclose(self) -> None:
        await self.engine.aclose()


class BookedReturning(Booked):
    """The same of an engine that may come back."""

    async def check(self) -> None:
        await self.engine.check()  # type: ignore[attr-defined]


class BookedRestartable(Booked):
    """The same of an engine that can be started anew."""

    restarts = 3

    async def restart(self, reason: FailureReason) -> Mapping[str, JsonValue]:
        return await self.engine.restart(reason)  # type: ignore[attr-defined, no-any-return]


def disagreements(
    books: Books, events: Sequence[Event], seed: int | None, *, resumed: bool, original: bool
) -> list[Fault]:
    """Where the trace and the engines do not say the same. ``events``: all that were published, for whichever caller.

    ``resumed``: steps may hold words of an earlier attempt. ``original``: steps leave out what SSR's code left out.
    """
    told: defaultdict[str, int] = defaultdict(int)
    firsts: Counter[str] = Counter()
    seeds: dict[str, int | None] = {}
    for _, operation in operations(events):
        told[operation.id] += operation.output_tokens
        firsts[operation.id] += bool(operation.digest)
        seeds[operation.id] = operation.seed
    found: list[str] = []
    for name, entries in books.entries.items():
        given = sum(len(entry.ids) for entry in entries)
        if name not in told:
            found.append(f"{name} was sent to an engine and is in no event")
        elif told[name] != given and name not in books.unread and not _too_long(entries):
            found.append(f"{name}: engines gave {given} tokens, the trace has {told[name]}")
        wanted = derive_seed(seed, name)
        wrong = {entry.request.seed for entry in entries} - {wanted, seeds.get(name, wanted)}
        if wrong:
            found.append(f"{name} was sent with seed {wrong.pop()}, not with {wanted}")
        found += _gaps(name, entries)
    for name, count in books.flights.items():
        if firsts[name] > count or (name in told and not firsts[name] and not resumed):
            found.append(f"{name} was sent {count} times and is accounted for {firsts[name]} times")
    if not resumed and not original:
        found += _words(books, events)
    return [Fault("ledger", text) for text in found[:3]]


def _too_long(entries: Sequence[Entry]) -> bool:
    """Whether an engine gave more than it was asked for, of which nothing is taken."""
    return any(len(entry.ids) > entry.request.max_tokens for entry in entries)


def _gaps(name: str, entries: Sequence[Entry]) -> list[str]:
    """Whether each request goes on exactly where the one before it stopped, or begins again from the start."""
    for before, entry in itertools.pairwise(entries):
        grown = len(entry.prompt) - len(before.prompt)
        if grown > 0 and entry.prompt[len(before.prompt) :] != tuple(before.ids):
            return [f"{name} goes on behind other words than it had"]
        if grown == 0 and before.ids and entry.request.max_tokens < before.request.max_tokens:
            return [f"{name} forgot what it had"]
    return []


def _words(books: Books, events: Sequence[Event]) -> list[str]:
    """Steps made of other words than their own requests brought."""
    found: list[str] = []
    for event in events:
        if not isinstance(event, StepDrafted | StepWritten) or (
            isinstance(event, StepWritten) and event.write_kind == "closing"
        ):
            continue
        place = 0
        for operation in event.operations:
            kept = operation.output_tokens - len(operation.tail)
            given = b"".join(_packed(entry.ids) for entry in books.entries.get(operation.id, ()))
            if _packed(event.ids[place : place + kept]) not in given:
                found.append(
                    f"step {event.step} of {event.problem}/{event.repeat}/{event.track} has words of somebody else"
                )
            place += kept
    return found


def _packed(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()
