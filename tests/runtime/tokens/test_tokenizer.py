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
from speclrm.runtime.protocols import Question, TrackPlan
from speclrm.runtime.tokens.context import Context, translate
from speclrm.runtime.tokens.prompts import judge_suffix, open_prompt, question_ids
from speclrm.runtime.tokens.tokenizer import HFTokenizer, load_tokenizer
from speclrm.strategies.prompts import INLINE_IDS_MAX, INLINE_PROMPTS, STEP_PROMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence
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


# ------------------------------------------------------------------------------------------------- templates of all kinds


def with_template(folder: Path, path: Path, template: str | None, *, marks: Sequence[str] = ()) -> HFTokenizer:
    raw: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    for number, mark in enumerate(marks):
        raw["added_tokens"].append({**raw["added_tokens"][0], "id": 900 + number, "content": mark, "special": False})
    (path / "tokenizer.json").write_text(json.dumps(raw))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return load_tokenizer(path)


GENERATION = (
    "{% for turn in messages %}\n{% if turn.role == 'assistant' %}\n  {%- generation %}\n{% set x = 1 %}A: {{ turn.content }}"
    "<|im_end|>\n  {%- endgeneration -%}\n{{ x }}\n{% else %}\n{{ turn.role }}: {{ turn.content }}\n{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


def test_what_a_template_marks_for_trainers_is_written_as_if_it_were_not_marked(folder: Path, tmp_path: Path) -> None:
    tokenizer = with_template(folder, tmp_path, GENERATION)
    text = tokenizer.decode(tokenizer.render(TALK))
    assert text == "user: What is 2 + 2?\nA: It is 4.\n\n<|im_end|>\nuser: Sure?\nA: "
    assert judge_suffix(tokenizer, STEP_PROMPTS).ids


@pytest.mark.parametrize(
    ("template", "line", "reason"),
    [
        ("{% for m in messages %}\n{{ m.content }\n{% endfor %}", 2, "TemplateSyntaxError: unexpected '}'"),
        ("\n\n{% generation %}{{ messages }}", 3, "TemplateSyntaxError: Unexpected end"),
        ("{% for m in messages %}\n{{ m.content.a.b }}\n{% endfor %}", 2, "UndefinedError"),
        ("x\n{{ messages[0].content + 1 }}", 2, "TypeError"),
        ("x\n\n{{ 1 // 0 }}", 3, "ZeroDivisionError"),
        ("{% include 'other' %}", 1, "TypeError"),
        ("\n{{ raise_exception('Roles\nmust alternate.') }}", 2, "refuses the conversation: Roles must alternate"),
        ("{{ messages.__class__.__mro__ }}{{ raise_exception }}{{ ''.__class__.mro() }}", 1, "SecurityError"),
    ],
)
def test_a_template_that_fails_is_one_line_with_its_file_and_line(
    folder: Path, tmp_path: Path, template: str, line: int, reason: str
) -> None:
    with pytest.raises(ModelError) as caught:
        with_template(folder, tmp_path, template).render(TALK)
    message = str(caught.value)
    assert f"{tmp_path / 'chat_template.jinja'} line {line}" in message
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "template",
    [
        "Question: {{ messages[-1].content if messages[-1].role == 'user' else messages[0].content }}\nReply:\n",
        "{{ messages[0].content }}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}",
    ],
)
def test_a_template_without_replies_cannot_ask_a_judge(folder: Path, tmp_path: Path, template: str) -> None:
    tokenizer = with_template(folder, tmp_path, template)
    assert tokenizer.decode(tokenizer.render(TALK[:1])).find("What is 2 + 2?") >= 0
    with pytest.raises(ModelError, match="does not show a question after a reply"):
        judge_suffix(tokenizer, STEP_PROMPTS)


def test_a_template_that_loses_the_problem_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = with_template(folder, tmp_path, "Hello!")
    with pytest.raises(
        ModelError, match=r"chat_template\.jinja: the chat template does not show the last turn .* user's"
    ):
        tokenizer.render(TALK)
    trimmed = with_template(folder, tmp_path, "{% for m in messages %}{{ m.content | trim | tojson }}{% endfor %}")
    assert trimmed.decode(trimmed.render([{**TALK[0], "content": ' "It" is 4.\né '}])) == r'"\"It\" is 4.\né"'


@pytest.mark.parametrize(
    ("before", "behind", "added"),
    [
        ("", "<think>\n\n</think>\n\n", ""),
        ("", "<think>\n</think>", ""),
        ("", "</think>", ""),
        ("", "<think>\n", ""),
        ("", "", "<think>\n"),
        ("Think in <think> and </think> first.", "", "<think>\n"),
        ("Think in <think> and </think> first.", "<think></think>", ""),
    ],
)
def test_nothing_is_opened_behind_a_thought_that_the_template_closed(
    folder: Path, tmp_path: Path, before: str, behind: str, added: str
) -> None:
    template = f"{before}{{% for m in messages %}}{{{{ m.content }}}}\n{{% endfor %}}{{{{ {json.dumps(behind)} }}}}"
    tokenizer = with_template(folder, tmp_path, template, marks=("<think>", "</think>"))
    plan = TrackPlan("A1", ({"role": "user", "content": "Is </think> a mark?"},))
    start = f"{before}Is </think> a mark?\n{behind}"
    assert tokenizer.decode(open_prompt(tokenizer, plan)) == start + added
    asked = tokenizer.decode(question_ids(tokenizer, Question(plan.messages, reply="1", max_tokens=4)))
    assert asked.removeprefix(start).count("</think>") == ("</think>" not in behind)
    assert asked.endswith("1")


def test_a_lost_template_is_told_with_its_reason(folder: Path, tmp_path: Path) -> None:
    def lost(**config: Any) -> str:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.decode(tokenizer.render(TALK[:1])) == "User: What is 2 + 2?\n\nAssistant: "
        return tokenizer.lost_template or ""

    with_template(folder, tmp_path, None)
    assert lost() == f"{tmp_path} has no chat template"
    named = [{"name": name, "template": "{{ messages }}"} for name in ("tool_use", "rag")]
    assert "has templates named tool_use, rag, and none of them is the default" in lost(chat_template=named)
    assert lost(chat_template="").endswith("is empty")
    (tmp_path / "chat_template.jinja").write_text(" \n")
    assert lost() == f"{tmp_path / 'chat_template.jinja'} is empty"


def test_a_template_is_found_wherever_a_family_writes_it(folder: Path, tmp_path: Path) -> None:
    with_template(folder, tmp_path, None)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "3 {{ messages[0].content }}"}))
    found = load_tokenizer(tmp_path)
    assert found.decode(found.render(TALK[:1])) == "3 What is 2 + 2?"
    entries = [{"name": "rag", "template": ""}, {"name": "default", "template": "2 {{ messages[0].content }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    found = load_tokenizer(tmp_path)
    assert found.decode(found.render(TALK[:1])) == "2 What is 2 + 2?"
    assert found.lost_template is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": {"a": 1}}))
    with pytest.raises(ModelError, match=r"tokenizer_config\.json \(chat_template\) is no text but dict"):
        load_tokenizer(tmp_path).render(TALK)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is no JSON object but list"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not UTF-8"):
        load_tokenizer(tmp_path).render(TALK)
