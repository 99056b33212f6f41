"""Provides the tokenizer of simulated models: an id holds its own characters, so nothing is stored and any text decodes.

Also cuts what a model would write as an engine does.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from speclrm.runtime.engine import Message, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import Finish, Request, Tokenizer

_ASCII_BITS = 7
_LETTERS = 26
_WORD_LETTERS = 6
_PIECE = re.compile(rf"\n\n| ?[a-z]{{1,{_WORD_LETTERS}}}| ?[A-Za-z]{{1,3}}|[,:] | \d|.", re.DOTALL)
_PLAIN_WORD = re.compile(rf" ?[a-z]{{1,{_WORD_LETTERS}}}")
_WIDE = 1 << 28
_BLANK_LINE = 1 << 29
_MARKS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_FIRST_MARK = _BLANK_LINE + 1
_WORD = 1 << 30
_MARK = re.compile("|".join(map(re.escape, _MARKS)))


class PackedTokenizer:
    """Puts up to six small letters or three other ones into a token, with the space before them, which comes near the
    lengths of real tokenizers for English; a blank line and the marks of a chat are one token each.
    """

    def __init__(self) -> None:
        self.vocabulary = Vocabulary(
            size=2 * _WORD,
            fingerprint="packed",
            blank_line_ids=frozenset({_BLANK_LINE}),
            newline_ids=frozenset({ord("\n")}),
            end_ids=frozenset({_FIRST_MARK}),
            special_ids=frozenset(range(_FIRST_MARK, _FIRST_MARK + len(_MARKS))),
        )

    def encode(self, text: str) -> list[int]:
        return list(map(_pack, _PIECE.findall(text)))

    def encode_marked(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for mark in _MARK.finditer(text):
            ids.extend(map(_pack, _PIECE.findall(text[start : mark.start()])))
            ids.append(_FIRST_MARK + _MARKS.index(mark.group()))
            start = mark.end()
        ids.extend(map(_pack, _PIECE.findall(text[start:])))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(_unpack, ids))

    def begin(self, text: str, marked: str = "") -> list[int]:
        return [*self.encode(text), *self.encode_marked(marked)]

    def render(self, messages: Sequence[Message], *, continue_final: bool = False) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [*self.encode_marked(f"<|{message['role']}|>"), *self.encode(message["content"]), _FIRST_MARK]
        return ids[:-1] if continue_final else [*ids, *self.encode_marked("<|assistant|>")]


@lru_cache(maxsize=65_536)
def _pack(piece: str) -> int:
    if piece == "\n\n":
        return _BLANK_LINE
    if not piece.isascii() or piece == "\0":
        return _WIDE + ord(piece)
    if _PLAIN_WORD.fullmatch(piece):
        code = 0
        for letter in piece.lstrip():
            code = code * (_LETTERS + 1) + ord(letter) - ord("a") + 1
        return _WORD + 2 * code + piece.startswith(" ")
    return sum(ord(character) << (_ASCII_BITS * place) for place, character in enumerate(piece))


@lru_cache(maxsize=65_536)
def _unpack(token: int) -> str:
    if token >= _WORD:
        code, space = divmod(token - _WORD, 2)
        letters: list[str] = []
        while code:
            code, letter = divmod(code, _LETTERS + 1)
            letters.append(chr(ord("a") - 1 + letter))
        return " " * space + "".join(reversed(letters))
    if token >= _FIRST_MARK:
        return _MARKS[token - _FIRST_MARK]
    if token == _BLANK_LINE:
        return "\n\n"
    if token >= _WIDE:
        return chr(token - _WIDE)
    characters: list[str] = []
    while token:
        characters.append(chr(token & 127))
        token >>= _ASCII_BITS
    return "".join(characters)


def cut(ids: Sequence[int], request: Request, tokenizer: Tokenizer) -> tuple[Sequence[int], Finish]:
    """Returns what an engine gives of ids that a model would write: up to a stop id, an end, or the limit."""
    stops, ends = set(request.stop_ids), tokenizer.vocabulary.end_ids
    for index, token in enumerate(ids[: request.max_tokens]):
        if token in ends:
            return ids[:index], "end"
        if token in stops:
            return ids[: index + 1], "stop"
    return ids[: request.max_tokens], "length" if len(ids) >= request.max_tokens else "end"
