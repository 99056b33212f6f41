"""The nucleus of each row, selected instead of sorted out; and a vLLM that is not as expected."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from speclrm.runtime.engines import vllm_plugin
from speclrm.runtime.engines.vllm_processes import own_values
from speclrm.runtime.settings import EngineSettings

torch = pytest.importorskip("torch")


def sorted_out(logits: Any, p: Any) -> Any:
    """As vLLM does it (v1/sample/ops/topk_topp_sampler.py), in double precision."""
    values, ids = logits.double().sort(dim=-1)
    outside = values.softmax(-1).cumsum(-1) <= 1 - p.double().unsqueeze(1)
    outside[:, -1] = False
    return logits.scatter(1, ids, values.masked_fill(outside, -float("inf")).to(logits.dtype))


def never(logits: Any, p: Any) -> Any:
    raise AssertionError(f"{len(logits)} rows were sorted")


@pytest.mark.parametrize("spread", [20.0, 6.0, 4.0, 2.5])
def test_the_nucleus_is_the_one_that_sorting_finds(spread: float) -> None:
    random = torch.Generator().manual_seed(int(spread))
    logits = torch.randn(24, 30_000, generator=random) * spread
    p = torch.rand(24, generator=random) * 0.98 + 0.01
    expected = sorted_out(logits, p)
    asked: list[int] = []

    def by_sorting(some: Any, masses: Any) -> Any:
        asked.append(len(some))
        return sorted_out(some, masses)

    assert torch.equal(vllm_plugin.nucleus(logits.clone(), p, by_sorting), expected)
    assert bool(asked) == (spread < 3)  # only a flat row has a nucleus of thousands


def test_a_row_of_mass_one_stays_whole_and_a_tiny_mass_leaves_one_token() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    found = vllm_plugin.nucleus(logits.clone(), torch.tensor([1.0, 1e-6, 0.5]), sorted_out)
    assert torch.equal(found[0], logits[0])
    assert int((found[1] > -float("inf")).sum()) == 1
    assert int(found[1].argmax()) == int(logits[1].argmax())
    assert 1 < int((found[2] > -float("inf")).sum()) < 1000


def test_what_an_allowed_list_left_out_stays_out_and_a_single_allowed_token_is_found() -> None:
    logits = torch.full((1, 1000), -float("inf"))
    logits[0, 7] = 3.0
    found = vllm_plugin.nucleus(logits.clone(), torch.tensor([0.9]), never)
    assert torch.nonzero(found[0] > -float("inf")).flatten().tolist() == [7]


def test_a_small_vocabulary_is_sorted_as_before() -> None:
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    p = torch.tensor([0.9, 0.3])
    assert torch.equal(vllm_plugin.nucleus(logits.clone(), p, sorted_out), sorted_out(logits, p))


def test_ids_that_the_tokenizer_does_not_have_get_no_probability_and_others_keep_theirs() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    found = vllm_plugin.mask(logits.clone(), 33)
    assert torch.equal(found[:, :33], logits[:, :33])
    assert bool((found[:, 33:] == -float("inf")).all())
    assert torch.equal(vllm_plugin.mask(logits.clone(), 40), logits)


def test_each_engines_processes_are_told_how_many_ids_its_tokenizer_has() -> None:
    settings = EngineSettings(
        name="m", path=Path("/m"), device="cuda", dtype="bfloat16", max_model_len=512, max_num_seqs=4,
        max_num_batched_tokens=512, block_size=16,
    )  # fmt: skip
    assert own_values(settings, 151_669)[vllm_plugin.IDS] == "151669"


def test_nothing_is_changed_in_processes_that_do_not_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_spin_less", "_select_the_nucleus", "_mask_padding", "_keep_pace"):
        monkeypatch.setattr(vllm_plugin, name, lambda: pytest.fail("changed"))
    monkeypatch.delenv(vllm_plugin.ASKED, raising=False)
    monkeypatch.delenv(vllm_plugin.IDS, raising=False)
    monkeypatch.delenv(vllm_plugin.PACE, raising=False)
    vllm_plugin.register()


def test_a_step_begins_no_sooner_than_told_and_a_shorter_distance_counts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept, begun = [100.0], list[float](), list[float]()
    ours = vllm_plugin.open_pace(str(tmp_path / "pace"))
    theirs = vllm_plugin.open_pace(str(tmp_path / "pace"))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds
        if len(slept) == 10:
            vllm_plugin.SECONDS.pack_into(ours, 0, 0.0)

    monkeypatch.setattr(vllm_plugin.time, "sleep", sleep)
    monkeypatch.setattr(vllm_plugin.time, "monotonic", lambda: now[0])

    def step(core: str) -> str:
        begun.append(now[0])
        now[0] += 0.001
        return core

    paced = vllm_plugin.paced(step, theirs)
    assert paced("core") == "core"
    paced("core")
    vllm_plugin.SECONDS.pack_into(ours, 0, 0.005)
    paced("core")
    assert [round(late - early, 6) for early, late in itertools.pairwise(begun)] == [0.001, 0.005]
    vllm_plugin.SECONDS.pack_into(ours, 0, 3600.0)
    paced("core")
    assert max(slept) <= vllm_plugin.PACE_LOOK_S
    assert begun[-1] - begun[-2] < 0.1


def test_the_file_of_the_pace_is_told_to_the_engines_processes(tmp_path: Path) -> None:
    settings = EngineSettings(
        name="m", path=Path("/m"), device="cuda", dtype="bfloat16", max_model_len=512, max_num_seqs=4,
        max_num_batched_tokens=512, block_size=16,
    )  # fmt: skip
    assert own_values(settings, 7, tmp_path / "pace")[vllm_plugin.PACE] == str(tmp_path / "pace")
    assert own_values(settings, 7)[vllm_plugin.PACE] is None
