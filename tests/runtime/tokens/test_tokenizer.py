"""The tokenizer and the chat template, on a small one made here and on the real ones where they are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from engines.tiny_models import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from speclrm.runtime.errors import ModelError
from speclrm.runtime.models import store
from speclrm.runtime.protocols import TrackPlan
from speclrm.runtime.tokens.context import Context, translate
from speclrm.runtime.tokens.prompts import judge_suffix, open_prompt
from speclrm.runtime.tokens.tokenizer import HFTokenizer, load_tokenizer
from speclrm.strategies.prompts import INLINE_IDS_MAX, INLINE_PROMPTS, STEP_PROMPTS

if TYPE_CHECKING:
    from pathlib import Path

    from speclrm.runtime.engine import Message

TALK: list[Message] = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4.\n\n"},
    {"role": "user", "content": "Sure?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path, size=320)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HFTokenizer:
    return load_tokenizer(folder)


@given(text=st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_text_survives_the_way_to_ids_and_back(tokenizer: HFTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(pieces=st.lists(st.text(alphabet="ab 1.\n", min_size=1, max_size=12), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_ids_never_change_at_the_border_of_a_step(tokenizer: HFTokenizer, pieces: list[str]) -> None:
    context = Context(tokenizer, tokenizer.encode("Prompt: "))
    before = list(context.ids())
    for piece in pieces:
        ids = tokenizer.encode(piece)
        assert context.text_of(ids) == piece
        context.append(translate(ids, piece, tokenizer, tokenizer))
        assert list(context.ids())[: len(before)] == before
        before = list(context.ids())


def test_ids_of_a_padded_model_that_are_no_text_do_not_reach_the_other_model(
    folder: Path, tokenizer: HFTokenizer
) -> None:
    beyond, ids = tokenizer.vocabulary.size, tokenizer.encode("We add.")
    assert tokenizer.decode([*ids, beyond + 7]) == "We add."
    assert list(translate([*ids, beyond], "We add.", tokenizer, load_tokenizer(folder))) == ids


def test_the_vocabulary_knows_blank_lines_ends_and_marks(tokenizer: HFTokenizer) -> None:
    vocabulary = tokenizer.vocabulary
    assert all("\n\n" in tokenizer.decode([token]) for token in vocabulary.blank_line_ids)
    assert vocabulary.blank_line_ids
    assert {tokenizer.decode([token]) for token in vocabulary.end_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert (vocabulary.think_open, vocabulary.think_close) == (None, None)


def test_a_conversation_is_rendered_and_an_open_one_left_open(tokenizer: HFTokenizer) -> None:
    assert tokenizer.decode(tokenizer.render(TALK)).endswith("Sure?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(tokenizer.render(TALK[:2], continue_final=True)).endswith("It is 4.\n\n")


def test_the_judges_turn_ends_where_one_digit_comes_next(tokenizer: HFTokenizer) -> None:
    suffix = judge_suffix(tokenizer, STEP_PROMPTS)
    text = tokenizer.decode(suffix.ids)
    assert text.startswith("<|im_end|>")
    assert text.rstrip().endswith("Grade:")
    assert [tokenizer.decode([token]) for token in suffix.digit_ids] == list("0123456789")


def test_the_inline_judge_is_text_alone_and_too_long_for_some_tokenizers(tokenizer: HFTokenizer) -> None:
    longer = replace(INLINE_PROMPTS, judge_ids_max=1000)
    suffix = judge_suffix(tokenizer, longer)
    assert not tokenizer.vocabulary.special_ids.intersection(suffix.ids)
    assert tokenizer.decode(suffix.ids) == longer.judge + longer.judge_reply
    assert [tokenizer.decode([token]) for token in suffix.digit_ids] == list("0123456789")
    with pytest.raises(ModelError, match=r"writes the inline judge in \d+ tokens, .* 16.*Use --judge turn"):
        judge_suffix(tokenizer, INLINE_PROMPTS)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_the_inline_judge_has_sixteen_ids_at_most_with_real_tokenizers(name: str) -> None:
    path = store.find_local(name)
    if path is None:
        pytest.skip(f"{name} is not here: speclrm models pull {name}")
    assert len(judge_suffix(load_tokenizer(path), INLINE_PROMPTS).ids) <= INLINE_IDS_MAX == 16


def test_a_fingerprint_is_of_plain_text_alone(folder: Path, tokenizer: HFTokenizer, tmp_path: Path) -> None:
    raw: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 900, "content": "<extra>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert load_tokenizer(tmp_path).vocabulary.fingerprint == tokenizer.vocabulary.fingerprint
    make_tokenizer(tmp_path, size=300)
    assert load_tokenizer(tmp_path).vocabulary.fingerprint != tokenizer.vocabulary.fingerprint


@pytest.mark.parametrize(
    ("template", "added"),
    [("{{ messages[0].content }}", "<think>\n"), ("{{ messages[0].content }}<think>\n", "")],
    ids=["mark added", "mark opened by the template"],
)
def test_thinking_is_opened_once(folder: Path, tmp_path: Path, template: str, added: str) -> None:
    raw: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    for number, mark in enumerate(("<think>", "</think>")):
        raw["added_tokens"].append({**raw["added_tokens"][0], "id": 900 + number, "content": mark, "special": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    tokenizer = load_tokenizer(tmp_path)
    plan = TrackPlan("A1", ({"role": "user", "content": "Hi"},))
    text = tokenizer.decode(open_prompt(tokenizer, plan))
    assert text == f"Hi{added}" if added else "Hi<think>\n"
    assert text.count("<think>") == 1


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_prompts_are_those_of_transformers(name: str) -> None:
    from transformers import AutoTokenizer

    path = store.find_local(name)
    if path is None:
        pytest.skip(f"{name} is not here: speclrm models pull {name}")
    theirs: Any = cast("Any", AutoTokenizer).from_pretrained(path)
    ours = load_tokenizer(path)
    for talk in (TALK, TALK[:1]):
        text: str = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert ours.decode(ours.render(talk)) == text
    opened: str = theirs.apply_chat_template(TALK[:2], tokenize=False, continue_final_message=True)
    assert ours.decode(ours.render(TALK[:2], continue_final=True)).strip() == opened.strip()
