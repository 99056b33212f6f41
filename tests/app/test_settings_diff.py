"""Which settings make runs comparable."""

from __future__ import annotations

from typing import Any

import pytest

from speclrm.app.options import RUN_DECLARED, RunOptions
from speclrm.app.settings_diff import EFFECTS, changes, having, key
from speclrm.strategies.recipe import Recipe

CONFIG: dict[str, Any] = {
    **RunOptions(strategy="speculative", dataset="d", target="t", draft="s").model_dump(mode="json"),
    "recipe": Recipe(tracks=3).model_dump(mode="json"),
    "problems": {"count": 2, "digest": "a"},
}
OTHER: dict[str, Any] = {
    **dict.fromkeys(RunOptions.model_fields, 7),
    "dtype": "float32",
    "shared_device": True,
    "recipe": {"tracks": 5},
    "target_args": {"a": 1},
    "draft_args": {"a": 1},
}


def test_the_list_knows_each_setting_of_a_run() -> None:
    assert set(EFFECTS) == set(RunOptions.model_fields)
    assert {one.option.effect for name, one in RUN_DECLARED.items() if name in Recipe.model_fields} == {"method"}


@pytest.mark.parametrize("name", RunOptions.model_fields)
def test_resuming_and_evaluating_go_by_the_same_list(name: str) -> None:
    changed = {**CONFIG, name: OTHER[name]}
    effect = EFFECTS[name]
    assert bool(changes(CONFIG, changed)) == (effect not in ("place", "problems"))
    assert (key(CONFIG, "task", "method") != key(changed, "task", "method")) == (effect in ("task", "method"))
    assert (key(CONFIG, "task") != key(changed, "task")) == (effect == "task")


def test_other_problems_are_told_by_their_digest() -> None:
    assert set(changes(CONFIG, {**CONFIG, "problems": {"count": 3, "digest": "b"}})) == {"problems"}


def test_a_setting_that_an_older_run_did_not_have_stood_at_its_default() -> None:
    older = {name: value for name, value in CONFIG.items() if name not in ("dtype", "shared_device")}
    older["recipe"] = {name: value for name, value in CONFIG["recipe"].items() if name != "closing_tokens"}
    older |= {"tracks": 3, "closing": None}  # the recipe a second time, as it was given
    assert changes(older, CONFIG) == {}
    assert key(older, "task", "method") == key(CONFIG, "task", "method")


def test_what_may_change_freely_is_when_and_where() -> None:
    assert set(having("place")) == {
        *("output_dir", "engine_log", "compress_trace", "concurrency"),
        *("kv_cache_gib", "gpu_memory_utilization", "tensor_parallel_size", "sinks", "router_hints", "stall_timeout"),
        *("share_gpu", "engine_restarts", "max_errors"),
        *(f"{role}_{what}" for role in ("target", "draft") for what in ("url", "connections", "replicas")),
        *(f"{role}_devices" for role in ("target", "draft")),
        *(f"{role}_{what}_parallel_size" for role in ("target", "draft") for what in ("tensor", "pipeline")),
        *(f"{role}_gpu_memory_utilization" for role in ("target", "draft")),
    }
