"""An engine hands over one token at a time, or several where its reader was busy. That decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support import make_strategy, operation, play

from speclrm.runtime.engine import Vocabulary
from speclrm.runtime.engines.scripted import ByteTokenizer, Reply, ScriptedEngine
from speclrm.runtime.events import StepCommitted, StepDrafted, StepGated, StepWritten
from speclrm.runtime.protocols import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speclrm.runtime.engine import Request

GROUPS = (1, 2, 3, 5, 8, 13, 10_000)


class TwoTokenLines(ByteTokenizer):
    """Writes every blank line as two newlines, as some models' tokenizers do."""

    def __init__(self) -> None:
        super().__init__()
        known = self.vocabulary
        self.vocabulary = Vocabulary(
            size=known.size,
            fingerprint="two",
            blank_line_ids=frozenset(),
            newline_ids=known.newline_ids,
            end_ids=known.end_ids,
            special_ids=known.special_ids,
        )

    def encode_marked(self, text: str) -> list[int]:
        blank = ByteTokenizer().encode("\n\n")[0]
        return [one for token in super().encode_marked(text) for one in ([10, 10] if token == blank else [token])]


def story(
    name: str, texts: Sequence[Reply], group: int, tokenizer: ByteTokenizer, **options: Any
) -> list[tuple[object, ...]]:
    """What became of each step."""

    def model(request: Request, prompt: str) -> Reply:
        _, _, index, kind = operation(request)
        if kind == "score":
            return Reply(score=9.0)
        if kind.startswith("write"):
            return Reply("".join(one.text for one in texts[index:]))
        return texts[index] if index < len(texts) else Reply("")

    roles = [Role.TARGET] if name == "baseline" else list(Role)
    engines = {role: ScriptedEngine(model, name=role.value, tokenizer=tokenizer, chunk_tokens=group) for role in roles}
    played = play(
        make_strategy(name, **({} if name == "baseline" else {"tracks": 1}), **options), target=model, engines=engines
    )
    told: list[tuple[object, ...]] = []
    for event in played.collector.events:
        match event:
            case StepDrafted():
                told.append(("drafted", event.text, event.ended, event.left, event.mean_logprob))
            case StepGated():
                told.append(("gated", event.verdict, event.tokens))
            case StepWritten():
                told.append((event.write_kind, event.text, event.ended))
            case StepCommitted():
                told.append(("committed", event.origin, event.tokens))
            case _:
                pass
    return told


STEPS = [
    Reply("We add.\n\n", logprobs=[-0.1]),
    Reply("We look for a long time.\n\n", logprobs=[-0.1, -0.1, -9.0, -9.0, -0.1]),
    Reply("So it is \\boxed{4}.", logprobs=[-0.2]),
]


@pytest.mark.parametrize("group", GROUPS[1:])
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TwoTokenLines()], ids=["one", "two"])
@pytest.mark.parametrize(
    ("name", "texts", "options"),
    [
        ("speculative", STEPS, {}),
        ("speculative", STEPS, {"gate_doubt": -2, "gate_tokens": 4}),
        ("speculative", [Reply(STEPS[0].text, entropy=3.0), *STEPS[1:]], {"gate_entropy": 2.0}),
        ("speculative", STEPS, {"max_step_tokens": 16, "min_step_tokens": 12}),
        ("speculative", [STEPS[0], Reply("It is \\boxed{4}.\n\n<|end|>"), Reply("<|end|>")], {}),
        ("baseline", STEPS, {"max_step_tokens": 16}),
        ("baseline", [STEPS[0], Reply("One is odd.\n\nTwo is even.\n\n<|end|>")], {}),
        ("baseline", [STEPS[0], Reply("Of sixteen byte.<|end|>")], {"max_step_tokens": 16}),
        ("baseline", [STEPS[0], Reply("The seventeen is.\n\n<|end|>")], {"max_step_tokens": 16}),
    ],
)
def test_however_an_engine_groups_its_tokens_the_steps_are_the_same(
    name: str, texts: Sequence[Reply], options: dict[str, Any], tokenizer: ByteTokenizer, group: int
) -> None:
    assert story(name, texts, group, tokenizer, **options) == story(name, texts, 1, tokenizer, **options)
