"""Loads a model's tokenizer and chat template from its folder, without the weight of transformers.

The template is rendered as transformers does it (same sandbox, same options, same helpers), so that a prompt here is
the prompt that the model was trained on. Marks that stand in what is put into it, though, are text: only the template's
own become control ids.
"""

from __future__ import annotations

import json
import re
import secrets
from datetime import datetime
from functools import cache, cached_property
from hashlib import blake2b, sha256
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from speclrm.runtime.engine import Vocabulary
from speclrm.runtime.errors import ModelError, TurnNotShownError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from speclrm.runtime.engine import Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""For a model that brings no chat template (a base model): turns as paragraphs."""

END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<|end|>",
)
"""Marks of an end of text or turn in the families that are in use; each counts only where the model has it as a special
token."""

_BRACKETED = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
_BARRED = re.compile(r"<[|｜].*[|｜]>")
"""Forms of a mark. The second one is nothing else in any family; ``<table>`` is plain text to some."""

_CONTINUED = "\u241eCONTINUED\u241e"


def load_tokenizer(path: Path) -> HFTokenizer:
    """Returns the tokenizer of a model's folder.

    Raises:
        ModelError: the folder has no ``tokenizer.json``, or it cannot be read.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{path} has no tokenizer.json. Use a model whose folder holds a fast tokenizer.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
        raw = json.loads(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{file} cannot be read: {error}. Fetch the model again.") from error
    return HFTokenizer(tokenizer, raw, path)


def tokenizer_digest(path: Path) -> str:
    """Returns the sha256 of all that decides which ids a text has in a model's folder, and which of them end it."""
    config = {
        name: value for name, value in _read_json(path / "tokenizer_config.json").items() if name != "chat_template"
    }
    ends = _read_json(path / "generation_config.json").get("eos_token_id")
    state = sha256((path / "tokenizer.json").read_bytes())
    state.update(json.dumps([config, ends], sort_keys=True).encode())
    return state.hexdigest()


def template_digest(path: Path) -> str | None:
    """Returns the sha256 of a model's chat template, or None where it has none. Raises ModelError."""
    found = _find_template(path, _read_json(path / "tokenizer_config.json"))
    return None if found.lost else sha256(found.text.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}. Fetch the model again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no JSON object but {type(content).__name__}. Fetch the model again.")
    return cast("dict[str, Any]", content)


class HFTokenizer:
    """The ``Tokenizer`` protocol on the tokenizers library. Made by ``load_tokenizer``."""

    def __init__(self, tokenizer: Any, raw: dict[str, Any], path: Path) -> None:
        self._tokenizer = tokenizer
        self._raw = raw
        self._path = path
        self._config = _read_json(path / "tokenizer_config.json")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        # Nearly always there is no mark in a text, and its ids are the library's own.
        return ids if self.vocabulary.control_ids.isdisjoint(ids) else self._marks.encode(self._marks.hide(text))

    def encode_marked(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def begin(self, text: str, marked: str = "") -> list[int]:
        ids = self._marks.encode(self._marks.hide(text) + marked, add=True)
        while ids and ids[-1] in self.vocabulary.end_ids:  # a mark behind the text would end it before it began
            ids.pop()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def render(self, messages: Sequence[Message], *, continue_final: bool = False) -> list[int]:
        turns: list[dict[str, Any]] = [
            {**message, "content": self._marks.hide(message["content"])} for message in messages
        ]
        if continue_final:
            turns[-1]["content"] += _CONTINUED
        try:
            text = self._template.render(
                messages=turns,
                add_generation_prompt=not continue_final,
                tools=None,
                documents=None,
                **self._named_marks,
            )
        except Exception as error:  # a template is a program, and may fail in any way
            frames = [frame for frame in extract_tb(error.__traceback__) if frame.filename == "<template>"]
            raise ModelError(
                _template_error(self._found_template.place, frames[-1].lineno or 1 if frames else 1, error)
            ) from error
        shown = _CONTINUED if continue_final else turns[-1]["content"].strip()
        if shown not in text and json.dumps(shown, ensure_ascii=False)[1:-1] not in text:
            raise TurnNotShownError(
                f"{self._found_template.place}: the chat template does not show the last turn of a conversation, which is "
                f"the {turns[-1]['role']}'s. Put the model's own template there, or use --prompt-style raw."
            )
        return self._marks.encode(text.rpartition(_CONTINUED)[0] if continue_final else text)

    @property
    def lost_template(self) -> str | None:
        """Why the model is spoken to in plain turns, or None where it brings a chat template."""
        return self._found_template.lost

    @cached_property
    def _marks(self) -> _Marks:
        return _Marks(self._tokenizer, self.vocabulary.control_ids)

    @cached_property
    def _named_marks(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        return {name: text for name in names if (text := _token_text(self._config.get(name))) is not None}

    @cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
        )
        environment.filters["tojson"] = _tojson
        helpers: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals.update(helpers)
        found = self._found_template
        try:
            return environment.from_string(found.text)
        except TemplateSyntaxError as error:
            raise ModelError(_template_error(found.place, error.lineno, error)) from error

    @cached_property
    def _found_template(self) -> _Template:
        return _find_template(self._path, self._config)

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        tokens: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        added: list[dict[str, Any]] = self._raw.get("added_tokens", [])
        # By name: the library numbers added tokens anew where the file leaves gaps.
        marks: dict[str, int] = {entry["content"]: tokens[entry["content"]] for entry in added}
        special = {entry["content"]: marks[entry["content"]] for entry in added if entry["special"]}
        think_open, think_close = marks.get("<think>"), marks.get("</think>")
        texts = self._texts(sorted(tokens.values()))
        ends = {special[name] for name in END_TOKENS if name in special} | self._configured_ends()
        thinks = {token for token in (think_open, think_close) if token is not None}
        control = {*self._control(added, marks), *ends, *thinks}
        return Vocabulary(
            size=max([*tokens.values(), *ends], default=-1) + 1,
            fingerprint=self._fingerprint({text: token for text, token in marks.items() if token not in control}),
            blank_line_ids=frozenset(token for token, text in texts.items() if "\n\n" in text),
            newline_ids=frozenset(
                token for token, text in texts.items() if text.endswith("\n") and not text.endswith("\n\n")
            ),
            end_ids=frozenset(ends),
            special_ids=frozenset({*special.values(), *ends, *thinks}),
            control_ids=frozenset(control),
            think_open=think_open,
            think_close=think_close,
        )

    def _control(self, added: Sequence[dict[str, Any]], marks: dict[str, int]) -> Iterator[int]:
        """Returns the added tokens that are control marks.

        Some of them are no special tokens in the library's sense (``<tool_call>``, ``<think>``, the turns of DeepSeek's
        models), and others are plain text: runs of spaces, rare letters, tags of HTML.
        """
        vocabulary: Any = self._raw["model"].get("vocab", ())
        pieces = {
            entry if isinstance(entry, str) else entry[0] for entry in vocabulary
        }  # a unigram model's have scores
        template = self._found_template.text
        for entry in added:
            text: str = entry["content"]
            own = text not in pieces or text in template
            if (
                entry["special"]
                or text in END_TOKENS
                or _BARRED.fullmatch(text)
                or (own and _BRACKETED.fullmatch(text))
            ):
                yield marks[text]

    def _texts(self, ids: Sequence[int]) -> dict[int, str]:
        """Returns the text of each id that can hold a newline. A full decode of 150,000 ids one by one would take seconds."""
        newline = {"\n", "\u010a", "<0x0A>"}  # plain, as byte-level BPE writes it, and as a byte token
        candidates = [
            token for token in ids if any(mark in (self._tokenizer.id_to_token(token) or "") for mark in newline)
        ]
        return {token: self._tokenizer.decode([token], skip_special_tokens=False) for token in candidates}

    def _configured_ends(self) -> set[int]:
        """Returns what the model's own files call its end."""
        ends: set[int] = set()
        for file in ("generation_config.json", "config.json"):
            value = _read_json(self._path / file).get("eos_token_id")
            ends.update(value if isinstance(value, list) else [] if value is None else [value])  # type: ignore[arg-type]
        if (name := _token_text(self._config.get("eos_token"))) is not None:
            token = self._tokenizer.token_to_id(name)
            ends.update([] if token is None else [token])
        return ends

    def _fingerprint(self, plain: dict[str, int]) -> str:
        """Returns a key that is equal where plain text gets the same ids: of the model, the steps before it, and added tokens
        that are ``plain`` text; marks do not count.
        """
        parts = {key: self._raw.get(key) for key in ("model", "normalizer", "pre_tokenizer")}
        if plain:
            parts["added"] = plain
        text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


class _Marks:
    """Encodes texts in which some marks are control and others are hidden: characters like any others.

    It has the tokenizer's own model, which is shared and not copied, but knows the marks only between guards that nobody
    can write: what has none is text.
    """

    def __init__(self, tokenizer: Any, control_ids: frozenset[int]) -> None:
        from tokenizers import AddedToken, Tokenizer

        self._tokenizer = tokenizer
        self._control_ids = control_ids
        self._guard = f"\ue000{secrets.token_hex(8)}"
        added: dict[int, Any] = tokenizer.get_added_tokens_decoder()
        self._ids = {added[token].content: token for token in control_ids if token in added}
        self._texts = list(self._ids)
        longest_first = sorted(map(re.escape, self._texts), key=len, reverse=True)
        self._mark = re.compile("|".join(longest_first) or r"(?!)")
        self._hidden = re.compile(rf"{self._guard}:(\d+);")
        self._guarded: Any = Tokenizer(tokenizer.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            setattr(self._guarded, part, getattr(tokenizer, part))
        self._back: dict[int, int | None] = {}
        for token, entry in sorted(added.items()):
            text = self._guard + entry.content if entry.content in self._ids else entry.content
            self._add(AddedToken, text, token, entry)
        self._cut = f"{self._guard};"
        self._add(AddedToken, self._cut, None)

    def _add(self, kind: Any, text: str, token: int | None, like: Any = None) -> None:
        """Notes a mark. ``token``: what stands for it in the end, or None for nothing. ``like``: how it is looked for."""
        names = ("single_word", "lstrip", "rstrip", "normalized")
        self._guarded.add_tokens([kind(text, **{name: getattr(like, name, False) for name in names})])
        self._back[self._guarded.token_to_id(text)] = token

    def hide(self, text: str) -> str:
        """Returns the text with its marks in a form that ``encode`` takes for characters, and a template leaves as it is."""
        return self._mark.sub(lambda found: f"{self._guard}:{self._texts.index(found.group())};", text)

    def encode(self, text: str, *, add: bool = False) -> list[int]:
        """Ids of a text whose marks count, but for the hidden ones. ``add``: with what the model wants around a text."""
        if self._guard not in text:
            encoding = self._tokenizer.encode(text, add_special_tokens=add)
            pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
            found = [token for token, put in pairs if token in self._control_ids and not put]
            # The library also takes for a mark what its normalizer makes one.
            if found == [self._ids[mark] for mark in self._mark.findall(text)]:
                return encoding.ids
        text = self._mark.sub(lambda found: self._guard + found.group(), text)
        for cut in ("", self._cut):
            encoding = self._guarded.encode(self._shown(text, cut), add_special_tokens=add)
            pairs = list(zip(encoding.ids, encoding.special_tokens_mask, strict=True))
            # A model's own pieces may hold a mark as a whole: then it is cut behind its first character.
            if not any(token in self._control_ids and token not in self._back and not put for token, put in pairs):
                break
        ids = (token if put else self._back.get(token, token) for token, put in pairs)
        return [token for token in ids if token is not None]

    def _shown(self, text: str, cut: str) -> str:
        """Returns the text with its hidden marks in their own characters, and ``cut`` behind the first one of each."""

        def mark(found: re.Match[str]) -> str:
            written = self._texts[int(found[1])]
            return written[:1] + cut + written[1:]

        return self._hidden.sub(mark, text)


def _token_text(value: Any) -> str | None:
    """Returns a special token as tokenizer_config.json writes it: text, or an object with its text."""
    if isinstance(value, dict):
        return value.get("content")  # type: ignore[no-any-return]
    return value


class _Template(NamedTuple):
    """A chat template. ``place``: where it stands, for messages; ``lost``: why it is not the model's own."""

    text: str
    place: str
    lost: str | None = None


def _find_template(path: Path, config: Mapping[str, Any]) -> _Template:
    """Returns the chat template of a model's folder, wherever its family writes it. Raises ModelError for one that is no text."""
    place = f"{path / 'tokenizer_config.json'} (chat_template)"
    file = path / "chat_template.jinja"
    lost = f"{path} has no chat template"
    if file.is_file():
        place = str(file)
        try:
            template: Any = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{file} is not UTF-8 ({error.reason}). Fetch the model again.") from error
    else:
        template = config.get("chat_template")
    if isinstance(template, list):  # named templates, of which one is the default
        entries = [cast("dict[str, Any]", entry) for entry in cast("list[Any]", template) if isinstance(entry, dict)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
        template = named.get("default")
        if template is None:
            lost = f"{place} has templates named {', '.join(named)}, and none of them is the default"
    elif template is None:  # where processors of images write it
        whole = path / "chat_template.json"
        if (template := _read_json(whole).get("chat_template")) is not None:
            place = str(whole)
    if template is not None and not isinstance(template, str):
        raise ModelError(f"{place} is no text but {type(template).__name__}. Fetch the model again.")
    if template is None or not template.strip():
        return _Template(PLAIN_TEMPLATE, place, lost if template is None else f"{place} is empty")
    return _Template(template, place)


class _Refused(Exception):
    """Raised by a template on purpose."""


def _template_error(place: str, line: int, error: Exception) -> str:
    reason = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, _Refused):
        return f"The model's chat template refuses the conversation: {reason.rstrip('.')[:300]} ({place} line {line})."
    return (
        f"{place} line {line}: the chat template cannot be used ({type(error).__name__}: {reason.rstrip('.')[:300]}). Put "
        "the model's own template there, or use --prompt-style raw."
    )


@cache
def _generation_tag() -> Any:
    """Returns the tag ``{% generation %}``: marks for trainers around what an assistant wrote, nothing to a prompt."""
    from jinja2.ext import Extension
    from jinja2.nodes import Node, Scope

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012  # as the base class has it

        def parse(self, parser: Any) -> Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return GenerationTag


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
