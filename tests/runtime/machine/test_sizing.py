from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from speclrm.runtime.errors import CapacityError
from speclrm.runtime.machine.doctor import examine
from speclrm.runtime.machine.hardware import Gpu, Machine, read_machine
from speclrm.runtime.machine.placement import Placement
from speclrm.runtime.machine.sizing import GIB, SHAPES, ModelFacts, Work, check_context, context_tokens, engine_settings
from speclrm.runtime.protocols import Role

SMALL = Machine("cpu", (0, 1), frozenset({"avx2"}), 16 * GIB, 15 * GIB)
FAST = replace(SMALL, flags=frozenset({"avx2", "avx512_bf16"}))
CUDA = replace(FAST, gpus=(Gpu("card", 80 * GIB, 79 * GIB),))
TARGET = ModelFacts("big", Path("/big"), SHAPES["qwen2.5-coder-0.5b-instruct"])
DRAFT = ModelFacts("small", Path("/small"), SHAPES["smollm2-135m-instruct"])
PAIR = {Role.TARGET: TARGET, Role.DRAFT: DRAFT}
WORK = Work(tracks=24, prompt_tokens=200, token_budget=1024, max_step_tokens=128, suffix_tokens=60)


def test_the_data_type_goes_by_the_processor() -> None:
    assert {s.dtype for s in engine_settings(SMALL, PAIR, WORK).values()} == {"float32"}
    assert {s.dtype for s in engine_settings(FAST, PAIR, WORK).values()} == {"bfloat16"}
    wide = dict.fromkeys(Role, Placement(dtype="float32"))
    assert {s.dtype for s in engine_settings(FAST, PAIR, WORK, placements=wide).values()} == {"float32"}
    mixed = engine_settings(FAST, PAIR, WORK, placements={Role.TARGET: Placement(dtype="float32")})
    assert [mixed[role].dtype for role in (Role.TARGET, Role.DRAFT)] == ["float32", "bfloat16"]


def test_the_context_holds_prompt_budget_step_and_judge() -> None:
    need = WORK.prompt_tokens + WORK.token_budget + WORK.max_step_tokens + WORK.suffix_tokens
    length = context_tokens(WORK)
    assert need <= length < need + 64
    assert context_tokens(replace(WORK, same_tokenizer=False)) >= length + 500
    assert {s.max_model_len for s in engine_settings(FAST, PAIR, WORK).values()} == {length}


def test_sequences_follow_the_tracks_up_to_what_an_engine_can_use() -> None:
    assert engine_settings(FAST, PAIR, replace(WORK, tracks=5))[Role.TARGET].max_num_seqs == 5
    assert engine_settings(FAST, PAIR, replace(WORK, tracks=5000))[Role.TARGET].max_num_seqs == 32
    assert engine_settings(CUDA, PAIR, replace(WORK, tracks=5000))[Role.TARGET].max_num_seqs == 256


def test_a_whole_prompt_fits_into_one_iteration_on_a_cpu() -> None:
    settings = engine_settings(FAST, {Role.TARGET: TARGET}, replace(WORK, token_budget=8192))[Role.TARGET]
    assert settings.max_num_batched_tokens >= settings.max_model_len
    assert settings.parameters == TARGET.parameters


def test_both_engines_together_stay_within_the_memory_that_is_free() -> None:
    tight = replace(FAST, memory_available=7 * GIB)
    chosen = engine_settings(tight, PAIR, replace(WORK, tracks=32, token_budget=4096))
    kv = sum(settings.kv_cache_bytes or 0 for settings in chosen.values())
    weights = sum(facts.parameters * 2 for facts in PAIR.values())
    assert kv + weights < 7 * GIB
    wide = engine_settings(FAST, PAIR, replace(WORK, tracks=32, token_budget=4096))
    assert kv < sum(settings.kv_cache_bytes or 0 for settings in wide.values())


def test_too_little_memory_is_one_paragraph_with_the_way_out() -> None:
    with pytest.raises(CapacityError) as caught:
        engine_settings(replace(FAST, memory_available=3 * GIB), PAIR, WORK)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("big", "small", "GiB are free", "smaller models", "--token-budget"):
        assert part in message


def test_work_beyond_the_context_says_which_budget_would_do() -> None:
    with pytest.raises(CapacityError) as caught:
        engine_settings(FAST, PAIR, replace(WORK, token_budget=8192))
    message = str(caught.value)
    assert "small takes 8192" in message
    budget = int(message.partition("--token-budget ")[2].split()[0])
    assert engine_settings(FAST, PAIR, replace(WORK, token_budget=budget))


def test_a_gpu_is_shared_by_weights_and_cache() -> None:
    chosen = engine_settings(CUDA, PAIR, WORK)
    assert {settings.device for settings in chosen.values()} == {"cuda"}
    assert 0 < sum(settings.gpu_memory_utilization or 0 for settings in chosen.values()) < 1


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert machine.cores
    assert 0 < machine.memory_available <= machine.memory_total


@pytest.mark.parametrize("machine", [SMALL, FAST, CUDA, replace(SMALL, memory_available=GIB)])
def test_the_doctor_speaks_of_any_machine(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECLRM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("speclrm.runtime.models.store.hub_answers", lambda: False)
    findings = {finding.what: finding for finding in examine(machine).findings}
    pair = findings["smollm2-135m-instruct for qwen2.5-coder-0.5b-instruct"]
    if machine.memory_available == GIB:
        assert (pair.status, findings["memory"].status) == ("warn", "warn")
        assert "Not enough memory" in pair.advice
    else:
        assert pair.status == "ok"
    assert all(finding.advice for finding in findings.values() if finding.status != "ok")


def refused(context: int, **work: int) -> str:
    with pytest.raises(CapacityError) as caught:
        check_context(
            {Role.TARGET: replace(TARGET, shape=replace(TARGET.shape, context=context))}, replace(WORK, **work)
        )
    return str(caught.value)


def advised(message: str) -> dict[str, int]:
    return {name.replace("-", "_"): int(number) for name, number in re.findall(r"--([a-z-]+) (\d+)", message)}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("context", [512, 700, 1000, 2048])
@pytest.mark.parametrize(("budget", "step"), [(3000, 512), (8192, 128), (300, 4000), (8192, 512)])
def test_what_does_not_fit_is_said_with_options_that_fit(context: int, budget: int, step: int, same: bool) -> None:
    work = replace(WORK, prompt_tokens=75, token_budget=budget, max_step_tokens=step, same_tokenizer=same)
    models = {Role.TARGET: replace(TARGET, shape=replace(TARGET.shape, context=context))}
    with pytest.raises(CapacityError) as caught:
        check_context(models, work)
    message = str(caught.value)
    assert "longest problem" not in message
    options = advised(message)
    assert min(options.values()) >= 64
    check_context(models, replace(work, **options))
    longer = replace(work, **{**options, "token_budget": options["token_budget"] + 64})
    with pytest.raises(CapacityError):  # and it is not much less than would do
        check_context(models, longer)


def test_the_part_that_has_no_room_is_named() -> None:
    assert "the room for one step does not" in refused(512, prompt_tokens=75, max_step_tokens=512)
    assert "The longest problem alone takes 490" in refused(512, prompt_tokens=490)
    assert "--closing-tokens" in refused(512, prompt_tokens=75, suffix_tokens=480)
    assert "--methods" in refused(512, prompt_tokens=75, token_budget=64, max_step_tokens=64, question_tokens=600)
