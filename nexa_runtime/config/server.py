"""Settings of what listens, and of who may ask."""

import re
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr

from nexa_runtime.config.base import Digests, Networks, Origins, Slice, parse_bytes, unset
from nexa_runtime.errors import ConfigError

_SENDABLE = re.compile(r"[\x20-\x7e]+")


class ServerSettings(Slice):
    """What listens, and what it takes in."""

    host: str = Field(
        "127.0.0.1", validation_alias="NEXA_HOST", min_length=1, description="address to listen on"
    )
    port: int = Field(
        8080,
        validation_alias="NEXA_PORT",
        ge=0,
        le=65_535,
        description="port to listen on; 0: any free one",
    )
    max_body_bytes: Annotated[int, BeforeValidator(parse_bytes)] = Field(
        4 * 1024 * 1024,
        validation_alias="NEXA_MAX_BODY_BYTES",
        ge=1024,
        le=1024**3,
        description="largest request body, in bytes or like 4M",
    )
    body_timeout_s: float = Field(
        30,
        validation_alias="NEXA_BODY_TIMEOUT_S",
        gt=0,
        le=3600,
        description="seconds in which a request body must arrive",
    )
    header_timeout_s: float = Field(
        10,
        validation_alias="NEXA_HEADER_TIMEOUT_S",
        gt=0,
        le=3600,
        description="seconds in which a new connection must send the head of a request",
    )
    send_timeout_s: float = Field(
        60,
        validation_alias="NEXA_SEND_TIMEOUT_S",
        gt=0,
        le=3600,
        description="seconds after which a client that takes less than 1 KiB/s of its answer is dropped",
    )
    max_connections: int = Field(
        1000,
        validation_alias="NEXA_MAX_CONNECTIONS",
        ge=1,
        le=100_000,
        description="connections that may be open; requests on further ones get 503, but for /health, /readyz"
        " and /metrics",
    )
    drain_s: float = Field(
        25,
        validation_alias="NEXA_DRAIN_S",
        ge=0,
        le=86_400,
        description="seconds that running requests have to finish once the server is told to end",
    )
    cors_origins: Origins = Field(
        (),
        validation_alias="NEXA_CORS_ORIGINS",
        description="origins whose web pages may read the answers, with commas; or *, with keys only",
    )
    tls_cert: str | None = Field(
        None,
        validation_alias="NEXA_TLS_CERT",
        description="file with the certificate chain in PEM; HTTPS is served then",
    )
    tls_key: str | None = Field(
        None,
        validation_alias="NEXA_TLS_KEY",
        json_schema_extra=unset("in the certificate's file"),
        description="file with its private key in PEM",
    )
    tls_key_password: SecretStr | None = Field(
        None, validation_alias="NEXA_TLS_KEY_PASSWORD", description="password of that key"
    )


def _check_key(value: SecretStr | None) -> SecretStr | None:
    """A key that a client can send."""
    if value is not None and not _SENDABLE.fullmatch(value.get_secret_value()):
        raise ConfigError("NEXA_API_KEY and NEXA_ADMIN_KEY must be printable ASCII: no client sends more.")
    return value


Key = Annotated[SecretStr | None, AfterValidator(_check_key)]


class AccessSettings(Slice):
    """Keys, and who may ask at all."""

    api_key: Key = Field(
        None,
        validation_alias=AliasChoices("NEXA_API_KEY", "API_KEY"),
        description="the service key: it acts for the tenant that X-Tenant-Id names",
    )
    api_key_sha256: Digests = Field(
        (),
        validation_alias="NEXA_API_KEY_SHA256",
        description="SHA-256 of the service key in hex, instead of the key; several with commas",
    )
    admin_key: Key = Field(
        None,
        validation_alias="NEXA_ADMIN_KEY",
        description="the key that opens /admin and /metrics, and nothing else",
    )
    admin_key_sha256: Digests = Field(
        (),
        validation_alias="NEXA_ADMIN_KEY_SHA256",
        description="SHA-256 of the admin key in hex, instead of the key; several with commas",
    )
    trusts_tenant_header: bool = Field(
        False,
        validation_alias="NEXA_TRUST_TENANT_HEADER",
        description="whether a bare X-Tenant-Id, without a key, is believed from NEXA_TRUSTED_CIDRS",
    )
    trusted_cidrs: Networks = Field(
        (),
        validation_alias="NEXA_TRUSTED_CIDRS",
        description="networks of immediate peers whose bare X-Tenant-Id is believed, with commas",
    )
    ip_allowlist: Networks = Field(
        (),
        validation_alias="NEXA_IP_ALLOWLIST",
        json_schema_extra=unset("all"),
        description="networks of clients whose requests are taken, with commas",
    )
    forwarded_allow_ips: Networks = Field(
        (),
        validation_alias="NEXA_FORWARDED_ALLOW_IPS",
        description="networks of proxies whose X-Forwarded-For is believed (for NEXA_IP_ALLOWLIST), with"
        " commas",
    )
