"""Settings: what the owner of the box can turn, read once at start.

Owns the names, ranges, defaults and descriptions of all settings, one frozen slice per layer. Values come
from the environment; command-line flags override them. It never reads files or looks at the machine.
``load_settings`` is called by ``cli`` alone; the layers below receive their slice.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nexa_runtime.errors import ConfigError


class _Slice(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)


SliceT = TypeVar("SliceT", bound=_Slice)


def _split(value: object) -> object:
    """A text with commas as a tuple of its parts."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)):
        return tuple(part for part in (str(one).strip() for one in parts) if part)
    return value


_UNITS_BYTES = {
    "": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,9})?)\s*([A-Z]*)")


def parse_bytes(value: object) -> object:
    """A number of bytes, also as a text: ``6G`` is 6 x 2**30 of them, ``6GB`` 6 x 10**9."""
    if value is None:
        return None
    match = _SIZE.fullmatch(str(value).strip().upper())
    if match is None or match[2] not in _UNITS_BYTES:
        raise ValueError("must be bytes, or a text like 6GB")
    return int(float(match[1]) * _UNITS_BYTES[match[2]]) if match[2] or "." in match[1] else int(match[1])


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
DigestList = tuple[Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")], ...]
Digests = Annotated[DigestList, NoDecode, BeforeValidator(_split)]
NetworkList = tuple[IPv4Network | IPv6Network, ...]
Networks = Annotated[NetworkList, NoDecode, BeforeValidator(_split)]

_LISTS: dict[object, str] = {
    DigestList: "digests of 64 hex digits, with commas",
    NetworkList: "networks like 10.0.0.0/8, with commas",
}


class ModelSettings(_Slice):
    """Which model is loaded and where it runs."""

    model_id: str = Field(
        "demo",
        validation_alias="NEXA_MODEL_ID",
        min_length=1,
        description="the model to serve: `demo` (bundled) or the path of a GGUF file",
    )
    served_names: Names = Field(
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
        description="CPU threads of llama.cpp; unset: as many as are fastest, measured at the first start",
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
        " auto: twice what it takes without them; on a processor up to 0.75 s, and as long as 64 tokens of a"
        " long prompt take",
    )
    host_cache: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(
        None,
        validation_alias="NEXA_HOST_CACHE",
        ge=0,
        le=2**50,
        description="main memory of each model for prefixes that lay idle, or whose KV cells were needed,"
        " like 2G, besides NEXA_MEMORY_BUDGET; 0: none;"
        " unset: as much as the KV cache has, a tenth of what is free at most",
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


class PoolSettings(_Slice):
    """How many models stay loaded, and for how long."""

    memory_budget: Annotated[int | None, BeforeValidator(parse_bytes)] = Field(
        None,
        validation_alias="NEXA_MEMORY_BUDGET",
        ge=1,
        le=2**50,
        description="memory for all loaded models together, in bytes or like 12G;"
        " unset: most of what is free at the start",
    )
    keep_alive_s: float = Field(
        300,
        validation_alias="NEXA_KEEP_ALIVE_S",
        gt=0,
        le=31_536_000,
        description="seconds after its last request in which a model other than the default stays loaded",
    )
    load_timeout_s: float = Field(
        300,
        validation_alias="NEXA_LOAD_TIMEOUT_S",
        gt=0,
        le=86_400,
        description="seconds that a request waits for its model to be loaded",
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


class TenancySettings(_Slice):
    """Who the tenants are, and where their limits are written."""

    mode: Literal["single", "multi"] | None = Field(
        None,
        validation_alias="TENANT_MODE",
        description="single: everyone is the default tenant; multi: the key or X-Tenant-Id says who;"
        " unset: multi with Vault or a tenants file, else single",
    )
    default_tenant_id: str | None = Field(
        None,
        validation_alias="DEFAULT_TENANT_ID",
        min_length=1,
        description="the tenant of a request that names none; in single mode `demo` if unset",
    )
    tenants_file: str | None = Field(
        None,
        validation_alias="NEXA_TENANTS_FILE",
        min_length=1,
        description="YAML file with the tenants and their limits, for a box without Vault",
    )


PLACEHOLDER = re.compile(r"\{\{\s*tenant_id\s*\}\}")
"""Where a tenant's id goes in ``NEXA_VAULT_PATH_TEMPLATE``."""


class VaultSettings(_Slice):
    """How HashiCorp Vault is asked."""

    address: str | None = Field(
        None,
        validation_alias="VAULT_ADDR",
        pattern=r"^https?://\S+$",
        examples=["https://vault.example:8200"],
        description="URL of Vault",
    )
    token: SecretStr | None = Field(
        None, validation_alias="VAULT_TOKEN", description="a Vault token; AppRole and Kubernetes need none"
    )
    namespace: str | None = Field(
        None, validation_alias="VAULT_NAMESPACE", description="Vault Enterprise namespace"
    )
    path_template: str = Field(
        "secret/data/tenant/{{tenant_id}}/nexa",
        validation_alias="NEXA_VAULT_PATH_TEMPLATE",
        pattern=r"^[^/\s]+/data/\S*\{\{\s*tenant_id\s*\}\}\S*$",
        examples=["secret/data/tenant/{{tenant_id}}/nexa"],
        description="KV v2 API path of a tenant's secret: mount, /data/, and a path with {{tenant_id}}",
    )
    role_id: str | None = Field(
        None, validation_alias="NEXA_VAULT_ROLE_ID", description="AppRole: role id to log in with"
    )
    secret_id: SecretStr | None = Field(
        None, validation_alias="NEXA_VAULT_SECRET_ID", description="AppRole: secret id, or its wrapping token"
    )
    secret_id_file: str | None = Field(
        None,
        validation_alias="NEXA_VAULT_SECRET_ID_FILE",
        description="AppRole: file with the secret id, or with its wrapping token; read at each login",
    )
    is_secret_id_wrapped: bool = Field(
        False,
        validation_alias="NEXA_VAULT_SECRET_ID_WRAPPED",
        description="whether the secret id given is a wrapping token",
    )
    kubernetes_role: str | None = Field(
        None,
        validation_alias="NEXA_VAULT_KUBERNETES_ROLE",
        description="role to log in with by the pod's service account",
    )
    kubernetes_token_file: str = Field(
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        validation_alias="NEXA_VAULT_KUBERNETES_TOKEN_FILE",
        description="file with the pod's service account token",
    )
    timeout_s: float = Field(
        2.5,
        validation_alias="NEXA_VAULT_TIMEOUT_S",
        gt=0,
        le=30,
        description="seconds that Vault may take for one answer",
    )


class AccessSettings(_Slice):
    """Who may ask at all."""

    api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("NEXA_API_KEY", "API_KEY"),
        description="the service key: it acts for the tenant that X-Tenant-Id names",
    )
    api_key_sha256: Digests = Field(
        (),
        validation_alias="NEXA_API_KEY_SHA256",
        description="SHA-256 of the service key in hex, instead of the key; several with commas",
    )
    admin_key: SecretStr | None = Field(
        None, validation_alias="NEXA_ADMIN_KEY", description="the key that opens /admin, and nothing else"
    )
    admin_key_sha256: Digests = Field(
        (),
        validation_alias="NEXA_ADMIN_KEY_SHA256",
        description="SHA-256 of the admin key in hex, instead of the key; several with commas",
    )
    trusts_tenant_header: bool = Field(
        False,
        validation_alias="NEXA_TRUST_TENANT_HEADER",
        description="whether X-Tenant-Id alone, without a key, is believed from NEXA_TRUSTED_CIDRS",
    )
    trusted_cidrs: Networks = Field(
        (),
        validation_alias="NEXA_TRUSTED_CIDRS",
        description="networks of immediate peers whose bare X-Tenant-Id is believed, with commas",
    )
    ip_allowlist: Networks = Field(
        (),
        validation_alias="NEXA_IP_ALLOWLIST",
        description="networks of clients whose requests are taken, with commas; unset: all",
    )
    forwarded_allow_ips: Networks = Field(
        (),
        validation_alias="NEXA_FORWARDED_ALLOW_IPS",
        description="networks of proxies whose X-Forwarded-For is believed, with commas",
    )


class StoreSettings(_Slice):
    """Where models lie, and where they come from."""

    model_store: str | None = Field(
        None,
        validation_alias="NEXA_MODEL_STORE",
        min_length=1,
        description="folder of the model store; unset: in the user's data directory",
    )
    state_dir: str | None = Field(
        None,
        validation_alias="NEXA_STATE_DIR",
        min_length=1,
        description="folder for what the server itself writes; unset: in the user's state directory",
    )
    catalog_file: str | None = Field(
        None,
        validation_alias="NEXA_CATALOG_FILE",
        min_length=1,
        description="catalog of model names; unset: the models.yaml that is shipped",
    )
    endpoint: str = Field(
        "https://huggingface.co",
        validation_alias="HF_ENDPOINT",
        pattern=r"^https?://\S+$",
        examples=["https://huggingface.co"],
        description="the hub that models are pulled from",
    )
    token: SecretStr | None = Field(
        None, validation_alias="HF_TOKEN", description="token for gated or private repositories"
    )
    is_offline: bool = Field(
        False, validation_alias="HF_HUB_OFFLINE", description="whether the hub is never asked"
    )


class ClientSettings(_Slice):
    """Which running server the commands ask."""

    url: str = Field(
        "http://127.0.0.1:8080",
        validation_alias="NEXA_URL",
        pattern=r"^https?://\S+$",
        examples=["http://127.0.0.1:8080"],
        description="URL of the server that `nexa-runtime tenants` asks",
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
    pool: PoolSettings
    server: ServerSettings
    tenancy: TenancySettings
    vault: VaultSettings
    access: AccessSettings
    store: StoreSettings
    client: ClientSettings
    log: LogSettings


SLICES: tuple[type[_Slice], ...] = (
    ModelSettings, EngineSettings, ServingSettings, PoolSettings, ServerSettings,
    TenancySettings, VaultSettings, AccessSettings, StoreSettings, ClientSettings, LogSettings,
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
        pool=_load(PoolSettings, given),
        server=_load(ServerSettings, given),
        tenancy=_load(TenancySettings, given),
        vault=_load(VaultSettings, given),
        access=_load(AccessSettings, given),
        store=_load(StoreSettings, given),
        client=_load(ClientSettings, given),
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
            value = "no such text" if _is_secret(field) else repr(str(first.get("input"))[:100])
            return f"{name} is {value}, but must be {_range(field)} ({field.description})."
    return f"{name}: {first['msg']}."


def _options(field: FieldInfo) -> tuple[object, ...]:
    """The alternatives of a field's type."""
    return get_args(field.annotation) if get_origin(field.annotation) is not tuple else ()


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in _options(field)


def _range(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is tuple:
        return _LISTS.get(field.annotation, "a list with commas")
    options = _options(field) or (field.annotation,)
    kinds = {int: "an integer", float: "a number", str: "a text", SecretStr: "a text"}
    kind = next((kinds[option] for option in options if option in kinds), None)
    if kind is None:
        names = [
            name for option in options for name in get_args(option) or (option,) if option is not NoneType
        ]
        return "one of " + ", ".join(str(name) for name in names)
    bounds: dict[str, Any] = {}
    for item in field.metadata:
        for bound in ("ge", "gt", "le", "min_length"):
            if (value := getattr(item, bound, None)) is not None:
                bounds[bound] = value
    if field.examples:
        return f"{kind} like {field.examples[0]}"
    if "min_length" in bounds:
        return kind + " in UTF-8 that is not empty"
    if not bounds:
        return kind
    low = f"above {bounds['gt']}" if "gt" in bounds else f"from {bounds.get('ge')}"
    return f"{kind} {low} to {bounds['le']}" if "le" in bounds else kind
