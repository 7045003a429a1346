"""Settings of what the server says of itself."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator

from nexa_runtime.config.base import Slice, unset


class FileSettings(Slice):
    """A file of settings."""

    env_file: str | None = Field(
        None,
        validation_alias="NEXA_ENV_FILE",
        min_length=1,
        description="file with settings, a NAME=value a line, which win over the environment",
    )


class LogSettings(Slice):
    """The log."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        validation_alias=AliasChoices("NEXA_LOG_LEVEL", "LOG_LEVEL"),
        description="DEBUG, INFO, WARNING or ERROR: the least severe line that is written; DEBUG has a line"
        " per step",
    )

    @field_validator("level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value


class HealthSettings(Slice):
    """When a server that hangs is given up."""

    step_limit_s: float = Field(
        120,
        validation_alias="NEXA_STEP_LIMIT_S",
        ge=0,
        le=86_400,
        description="seconds that an engine step may take before the server is not ready, for each 512 tokens"
        " of it; after five times as long the process ends; 0: never",
    )


class DiscoverySettings(Slice):
    """Where others find this server."""

    etcd_url: SecretStr | None = Field(
        None,
        validation_alias="NEXA_ETCD_URL",
        examples=["http://user:password@etcd:2379, several with commas"],
        description="etcd that the server registers in while it is ready: one URL, or several with commas,"
        " like http://user:password@host:2379 where it wants a user",
    )
    public_url: str | None = Field(
        None,
        validation_alias="NEXA_PUBLIC_URL",
        examples=["http://10.0.0.5:8080"],
        json_schema_extra=unset("host and port"),
        description="the URL that others reach this server under; needed with etcd where it listens on all"
        " addresses",
    )
    service_name: str = Field(
        "nexa-runtime",
        validation_alias="NEXA_SERVICE_NAME",
        pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        examples=["nexa-runtime"],
        description="the name that it has in etcd and in /v1/metadata",
    )

    @field_validator("etcd_url")
    @classmethod
    def _check_etcd(cls, value: SecretStr | None) -> SecretStr | None:
        for url in value.get_secret_value().split(",") if value else ():
            _check_url(url.strip())
        return value

    @field_validator("public_url")
    @classmethod
    def _check_public(cls, value: str | None) -> str | None:
        if value is not None:
            _check_url(value)
        return value


def _check_url(text: str) -> None:
    """Raise ``ValueError`` unless it is an ``http`` or ``https`` URL with a host."""
    parts = urlsplit(text)
    is_plain = text.isprintable() and not set(text) & set(" ?#")
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ValueError("must be a URL")
    parts.port  # noqa: B018 - raises where it is no number
