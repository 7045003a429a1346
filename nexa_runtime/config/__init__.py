"""Settings: what the owner of the box can turn, read once at start.

Owns the names, ranges, defaults and descriptions of all settings, one frozen slice per layer. Values come
from the environment, a secret also from the file that ``NAME_FILE`` names; the file that ``NEXA_ENV_FILE``
names wins over the environment, and flags over both. It never looks at the machine. ``load_settings`` is
called by ``cli`` alone; the layers below receive their slice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from nexa_runtime.config.base import LISTS, Slice, env_names, is_secret, options, parse_bytes, shown_default
from nexa_runtime.config.env_file import read_env_file
from nexa_runtime.config.metrics import MetricsSettings
from nexa_runtime.config.models import EngineSettings, ModelSettings, PoolSettings, ServingSettings
from nexa_runtime.config.operations import DiscoverySettings, FileSettings, HealthSettings, LogSettings
from nexa_runtime.config.secret_files import file_names, secrets_of_files
from nexa_runtime.config.server import AccessSettings, ServerSettings
from nexa_runtime.config.store import ClientSettings, StoreSettings
from nexa_runtime.config.tenancy import PLACEHOLDER, TenancySettings, VaultSettings
from nexa_runtime.config.usage import UsageSettings
from nexa_runtime.config.usage_database import UsageDatabaseSettings
from nexa_runtime.errors import ConfigError

__all__ = [
    "PLACEHOLDER", "SLICES", "AccessSettings", "ClientSettings", "DiscoverySettings", "EngineSettings",
    "FileSettings", "HealthSettings", "LogSettings", "MetricsSettings", "ModelSettings", "PoolSettings",
    "ServerSettings", "ServingSettings", "Settings", "StoreSettings", "TenancySettings",
    "UsageDatabaseSettings", "UsageSettings", "VaultSettings", "env_names", "file_names", "is_secret",
    "load_log_settings", "load_settings", "parse_bytes", "shown_default",
]  # fmt: skip

SliceT = TypeVar("SliceT", bound=Slice)


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
    health: HealthSettings
    discovery: DiscoverySettings
    metrics: MetricsSettings
    usage: UsageSettings
    usage_database: UsageDatabaseSettings

    def secrets(self) -> list[str]:
        """The texts among them that nobody may read."""
        values = [value for one in fields(self) for _, value in getattr(self, one.name)]
        return [value.get_secret_value() for value in values if isinstance(value, SecretStr)]


SLICES: tuple[type[Slice], ...] = (
    ModelSettings, StoreSettings, PoolSettings, EngineSettings, ServingSettings, ServerSettings,
    AccessSettings, TenancySettings, VaultSettings, UsageSettings, UsageDatabaseSettings, MetricsSettings,
    LogSettings, HealthSettings, DiscoverySettings, ClientSettings, FileSettings,
)  # fmt: skip
"""All of them, in the order of the README."""


def load_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the environment, let ``overrides`` (environment name → value; ``None`` is skipped) win.

    Raises ``ConfigError`` with one sentence that names the setting and its range.
    """
    given = _of_file() | {name: value for name, value in (overrides or {}).items() if value is not None}
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
        health=_load(HealthSettings, given),
        discovery=_load(DiscoverySettings, given),
        metrics=_load(MetricsSettings, given),
        usage=_load(UsageSettings, given),
        usage_database=_load(UsageDatabaseSettings, given),
    )


def load_log_settings() -> LogSettings:
    """How logs are written, by the environment and the file as it is now. Raises ``ConfigError``."""
    return _load(LogSettings, _of_file())


def _of_file() -> dict[str, object]:
    """What the file says, if one is named."""
    path = _load(FileSettings, {}).env_file
    return {} if path is None else dict(read_env_file(Path(path).expanduser()))


def _load(cls: type[SliceT], given: Mapping[str, object]) -> SliceT:
    names = {name for field in cls.model_fields.values() for name in env_names(field)}
    given = secrets_of_files(cls, given) | {name: value for name, value in given.items() if name in names}
    try:
        return cls(**given)
    except ValidationError as error:
        raise ConfigError(_sentence(cls, error)) from None


def _sentence(cls: type[Slice], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    for field in cls.model_fields.values():
        if name in env_names(field):
            value = "no such text" if is_secret(field) else repr(str(first.get("input"))[:100])
            return f"{name} is {value}, but must be {_range(field)} ({field.description})."
    return f"{name}: {first['msg']}."


def _range(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "true or false"
    if get_origin(field.annotation) is tuple:
        return LISTS.get(field.annotation, "a list with commas")
    choices = options(field) or (field.annotation,)
    kinds = {int: "an integer", float: "a number", str: "a text", SecretStr: "a text"}
    kind = next((kinds[option] for option in choices if option in kinds), None)
    if kind is None:
        names = [
            name for option in choices for name in get_args(option) or (option,) if option is not NoneType
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
