"""``--dry-run`` says of models that are here what a run would say."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from cli_runner import Done, speclrm
from engines.tiny_models import make_tokenizer

from speclrm.app.engines import RealEngines
from speclrm.app.options import RunOptions
from speclrm.app.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that has all that a model's has, with weights of four bytes and room for 512 tokens."""
    folder = tmp_path / "m"
    make_tokenizer(folder, size=320)
    sizes = {
        "vocab_size": 320,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (tmp_path / "data.jsonl").write_text('{"id": "one", "problem": "1+3?", "answer": "4"}\n')
    return folder


def options(model: Path, *more: str) -> tuple[str, ...]:
    return ("run", "baseline", "--target", str(model), "--dataset", str(model.parent / "data.jsonl"), *more)


def dry(model: Path, *more: str) -> Done:
    return speclrm(*options(model, *more), "--dry-run", cwd=model.parent)


def without_template(model: Path) -> None:
    (model / "tokenizer_config.json").write_text("{}")


def of_names(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "tools", "template": "{{ messages }}"}]})
    )


@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (without_template, "has no chat template"),
        (of_names, "has templates named tools, and none of them is the default"),
    ],
)
def test_a_lost_template_is_noted(lose: Callable[[Path], None], reason: str, model: Path) -> None:
    short = ("--token-budget", "128", "--max-step-tokens", "64")
    assert "note:" not in dry(model, *short).stderr
    lose(model)
    done = dry(model, *short)
    assert done.returncode == 0
    assert done.stderr.startswith("note: the target is spoken to in plain turns")
    assert reason in done.stderr
    assert "note:" not in dry(model, *short, "--prompt-style", "raw").stderr  # where no template is asked


async def test_a_lost_template_is_noted_before_engines_are_loaded(model: Path) -> None:
    without_template(model)
    said: list[str] = []
    recipe: dict[str, Any] = {"token_budget": 64, "max_step_tokens": 64}
    data = str(model.parent / "data.jsonl")
    found = resolve(RunOptions(strategy="baseline", target=str(model), dataset=data, recipe=recipe))
    engines = found.engines
    assert isinstance(engines, RealEngines)
    await engines.size(found.strategy, found.work, found.problems, lambda stage, done, total: said.append(stage))
    assert [line.partition(",")[0] for line in said] == [
        "note: the target is spoken to in plain turns (User: ... Assistant: ...)"
    ]


def test_what_a_context_has_no_room_for_is_said_with_options_that_fit(model: Path) -> None:
    refused = dry(model, "--token-budget", "1024")
    assert refused.returncode == 2
    assert "The problem fits; the room for one step does not." in refused.stderr
    advice = re.findall(r"(--[a-z-]+) (\d+)", refused.stderr)
    assert [name for name, _ in advice] == ["--max-step-tokens", "--token-budget"]
    assert dry(model, *(word for pair in advice for word in pair)).returncode == 0
    (model.parent / "data.jsonl").write_text(json.dumps({"problem": "word " * 400, "answer": "4"}) + "\n")
    assert "The longest problem alone takes" in dry(model).stderr


def test_a_template_that_fails_is_told_by_its_line(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    done = dry(model)
    assert done.returncode == 2
    assert f"{model / 'chat_template.jinja'} line 2: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
