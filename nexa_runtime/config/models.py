"""Settings of what is loaded and computed."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from nexa_runtime.config.base import Names, Slice, parse_bytes, unset


class ModelSettings(Slice):
    """The default model, and where it runs."""

    model_id: str = Field(
        "demo",
        validation_alias="NEXA_MODEL_ID",
        min_length=1,
        description="the default model: `demo` (bundled), a name of the store, or the path of a GGUF file",
    )
    served_names: Names = Field(
        (),
        validation_alias="NEXA_SERVED_NAMES",
        description="further names of the default model, with commas",
    )
    gpu_layers: int = Field(
        -1,
        validation_alias="NEXA_GPU_LAYERS",
        ge=-1,
        le=10_000,
        description="layers on the GPU; -1: all (a CPU build ignores it)",
    )


class EngineSettings(Slice):
    """How much runs at once."""

    ctx_size: int | None = Field(
        None,
        validation_alias="NEXA_CTX_SIZE",
        ge=256,
        le=100_000_000,
        json_schema_extra=unset("the slots times the model's context"),
        description="KV cells in all, shared by every sequence, in tokens; if unset, half of the free memory"
        " at most",
    )
    slots: int = Field(
        8, validation_alias="NEXA_SLOTS", ge=1, le=128, description="sequences that run at once, 1 to 128"
    )
    threads: int | None = Field(
        None,
        validation_alias="NEXA_THREADS",
        ge=1,
        le=1024,
        json_schema_extra=unset("measured at the first start"),
        description="CPU threads of llama.cpp; measured where cores have several hardware threads or there"
        " are four or more, else one per usable core",
    )
    step_tokens: int = Field(
        512,
        validation_alias="NEXA_STEP_TOKENS",
        ge=32,
        le=8192,
        description="most tokens that one engine step computes",
    )
    kv: Literal["unified", "split"] = Field(
        "unified",
        validation_alias="NEXA_KV",
        description="unified: any sequence may use all KV cells, and prefixes are shared between live"
        " sequences; split: each slot has an equal part of its own, and only what has ended is reused",
    )
    itl_target_ms: float | None = Field(
        None,
        validation_alias="NEXA_ITL_TARGET_MS",
        gt=0,
        le=60_000,
        json_schema_extra=unset("auto"),
        description="milliseconds between two tokens of a stream while prompts arrive;"
        " auto: twice what it takes without them; on a processor about a second, and as long as 64 tokens of"
        " a long prompt take",
    )
    host_cache: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(
        None,
        validation_alias="NEXA_HOST_CACHE",
        ge=0,
        le=2**50,
        json_schema_extra=unset("as much as the KV cache"),
        description="main memory of each model for prefixes that lay idle, or whose KV cells were needed,"
        " like 2G, besides NEXA_MEMORY_BUDGET; 0: none; if unset, as much as the KV cache has, a tenth of"
        " what is free at most",
    )
    public_prefixes_file: str | None = Field(
        None,
        validation_alias="NEXA_PUBLIC_PREFIXES_FILE",
        min_length=1,
        description="YAML file with prompt beginnings that all tenants share, computed at start",
    )

    @field_validator("itl_target_ms", mode="before")
    @classmethod
    def _auto_is_none(cls, value: object) -> object:
        return None if value == "auto" else value


class ServingSettings(Slice):
    """What one request may ask for."""

    default_max_tokens: int | None = Field(
        None,
        validation_alias="NEXA_DEFAULT_MAX_TOKENS",
        ge=1,
        le=100_000_000,
        json_schema_extra=unset("to the end of the context"),
        description="output tokens where the client names no limit",
    )
    max_queue: int | None = Field(
        None,
        validation_alias="NEXA_MAX_QUEUE",
        ge=0,
        le=1_000_000,
        json_schema_extra=unset("four for each slot"),
        description="requests of all tenants that may wait for a slot; one more gets 503, unless its tenant"
        " has less than an equal part of them",
    )
    request_timeout_s: float = Field(
        600,
        validation_alias="NEXA_REQUEST_TIMEOUT_S",
        gt=0,
        le=86_400,
        description="seconds after which a request is aborted",
    )


class PoolSettings(Slice):
    """How many models stay loaded, and for how long."""

    memory_budget: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(
        None,
        validation_alias="NEXA_MEMORY_BUDGET",
        ge=1,
        le=2**50,
        json_schema_extra=unset("most of what is free at the start"),
        description="memory for all loaded models together, in bytes or like 12G",
    )
    keep_alive_s: float = Field(
        300,
        validation_alias="NEXA_KEEP_ALIVE_S",
        gt=0,
        le=31_536_000,
        description="seconds that an idle model other than the default stays loaded",
    )
    load_timeout_s: float = Field(
        300,
        validation_alias="NEXA_LOAD_TIMEOUT_S",
        gt=0,
        le=86_400,
        description="seconds that a request waits for its model to be loaded",
    )
