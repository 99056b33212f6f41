"""Declares the options of engines: models, where they are, how they are loaded, and what becomes of those that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from speclrm.app.addresses import check_replicas, with_addresses
from speclrm.runtime.engines.http.hints import RouterHints
from speclrm.runtime.scheduling.lanes import STALL_LIMIT_S
from speclrm.runtime.settings import EngineDtype, Sharing
from speclrm.strategies.option import MODELS, Option

ENGINE_RESTARTS = 3
"""A cause that passes (a spike of memory, a killed process) is gone by the third start; one that stays costs three loadings."""

FIRST_FREE = "the first that are free"


class Options(BaseModel):
    """Base class: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EngineOptions(Options):
    """Options of the models, and of how they are loaded or where they are."""

    target: Annotated[
        str | None,
        Option(
            "Target model: a known name, a Hugging Face repository, a folder, http/NAME@URL (a server), or sim/NAME (simulated).",
            MODELS,
            "task",
            flags=("--model-name",),
            complete="model",
        ),
    ] = None
    draft: Annotated[
        str | None,
        Option(
            "Draft model: a known name, a Hugging Face repository, a folder, http/NAME@URL (a server), or sim/NAME (simulated).",
            MODELS,
            "method",
            complete="model",
        ),
    ] = None
    target_url: Annotated[
        tuple[str, ...],
        Option("Addresses of servers that have the target, separated by commas.", MODELS, "place", metavar="URL,URL"),
    ] = ()
    draft_url: Annotated[
        tuple[str, ...],
        Option("Addresses of servers that have the draft, separated by commas.", MODELS, "place", metavar="URL,URL"),
    ] = ()
    target_tokenizer: Annotated[
        str | None,
        Option("Model whose tokenizer the target's server has.", MODELS, "task", metavar="NAME", shown="the target"),
    ] = None
    draft_tokenizer: Annotated[
        str | None,
        Option("Model whose tokenizer the draft's server has.", MODELS, "method", metavar="NAME", shown="the draft"),
    ] = None
    target_connections: Annotated[
        int | None,
        Field(ge=1),
        Option("Requests in flight at each server of the target.", MODELS, "place", shown="what it runs at once"),
    ] = None
    draft_connections: Annotated[
        int | None,
        Field(ge=1),
        Option("Requests in flight at each server of the draft.", MODELS, "place", shown="what it runs at once"),
    ] = None
    router_hints: Annotated[
        RouterHints,
        Option("Fields for a router in front of servers: none, session (vLLM) or nvext (Dynamo).", MODELS, "place"),
    ] = "none"
    dtype: Annotated[
        EngineDtype,
        Option("Data type: auto (by the processor), bfloat16, float16 or float32.", MODELS, "task", metavar="TYPE"),
    ] = "auto"
    kv_cache_gib: Annotated[
        float | None,
        Field(gt=0),
        Option("KV cache size per engine, in GiB.", MODELS, "place", shown="what the work needs"),
    ] = None
    target_dtype: Annotated[
        EngineDtype | None,
        Option("Data type of the target alone.", MODELS, "task", metavar="TYPE", shown="that of --dtype"),
    ] = None
    draft_dtype: Annotated[
        EngineDtype | None,
        Option("Data type of the draft alone.", MODELS, "method", metavar="TYPE", shown="that of --dtype"),
    ] = None
    target_devices: Annotated[
        tuple[int, ...],
        Option("GPUs of the target, by number, separated by commas.", MODELS, "place", metavar="N,N", shown=FIRST_FREE),
    ] = ()
    draft_devices: Annotated[
        tuple[int, ...],
        Option("GPUs of the draft, by number, separated by commas.", MODELS, "place", metavar="N,N", shown=FIRST_FREE),
    ] = ()
    tensor_parallel_size: Annotated[
        int | None,
        Field(ge=1),
        Option(
            "GPUs, or cores without one, that share each layer of an engine.",
            MODELS,
            "place",
            shown="1, or all devices of the engine",
        ),
    ] = None
    target_tensor_parallel_size: Annotated[
        int | None,
        Field(ge=1),
        Option(
            "GPUs, or cores without one, that share each layer of the target.",
            MODELS,
            "place",
            shown="--tensor-parallel-size",
        ),
    ] = None
    draft_tensor_parallel_size: Annotated[
        int | None,
        Field(ge=1),
        Option(
            "GPUs, or cores without one, that share each layer of the draft.",
            MODELS,
            "place",
            shown="--tensor-parallel-size",
        ),
    ] = None
    target_pipeline_parallel_size: Annotated[
        int, Field(ge=1), Option("Stages of the target's layers, each on GPUs of its own.", MODELS, "place")
    ] = 1
    draft_pipeline_parallel_size: Annotated[
        int, Field(ge=1), Option("Stages of the draft's layers, each on GPUs of its own.", MODELS, "place")
    ] = 1
    gpu_memory_utilization: Annotated[
        float | None,
        Field(gt=0, le=1),
        Option(
            "Fraction of GPU memory used by all engines together, 0 to 1.", MODELS, "place", shown="what the work needs"
        ),
    ] = None
    target_gpu_memory_utilization: Annotated[
        float | None,
        Field(gt=0, le=1),
        Option("Most of each GPU's memory for the target, 0 to 1.", MODELS, "place", shown="what the work needs"),
    ] = None
    draft_gpu_memory_utilization: Annotated[
        float | None,
        Field(gt=0, le=1),
        Option("Most of each GPU's memory for the draft, 0 to 1.", MODELS, "place", shown="what the work needs"),
    ] = None
    share_gpu: Annotated[
        Sharing,
        Option(
            "How engines on one GPU share it: side by side (mps), by time slices, or mps where it can be had (auto).",
            MODELS,
            "place",
        ),
    ] = "auto"
    engine_log: Annotated[
        Path | None, Option("Log file of the engines.", MODELS, "place", shown="a new file in the cache folder")
    ] = None
    target_args: Annotated[
        dict[str, JsonValue],
        Option(
            "Additional vLLM engine argument for the target, such as quantization=fp8, or field for its server; repeatable.",
            MODELS,
            "task",
            name="target_arg",
            metavar="NAME=VALUE",
        ),
    ] = {}
    draft_args: Annotated[
        dict[str, JsonValue],
        Option(
            "Additional vLLM engine argument for the draft, or field for its server; repeatable.",
            MODELS,
            "method",
            name="draft_arg",
            metavar="NAME=VALUE",
        ),
    ] = {}
    stall_timeout: Annotated[
        float,
        Field(gt=0),
        Option(
            "Seconds without progress after which an engine counts as hung, and that a run waits for one to return.",
            MODELS,
            "place",
        ),
    ] = STALL_LIMIT_S
    engine_restarts: Annotated[
        int,
        Field(ge=0),
        Option(
            "Times in a row, without a token between, that a failed engine of this machine is started anew; 0: not at all.",
            MODELS,
            "place",
        ),
    ] = ENGINE_RESTARTS
    target_replicas: Annotated[
        int, Field(ge=1), Option("Number of engines with the target, where this program starts them.", MODELS, "place")
    ] = 1
    draft_replicas: Annotated[
        int, Field(ge=1), Option("Number of engines with the draft, where this program starts them.", MODELS, "place")
    ] = 1
    shared_device: Annotated[bool, Option("Run simulated engines (sim/...) on one shared device.", MODELS, "task")] = (
        False
    )

    @model_validator(mode="after")
    def _replicas_are_ours(self) -> EngineOptions:
        check_replicas(vars(self))
        return self

    @model_validator(mode="before")
    @classmethod
    def _addresses_apart(cls, values: Any) -> Any:
        return with_addresses(cast("dict[str, Any]", values)) if isinstance(values, dict) else values
