"""Holds a track's token ids, as each model sees them: append-only, and never tokenised again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, overload

from speclrm.runtime.tokens.steps import line_ids, runs, stop_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speclrm.runtime.engine import Tokenizer

DIGEST_BYTES = 9
"""Length of the hash of a request's ids: twelve characters in the trace."""
DECODE_PREFIX = 6
"""Ids decoded before a piece, so that a tokenizer which treats the start of a text specially sees no start. vLLM's own
incremental detokenizer does the same with 5 (v1/engine/detokenizer.py)."""


class Ids(Sequence[int]):
    """A context as it was at one moment, followed by more ids.

    It shares the context's memory, so that waiting requests hold no copies of what may be thousands of ids. The context
    only grows, so the ids before ``length`` stay as they were.
    """

    __slots__ = ("_behind", "_hash", "_ids", "_length")

    def __init__(self, ids: array[int], length: int, behind: tuple[int, ...], known: blake2b | None = None) -> None:
        self._ids = ids
        self._length = length
        self._behind = behind
        self._hash = known

    def __len__(self) -> int:
        return self._length + len(self._behind)

    def __iter__(self) -> Iterator[int]:
        return iter(self.tolist())

    def hashed(self) -> blake2b:
        """Returns a hash of all ids, as 32-bit words; ids that the context has hashed before are not hashed again."""
        state = (
            blake2b(self._ids[: self._length], digest_size=DIGEST_BYTES) if self._hash is None else self._hash.copy()
        )
        if self._behind:
            state.update(array("I", self._behind))
        return state

    def tolist(self) -> list[int]:
        """Returns a copy of all ids."""
        ids = self._ids[: self._length].tolist()
        ids.extend(self._behind)
        return ids

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self.tolist()[index]
            length = self._length  # copies only the requested ids, not the thousands before them
            ids = self._ids[min(start, length) : min(stop, length)].tolist()
            ids.extend(self._behind[max(start - length, 0) : max(stop - length, 0)])
            return ids
        place = range(len(self))[index]
        return self._ids[place] if place < self._length else self._behind[place - self._length]


class Context:
    """One model's view of a track. ``ids`` grows; what is there never changes.

    ``stop_ids``: those that end a step inside the engine. ``line_ids``: those of which every blank line contains at least one.
    """

    __slots__ = ("_hash", "_ids", "line_ids", "stop_ids", "tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids, self.line_ids = stop_ids(tokenizer.vocabulary), line_ids(tokenizer.vocabulary)
        self._ids = array("I", prompt_ids)
        self._hash = blake2b(self._ids, digest_size=DIGEST_BYTES)

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, *more: Sequence[int], length: int | None = None) -> Ids:
        """Returns the first ``length`` ids (default: all), followed by more."""
        behind = tuple(chain.from_iterable(more))
        whole = len(self._ids)
        if length is None or length == whole:
            return Ids(self._ids, whole, behind, self._hash.copy())
        return Ids(self._ids, length, behind)

    def append(self, ids: Sequence[int]) -> None:
        new = array("I", ids)
        self._ids.extend(new)
        self._hash.update(new)

    def text_of(self, ids: Sequence[int], before: Sequence[int] = (), length: int | None = None) -> str:
        """Returns the text of ids that follow this context, or its first ``length`` ids, with others ``before`` them."""
        end = len(self._ids) if length is None else length
        prefix = [*self._ids[max(0, end - DECODE_PREFIX) : end], *before][-DECODE_PREFIX:]
        known = self.tokenizer.decode(prefix)
        return self.tokenizer.decode([*prefix, *ids])[len(known) :]

    @property
    def thinking(self) -> bool:
        """Whether a think mark is open."""
        vocabulary = self.tokenizer.vocabulary
        if vocabulary.think_open is None or vocabulary.think_close is None:
            return False
        for token in reversed(self._ids):
            if token == vocabulary.think_close:
                return False
            if token == vocabulary.think_open:
                return True
        return False


def translate(ids: Sequence[int], text: str, source: Tokenizer, target: Tokenizer) -> Sequence[int]:
    """Returns the same piece of text in another model's ids. A control id becomes that of the same mark, if the other
    model has it, and nothing else becomes one.

    Equal vocabularies share ids, except those of marks, whose numbers may differ even then. An id that the source's
    tokenizer does not have (of a padded model) is no text, and left out: the other model's engine would refuse it.
    """
    if source is target:
        return ids
    if max(ids, default=0) >= source.vocabulary.size:
        ids = [token for token in ids if token < source.vocabulary.size]
    same = source.vocabulary.fingerprint == target.vocabulary.fingerprint
    control, foreign = source.vocabulary.control_ids, target.vocabulary.control_ids
    if control.isdisjoint(ids):
        if not same:
            return target.encode(text)
        if foreign.isdisjoint(ids):
            return ids
    marks = {target.decode([token]): token for token in foreign}
    before = len(text) - len(source.decode(ids))  # a space that a tokenizer leaves out at the start of a text
    new: list[int] = []
    read = 0
    for marked, run in runs(ids, control):
        start, read = read, read + len(run)
        if same and not marked and foreign.isdisjoint(run):
            new.extend(run)
            continue
        written = text[
            before + len(source.decode(ids[:start])) if start else 0 : before + len(source.decode(ids[:read]))
        ]
        new.extend([marks[written]] if marked and written in marks else target.encode(written))
    return new
