"""Settings: what the owner of the box can turn, read once at start.

Owns the names, ranges, defaults and descriptions of all settings, one frozen slice per layer. Values come
from the environment; command-line flags override them. It never reads files or looks at the machine.
``load_settings`` is called by ``cli`` alone; the layers below receive their slice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nexa_runtime.errors import ConfigError


class _Slice(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


SliceT = TypeVar("SliceT", bound=_Slice)


class ModelSettings(_Slice):
    """Which model is loaded and where it runs."""

    model_id: str = Field(
        "demo",
        validation_alias="NEXA_MODEL_ID",
        min_length=1,
        description="the model to serve: `demo` (bundled) or the path of a GGUF file",
    )
    served_names: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias="NEXA_SERVED_NAMES",
        description="further names of the loaded model, separated by commas",
    )
    gpu_layers: int = Field(
        -1,
        validation_alias="NEXA_GPU_LAYERS",
        ge=-1,
        le=10_000,
        description="layers kept on the GPU; -1: all (a CPU build ignores it)",
    )

    @field_validator("served_names", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)):
            return tuple(name for name in (str(part).strip() for part in parts) if name)
        return value


class EngineSettings(_Slice):
    """How much runs at once."""

    ctx_size: int | None = Field(
        None,
        validation_alias="NEXA_CTX_SIZE",
        ge=256,
        le=100_000_000,
        description="KV cells in all, shared by every sequence, in tokens;"
        " unset: slots x the model's context, less where memory says so",
    )
    slots: int = Field(
        8, validation_alias="NEXA_SLOTS", ge=1, le=128, description="sequences that run at once"
    )
    threads: int | None = Field(
        None,
        validation_alias="NEXA_THREADS",
        ge=1,
        le=1024,
        description="CPU threads of llama.cpp; unset: one per core this process may use",
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
        description="unified: any sequence may use all KV cells, and prefixes are shared;"
        " split: each slot has an equal part of its own, and nothing is shared between live sequences",
    )
    itl_target_ms: float | None = Field(
        None,
        validation_alias="NEXA_ITL_TARGET_MS",
        gt=0,
        le=60_000,
        description="milliseconds between two tokens of a stream while prompts arrive;"
        " auto: twice what it takes without them",
    )

    @field_validator("itl_target_ms", mode="before")
    @classmethod
    def _auto_is_none(cls, value: object) -> object:
        return None if value == "auto" else value


class ServingSettings(_Slice):
    """What one request may ask for."""

    default_max_tokens: int | None = Field(
        None,
        validation_alias="NEXA_DEFAULT_MAX_TOKENS",
        ge=1,
        le=100_000_000,
        description="output tokens where the client names no limit; unset: to the end of the context",
    )
    max_queue: int = Field(
        256,
        validation_alias="NEXA_MAX_QUEUE",
        ge=0,
        le=1_000_000,
        description="requests that may wait for a slot; one more is refused with 503",
    )
    request_timeout_s: float = Field(
        600,
        validation_alias="NEXA_REQUEST_TIMEOUT_S",
        gt=0,
        le=86_400,
        description="seconds after which a request is aborted",
    )


class ServerSettings(_Slice):
    """Where HTTP listens and what it takes in."""

    host: str = Field(
        "127.0.0.1", validation_alias="NEXA_HOST", min_length=1, description="address to listen on"
    )
    port: int = Field(
        8080,
        validation_alias="NEXA_PORT",
        ge=0,
        le=65_535,
        description="TCP port to listen on; 0: any free one",
    )
    max_body_bytes: int = Field(
        4 * 1024 * 1024,
        validation_alias="NEXA_MAX_BODY_BYTES",
        ge=1024,
        le=1024**3,
        description="largest request body, in bytes",
    )
    body_timeout_s: float = Field(
        30,
        validation_alias="NEXA_BODY_TIMEOUT_S",
        gt=0,
        le=3600,
        description="seconds in which a request body must arrive",
    )


class LogSettings(_Slice):
    """What is written to stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        validation_alias=AliasChoices("NEXA_LOG_LEVEL", "LOG_LEVEL"),
        description="least severe log line that is written",
    )

    @field_validator("level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Settings:
    """All slices; made by ``load_settings``."""

    model: ModelSettings
    engine: EngineSettings
    serving: ServingSettings
    server: ServerSettings
    log: LogSettings


SLICES: tuple[type[_Slice], ...] = (
    ModelSettings, EngineSettings, ServingSettings, ServerSettings, LogSettings,
)  # fmt: skip


def env_names(field: FieldInfo) -> tuple[str, ...]:
    """The environment names of a setting, the preferred one first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (str(alias),)


def load_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the environment, let ``overrides`` (environment name → value; ``None`` is skipped) win.

    Raises ``ConfigError`` with one sentence that names the setting and its range.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    return Settings(
        model=_load(ModelSettings, given),
        engine=_load(EngineSettings, given),
        serving=_load(ServingSettings, given),
        server=_load(ServerSettings, given),
        log=_load(LogSettings, given),
    )


def _load(cls: type[SliceT], given: Mapping[str, object]) -> SliceT:
    names = {name for field in cls.model_fields.values() for name in env_names(field)}
    try:
        return cls(**{name: value for name, value in given.items() if name in names})
    except ValidationError as error:
        raise ConfigError(_sentence(cls, error)) from None


def _sentence(cls: type[_Slice], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    for field in cls.model_fields.values():
        if name in env_names(field):
            value = str(first.get("input"))[:100]
            return f"{name} is {value!r}, but must be {_range(field)} ({field.description})."
    return f"{name}: {first['msg']}."


def _range(field: FieldInfo) -> str:
    options = getattr(field.annotation, "__args__", (field.annotation,))
    kinds = {int: "an integer", float: "a number", str: "a text"}
    kind = next((kinds[option] for option in options if option in kinds), None)
    if kind is None:
        return "one of " + ", ".join(str(option) for option in options)
    bounds: dict[str, Any] = {}
    for item in field.metadata:
        for bound in ("ge", "gt", "le", "min_length"):
            if (value := getattr(item, bound, None)) is not None:
                bounds[bound] = value
    if "min_length" in bounds:
        return kind + " in UTF-8 that is not empty"
    low = f"above {bounds['gt']}" if "gt" in bounds else f"from {bounds.get('ge')}"
    return f"{kind} {low} to {bounds['le']}" if "le" in bounds else kind
