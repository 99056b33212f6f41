"""What vLLM's engines are told, and what a user may tell them."""

from __future__ import annotations

from pathlib import Path

import pytest

from speclrm.runtime.engines.vllm_arguments import OURS, arguments, check_arguments
from speclrm.runtime.errors import SettingsError
from speclrm.runtime.settings import EngineSettings

KNOWN = {*OURS, "max_num_seqs", "quantization", "max_num_batched_tokens"}


def settings(**extra: int | str) -> EngineSettings:
    return EngineSettings(
        name="m",
        path=Path("/models/m"),
        device="cuda",
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=512,
        block_size=16,
        extra={**extra},
    )


def test_nothing_is_proposed_that_would_be_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"'max_modellen'\. Close to it: max_num_seqs\.|'max_modellen'\.$"
    ) as caught:
        check_arguments(settings(max_modellen=256), KNOWN)
    assert OURS.isdisjoint(str(caught.value).partition("Close to it: ")[2].rstrip(".").split(", "))
    with pytest.raises(SettingsError, match=r"Close to it: quantization\."):
        check_arguments(settings(quantisation="fp8"), KNOWN)
    with pytest.raises(SettingsError, match="'max_model_len' is set by SpecLRM"):
        check_arguments(settings(max_model_len=256), KNOWN)
    check_arguments(settings(quantization="fp8"), KNOWN)


def test_a_cpu_engine_is_not_told_to_run_on_ray() -> None:
    wanted = settings(distributed_executor_backend="ray")
    known = {*KNOWN, "distributed_executor_backend"}
    check_arguments(wanted, known)
    with pytest.raises(SettingsError, match="vLLM runs on Ray with GPUs only"):
        check_arguments(wanted.model_copy(update={"device": "cpu"}), known)


def test_what_a_user_tells_an_engine_stands_above_what_we_do() -> None:
    told = arguments(settings(max_num_seqs=9, quantization="fp8"))
    assert (told["max_num_seqs"], told["quantization"], told["max_model_len"]) == (9, "fp8", 512)
    assert told.keys() >= OURS
